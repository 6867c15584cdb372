//! An authorizer that is asked by HTTP: it gets the head of the request, and allows by status 200.

use envoy_types::pb::envoy::{
    config::core::v3::{header_value_option::HeaderAppendAction, http_uri::HttpUpstreamType},
    extensions::filters::http::ext_authz::v3 as proto,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use leyline_authz::TextMatch;

use super::{Changes, Config, PARTIAL_BODY, Verdict, denied, is_of_hop};
use crate::{
    config::{
        Config as Everything,
        any::duration,
        error::{At, Compiled, Unsupported},
        route::headers::HeaderChanges,
        text::texts,
    },
    http::{body::Body, pipeline::Exchange, sample::Sample, server::HttpConnection},
    upstream::call::{self, CallFailure, Target},
};

/// Names of headers that are not to reach the upstream, with commas between.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// Who is asked, and how.
#[derive(Debug)]
pub(super) struct Service {
    target: Target,
    prefix: String,
    /// Besides `Authorization`, and what the request line says.
    told: Vec<TextMatch>,
    added: Vec<(HeaderName, HeaderValue)>,
    to_upstream: Vec<TextMatch>,
    to_upstream_appended: Vec<TextMatch>,
    /// All where nothing is said.
    to_client: Vec<TextMatch>,
    to_client_on_success: Vec<TextMatch>,
}

impl Service {
    #[expect(deprecated, reason = "istiod sends the list of headers in this place")]
    pub(super) fn compile(proto: &proto::HttpService) -> Compiled<Self> {
        if !proto.path_override.is_empty() || proto.retry_policy.is_some() {
            return Err(Unsupported::new("path_override or retry_policy"));
        }
        let uri = proto.server_uri.as_ref();
        let uri = uri.ok_or_else(|| Unsupported::missing("server_uri"))?;
        let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            return Err(Unsupported::missing("cluster"));
        };
        let deadline = uri.timeout.as_ref();
        let deadline = deadline.ok_or_else(|| Unsupported::missing("timeout"))?;
        let request = proto.authorization_request.as_ref();
        let response = proto.authorization_response.clone().unwrap_or_default();
        if response.dynamic_metadata_from_headers.is_some() {
            return Err(Unsupported::new("dynamic_metadata_from_headers"));
        }
        let list = |list: Option<&_>| list.map(texts).transpose().map(Option::unwrap_or_default);
        let added = request.iter().flat_map(|request| &request.headers_to_add);
        let added = added.map(|one| {
            let name = HeaderName::try_from(one.key.as_str()).ok();
            let value = HeaderValue::try_from(one.value.as_str()).ok();
            name.zip(value)
                .ok_or_else(|| Unsupported::new(format!("header {}", one.key)))
        });
        Ok(Self {
            target: Target {
                cluster: cluster.clone(),
                // It is the request's own.
                authority: String::new(),
                timeout: duration(deadline).at("timeout")?,
                ..Target::default()
            },
            prefix: proto.path_prefix.clone(),
            told: list(request.and_then(|request| request.allowed_headers.as_ref()))?,
            added: added.collect::<Compiled<_>>()?,
            to_upstream: list(response.allowed_upstream_headers.as_ref())?,
            to_upstream_appended: list(response.allowed_upstream_headers_to_append.as_ref())?,
            to_client: list(response.allowed_client_headers.as_ref())?,
            to_client_on_success: list(response.allowed_client_headers_on_success.as_ref())?,
        })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// # Errors
    /// There was no answer, or one of a server in trouble (5xx).
    pub(super) async fn ask(
        &self,
        filter: &Config,
        exchange: &Exchange,
        (config, conn): (&Everything, &HttpConnection),
        seen: Option<Sample>,
    ) -> Result<Verdict, CallFailure> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = exchange.head.method.clone();
        let headers = request.headers_mut();
        for (name, value) in &exchange.head.headers {
            if self.is_told(filter, name) {
                headers.append(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.added {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(seen) = seen {
            let partial = if seen.is_partial { "true" } else { "false" };
            headers.insert(PARTIAL_BODY, HeaderValue::from_static(partial));
            *request.body_mut() = Body::full(seen.bytes);
        }
        let target = Target {
            authority: exchange.authority.clone(),
            ..self.target.clone()
        };
        let path = format!("{}{}", self.prefix, exchange.path);
        let asked = call::http(&conn.shared, config, &target, &path, request);
        let answer = Box::pin(asked).await?;
        self.verdict(answer)
    }

    fn is_told(&self, filter: &Config, name: &HeaderName) -> bool {
        let is_named = |list: &[TextMatch]| list.iter().any(|text| text.matches(name.as_str()));
        let of_filter = filter.told.as_ref();
        (name == header::AUTHORIZATION
            || is_named(&self.told)
            || of_filter.is_some_and(|told| is_named(told)))
            && !is_of_hop(name)
            && !filter.is_never_told(name.as_str())
    }

    pub(super) fn verdict(&self, answer: Response<bytes::Bytes>) -> Result<Verdict, CallFailure> {
        let (head, body) = answer.into_parts();
        if head.status.is_server_error() {
            return Err(CallFailure::Http(head.status));
        }
        if head.status == StatusCode::OK {
            return Ok(Verdict::Allowed(Box::new(self.changes(&head.headers))));
        }
        let headers = head.headers.iter();
        let headers = headers.filter(|(name, _)| self.is_for_client(name));
        let headers = headers.map(|(name, value)| (name.clone(), value.clone()));
        Ok(denied(head.status, body, headers))
    }

    /// Those that tell a client how to go on are always for it.
    fn is_for_client(&self, name: &HeaderName) -> bool {
        self.to_client.is_empty()
            || name == header::WWW_AUTHENTICATE
            || name == header::LOCATION
            || self
                .to_client
                .iter()
                .any(|text| text.matches(name.as_str()))
    }

    fn changes(&self, headers: &HeaderMap) -> Changes {
        use HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
        let is_named = |list: &[TextMatch], name: &HeaderName| {
            list.iter().any(|text| text.matches(name.as_str())) && !is_of_hop(name)
        };
        let mut changes = Changes::default();
        for name in headers.keys() {
            for (index, value) in headers.get_all(name).iter().enumerate() {
                let put = |to: &mut HeaderChanges, how| {
                    to.put(name.clone(), value.clone(), how);
                };
                if is_named(&self.to_upstream, name) {
                    // The first takes the place of what the client said.
                    let how = if index == 0 {
                        OverwriteIfExistsOrAdd
                    } else {
                        AppendIfExistsOrAdd
                    };
                    put(&mut changes.request, how);
                } else if is_named(&self.to_upstream_appended, name) {
                    put(&mut changes.request, AppendIfExistsOrAdd);
                }
                if is_named(&self.to_client_on_success, name) {
                    put(&mut changes.response, AppendIfExistsOrAdd);
                }
            }
        }
        let remove = headers.get_all(REMOVE).iter();
        let remove = remove.filter_map(|value| value.to_str().ok());
        let remove = remove.flat_map(|value| value.split(','));
        changes.remove = remove
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .filter(|name| !is_of_hop(name))
            .collect();
        changes
    }
}
