//! `envoy.filters.http.ext_authz`: an external authorizer is asked whether a request may pass, by gRPC or by HTTP. istiod
//! makes it of AuthorizationPolicies of action CUSTOM, and has it depend on what the RBAC filter before it found
//! (facts A.8). It may change the request, and it gives the answer to one that it refuses.

mod by_grpc;
mod by_http;
mod query;

use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    BufferSettings, ExtAuthz, ext_authz::Services,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use leyline_authz::TextMatch;
use serde_json::Value;
use tokio::time::{Duration, timeout};
use tracing::warn;

use crate::{
    authorizer::{self, Condition, DENIED, FAILED, TIMEOUT},
    config::{
        Config as Everything,
        error::{At, Compiled, Unsupported},
        route::headers::HeaderChanges,
        text::texts,
    },
    http::{
        body::Body,
        pipeline::Exchange,
        reply::{Flag, Reply},
        sample::{Sample, Until, sample},
        server::HttpConnection,
    },
    upstream::call::{CallFailure, Target},
};

/// Where the metadata is that an authorizer gives.
const FILTER: &str = "envoy.filters.http.ext_authz";
/// Tells the authorizer whether it sees the whole body.
const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// Tells the upstream that nobody was asked.
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
/// A client that takes longer to send what the authorizer is to see is not waited for.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// One filter, compiled.
#[derive(Debug)]
pub(crate) struct Config {
    asked_if: Condition,
    service: Service,
    on_failure: OnFailure,
    body: Option<BufferSettings>,
    /// Headers that the authorizer is told; all where nothing is said.
    told: Option<Vec<TextMatch>>,
    never_told: Vec<TextMatch>,
    form: HeaderForm,
}

/// How an authorizer that is asked by gRPC is told headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderForm {
    /// As text, several of a name on one line.
    Text,
    /// As bytes, each by itself.
    Raw,
}

#[derive(Debug)]
enum Service {
    Grpc(Target),
    Http(by_http::Service),
}

/// When the authorizer does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    Pass,
    /// The upstream is told that nobody was asked.
    PassMarked,
    Refuse(StatusCode),
}

/// What an authorizer said.
#[derive(Debug)]
enum Verdict {
    Allowed(Box<Changes>),
    Denied(Reply),
}

/// What an authorizer does to a request that it allows.
#[derive(Debug, Default)]
struct Changes {
    request: HeaderChanges,
    /// After the others.
    remove: Vec<HeaderName>,
    response: HeaderChanges,
    query: query::Changes,
    metadata: Option<Value>,
}

impl Config {
    pub(crate) fn compile(proto: &ExtAuthz) -> Compiled<Self> {
        refuse_unknown(proto)?;
        let on_error = proto.status_on_error.map_or(0, |status| status.code);
        let service = match &proto.services {
            Some(Services::GrpcService(service)) => {
                let target = Target::compile(Some(service), None, TIMEOUT);
                Service::Grpc(target.at("grpc_service")?)
            }
            Some(Services::HttpService(service)) => {
                Service::Http(by_http::Service::compile(service).at("http_service")?)
            }
            None => return Err(Unsupported::missing("services")),
        };
        let told = proto.allowed_headers.as_ref().map(texts).transpose()?;
        let never_told = proto.disallowed_headers.as_ref().map(texts).transpose()?;
        Ok(Self {
            asked_if: Condition::compile(proto.filter_enabled_metadata.as_ref())
                .at("filter_enabled_metadata")?,
            service,
            on_failure: match (
                proto.failure_mode_allow,
                proto.failure_mode_allow_header_add,
            ) {
                (true, false) => OnFailure::Pass,
                (true, true) => OnFailure::PassMarked,
                (false, _) => OnFailure::Refuse(status(on_error).at("status_on_error")?),
            },
            body: proto.with_request_body,
            told,
            never_told: never_told.unwrap_or_default(),
            form: if proto.encode_raw_headers {
                HeaderForm::Raw
            } else {
                HeaderForm::Text
            },
        })
    }

    fn target(&self) -> &Target {
        match &self.service {
            Service::Grpc(target) => target,
            Service::Http(service) => service.target(),
        }
    }

    fn is_told(&self, name: &str) -> bool {
        let told = self.told.as_ref();
        told.is_none_or(|told| told.iter().any(|text| text.matches(name)))
            && !self.is_never_told(name)
    }

    fn is_never_told(&self, name: &str) -> bool {
        self.never_told.iter().any(|text| text.matches(name))
    }
}

/// Fields that say who is asked, or what is told, or done: without them the filter would be another one.
fn refuse_unknown(proto: &ExtAuthz) -> Compiled<()> {
    let enabled = proto.filter_enabled.as_ref();
    let enabled = enabled.and_then(|enabled| enabled.default_value);
    let is_partly_enabled = enabled.is_some_and(|share| {
        use crate::config::route::matching::Fraction;
        !Fraction::compile(&share).is_ok_and(|share| share.is_whole())
    });
    let unknown = [
        ("filter_enabled", is_partly_enabled),
        ("deny_at_disable", proto.deny_at_disable.is_some()),
        ("shadow_mode", proto.shadow_mode),
        (
            "metadata_context_namespaces",
            !proto.metadata_context_namespaces.is_empty()
                || !proto.typed_metadata_context_namespaces.is_empty()
                || !proto.route_metadata_context_namespaces.is_empty()
                || !proto.route_typed_metadata_context_namespaces.is_empty(),
        ),
        ("include_peer_certificate", proto.include_peer_certificate),
        (
            "decoder_header_mutation_rules",
            proto.decoder_header_mutation_rules.is_some(),
        ),
    ];
    match unknown.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Unsupported::new(field)),
        None => Ok(()),
    }
}

/// Envoy's default is 403.
fn status(code: i32) -> Compiled<StatusCode> {
    match u16::try_from(code) {
        Ok(0) => Ok(StatusCode::FORBIDDEN),
        Ok(code) => StatusCode::from_u16(code)
            .map_err(|_range| Unsupported::new(format!("HTTP status {code}"))),
        Err(_) => Err(Unsupported::new(format!("HTTP status {code}"))),
    }
}

/// Asks about a request, where the filter is to ask. What the client is to be told besides goes into `told`.
///
/// # Errors
/// The answer to a request that does not pass.
pub(crate) async fn check(
    filter: &Config,
    exchange: &mut Exchange,
    body: &mut Body,
    (config, conn): (&Everything, &HttpConnection),
    told: &mut HeaderChanges,
) -> Result<(), Reply> {
    if !filter.asked_if.holds(&exchange.metadata) {
        return Ok(());
    }
    let seen = look(filter.body.as_ref(), &exchange.head.headers, body).await?;
    let verdict = match &filter.service {
        Service::Grpc(target) => {
            let question = by_grpc::question(filter, exchange, conn, seen.as_ref());
            let asked = authorizer::ask(&conn.shared, config, target, question);
            Box::pin(asked).await.map(by_grpc::verdict)
        }
        Service::Http(service) => {
            let asked = service.ask(filter, exchange, (config, conn), seen);
            Box::pin(asked).await
        }
    };
    decide(filter, verdict, exchange, told)
}

fn decide(
    filter: &Config,
    verdict: Result<Verdict, CallFailure>,
    exchange: &mut Exchange,
    told: &mut HeaderChanges,
) -> Result<(), Reply> {
    let count = |result| authorizer::count(filter.target(), result);
    match verdict {
        Ok(Verdict::Allowed(changes)) => {
            count("ok");
            changes.apply(exchange, told);
            Ok(())
        }
        Ok(Verdict::Denied(reply)) => {
            count("denied");
            Err(reply)
        }
        Err(error) => {
            count("error");
            let authorizer = filter.target().cluster.as_str();
            warn!(authorizer, %error, "the external authorizer did not answer");
            match filter.on_failure {
                OnFailure::Pass => Ok(()),
                OnFailure::PassMarked => {
                    let headers = &mut exchange.head.headers;
                    headers.insert(FAILURE_ALLOWED, HeaderValue::from_static("true"));
                    Ok(())
                }
                OnFailure::Refuse(status) => {
                    let flag = Flag::UnauthorizedExternalService;
                    Err(Reply::new(status, flag, FAILED, ""))
                }
            }
        }
    }
}

/// The beginning of the body, where the authorizer is to see it.
async fn look(
    settings: Option<&BufferSettings>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Option<Sample>, Reply> {
    let Some(settings) = settings else {
        return Ok(None);
    };
    // What is sent over another protocol afterwards is no body.
    if headers.contains_key(header::UPGRADE) {
        return Ok(None);
    }
    let refusal = |status, details: &str| Reply::new(status, Flag::None, details, "");
    let most = usize::try_from(settings.max_request_bytes).unwrap_or(usize::MAX);
    let until = if settings.allow_partial_message {
        Until::Enough
    } else {
        Until::TooMany
    };
    let sampled = timeout(BODY_DEADLINE, sample(body, most, until)).await;
    let Ok(sampled) = sampled else {
        let status = StatusCode::REQUEST_TIMEOUT;
        return Err(refusal(status, "ext_authz_body_timeout"));
    };
    match sampled {
        Ok(seen) if seen.is_partial && !settings.allow_partial_message => {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let mut reply = refusal(status, "request_payload_too_large");
            reply.body = "Payload Too Large".into();
            Err(reply)
        }
        Ok(seen) => Ok(Some(seen)),
        Err(error) => {
            let details = format!("the client broke off: {error}");
            let (status, flag) = (StatusCode::BAD_REQUEST, Flag::Downstream);
            Err(Reply::new(status, flag, details, ""))
        }
    }
}

impl Changes {
    fn apply(self, exchange: &mut Exchange, told: &mut HeaderChanges) {
        let headers = &mut exchange.head.headers;
        self.request.apply(headers);
        for name in self.remove {
            headers.remove(name);
        }
        if let Some(path) = self.query.apply(&exchange.path) {
            exchange.path = path;
        }
        if let Some(metadata) = self.metadata {
            exchange.metadata.insert(FILTER.to_owned(), metadata);
        }
        told.extend(self.response);
    }
}

/// A refusal; headers that belong to the connection with the authorizer, or to its body, are not the client's.
fn denied(
    status: StatusCode,
    body: impl Into<bytes::Bytes>,
    headers: impl Iterator<Item = (HeaderName, HeaderValue)>,
) -> Verdict {
    let mut reply = Reply::new(status, Flag::UnauthorizedExternalService, DENIED, body);
    reply.headers = headers.filter(|(name, _)| !is_of_hop(name)).collect();
    Verdict::Denied(reply)
}

/// Headers of one connection (RFC 9110, 7.6.1), of its framing, or of its host.
fn is_of_hop(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ]
    .contains(name)
        || name == "keep-alive"
        || name == "proxy-connection"
}

#[cfg(test)]
mod tests;
