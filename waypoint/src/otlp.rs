//! How OTLP is spoken, for spans and for access logs: by gRPC, or by POST (OTLP specification 1.x). What is in the messages is theirs.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::config::core::v3::{HttpService, http_uri::HttpUpstreamType};
use http::{HeaderValue, Method, Request, header};

use crate::{
    app::Shared,
    config::{
        any::duration,
        error::{At, Compiled, Unsupported},
        route::headers::{HeaderChanges, HeaderOps},
    },
    http::body::Body,
    upstream::{
        call::{self, CallFailure, Target},
        grpc,
    },
};

/// The transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Otlp {
    #[default]
    Grpc,
    Http {
        path: String,
        headers: HeaderChanges,
    },
}

impl Otlp {
    /// By POST; `deadline` is for one message where nothing is said. istiod writes the URI without its scheme.
    pub(crate) fn by_http(service: &HttpService, deadline: Duration) -> Compiled<(Target, Self)> {
        let uri = service.http_uri.as_ref();
        let uri = uri.ok_or_else(|| Unsupported::missing("http_uri"))?;
        let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            return Err(Unsupported::missing("cluster"));
        };
        let plain = uri.uri.split_once("://");
        let plain = plain.map_or(uri.uri.as_str(), |(_, rest)| rest);
        let (authority, path) = plain.split_once('/').unwrap_or((plain, ""));
        let headers = HeaderOps::compile(&[], &[], &[], &service.request_headers_to_add)?;
        let said = uri.timeout.as_ref();
        let target = Target {
            cluster: cluster.clone(),
            authority: authority.to_owned(),
            timeout: said.map_or(Ok(deadline), duration).at("timeout")?,
            ..Target::default()
        };
        let how = Self::Http {
            path: format!("/{path}"),
            headers: headers.response,
        };
        Ok((target, how))
    }

    /// Sends one message; `method` is the path of the gRPC method.
    pub(crate) async fn export<Q, R>(
        &self,
        shared: &Arc<Shared>,
        target: &Target,
        method: &'static str,
        request: &Q,
    ) -> Result<R, CallFailure>
    where
        Q: prost::Message,
        R: prost::Message + Default,
    {
        let config = shared.config.load_full();
        match self {
            Self::Grpc => {
                let asked = grpc::call(shared, &config, target, method, request);
                Box::pin(asked).await
            }
            Self::Http { path, headers } => {
                let mut post = Request::new(Body::full(request.encode_to_vec()));
                *post.method_mut() = Method::POST;
                let kind = HeaderValue::from_static("application/x-protobuf");
                post.headers_mut().insert(header::CONTENT_TYPE, kind);
                headers.apply(post.headers_mut());
                let asked = call::http(shared, &config, target, path, post);
                let answer = Box::pin(asked).await?;
                if !answer.status().is_success() {
                    return Err(CallFailure::Http(answer.status()));
                }
                // Some collectors answer with nothing, or in JSON.
                Ok(R::decode(answer.into_body()).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HttpUri;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn uris_of_collectors() {
        let check = |uri: &str, authority: &str, path: &str| {
            let service = HttpService {
                http_uri: Some(HttpUri {
                    uri: uri.to_owned(),
                    http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
                    ..HttpUri::default()
                }),
                ..HttpService::default()
            };
            let (target, wire) = Otlp::by_http(&service, TIMEOUT).unwrap();
            assert_eq!(target.authority, authority);
            assert_eq!(target.timeout, TIMEOUT);
            assert!(matches!(wire, Otlp::Http { path: found, .. } if found == path));
        };
        check("otel.example/v1/traces", "otel.example", "/v1/traces");
        check(
            "http://otel.example/v1/traces",
            "otel.example",
            "/v1/traces",
        );
        check("otel.example", "otel.example", "/");
    }
}
