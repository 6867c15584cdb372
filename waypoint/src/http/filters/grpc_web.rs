//! gRPC-Web, the gRPC of browsers (grpc/doc/PROTOCOL-WEB.md): a request becomes gRPC for the rest of the way, and whatever answers
//! it is told in gRPC-Web, as Envoy's filter of the name does. Bodies are changed piece by piece as they pass. Without this
//! filter a request of gRPC-Web is one of HTTP like any other.

mod request;
mod response;

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE},
};
use metrics::counter;
use tokio::sync::Notify;

use crate::http::{
    body::Body,
    pipeline::Exchange,
    reply::{Flag, Reply},
    request_log::RequestLog,
};

/// Whether a chain has the filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum GrpcWeb {
    #[default]
    Off,
    On,
}

/// Its media types; others that its description allows for are spoken by nobody.
const KINDS: [(&str, Encoding, &str); 4] = [
    ("application/grpc-web", Encoding::Binary, "application/grpc"),
    (
        "application/grpc-web+proto",
        Encoding::Binary,
        "application/grpc+proto",
    ),
    (
        "application/grpc-web-text",
        Encoding::Text,
        "application/grpc",
    ),
    (
        "application/grpc-web-text+proto",
        Encoding::Text,
        "application/grpc+proto",
    ),
];

/// How the bytes of gRPC are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Binary,
    /// In base64, for clients that cannot read bytes.
    Text,
}

/// Tells that the body of a request is not what it says to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Malformed(Arc<Notify>);

impl GrpcWeb {
    /// Makes gRPC of a request of gRPC-Web. How it is to be answered, if it is one.
    pub(crate) fn begin(
        self,
        exchange: &mut Exchange,
        body: &mut Body,
        log: &mut RequestLog,
    ) -> Option<Encoding> {
        if self == Self::Off {
            return None;
        }
        let headers = &mut exchange.head.headers;
        let (encoding, grpc) = spoken(headers)?;
        let answer = asked_for(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(grpc));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.remove(CONTENT_LENGTH);
        if encoding == Encoding::Text {
            let malformed = exchange.malformed.insert(Malformed::default());
            let text = std::mem::replace(body, Body::empty());
            *body = request::decode(text, malformed.clone());
        }
        log.becomes_grpc();
        Some(answer)
    }
}

/// How a media type of gRPC-Web is written, and the name of the same in gRPC.
fn known(kind: &str) -> Option<(Encoding, &'static str)> {
    let (kind, _parameters) = kind.split_once(';').unwrap_or((kind, ""));
    let is = |name: &&(&str, Encoding, &str)| kind.trim().eq_ignore_ascii_case(name.0);
    KINDS
        .iter()
        .find(is)
        .map(|(_, encoding, grpc)| (*encoding, *grpc))
}

/// What the message says to be.
fn spoken(headers: &HeaderMap) -> Option<(Encoding, &'static str)> {
    known(headers.get(CONTENT_TYPE)?.to_str().ok()?)
}

/// What the client wants to be answered in: the first that it names of what there is, else bytes.
fn asked_for(headers: &HeaderMap) -> Encoding {
    let lines = headers.get_all(ACCEPT).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let first = lines.flat_map(|line| line.split(',')).find_map(known);
    first.map_or(Encoding::Binary, |(encoding, _)| encoding)
}

impl Encoding {
    /// Says an answer in gRPC-Web. The log goes with what there is before: the messages and the status of gRPC.
    pub(crate) async fn answer(self, response: Response<Body>, log: RequestLog) -> Response<Body> {
        let response = response::translate(response, self).await;
        log.attach(response)
            .map(|body| response::encode(body, self))
    }
}

impl Malformed {
    fn tell(&self) {
        counter!("leyline_waypoint_grpc_web_refused_total", "reason" => "base64").increment(1);
        self.0.notify_one();
    }

    async fn told(&self) -> Reply {
        self.0.notified().await;
        let details = "grpc_base_64_decode_failed";
        let body = "Bad gRPC-web request, invalid base64 data.";
        Reply::new(StatusCode::BAD_REQUEST, Flag::None, details, body)
    }
}

/// Waits for a response as long as the request is well-formed. Cancel safe if the work is.
pub(crate) async fn wait(
    malformed: Option<&Malformed>,
    work: impl Future<Output = Result<Response<Body>, Reply>>,
) -> Result<Response<Body>, Reply> {
    let Some(malformed) = malformed else {
        return work.await;
    };
    tokio::select! {
        // First: the broken body also breaks the request that it is sent with, for which the endpoint is not to blame.
        biased;
        refused = malformed.told() => Err(refused),
        response = work => response,
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::extensions::filters::{
            http::{grpc_web::v3 as proto, router::v3::Router},
            network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
        },
        google::protobuf::Any,
    };
    use prost::Name;

    use super::*;
    use crate::http::filters::Filters;

    fn headers(pairs: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn grpc_web_is_told_by_its_media_type() {
        let binary = Some((Encoding::Binary, "application/grpc"));
        for (kind, expected) in [
            ("application/grpc-web", binary),
            ("Application/gRPC-Web; charset=utf-8", binary),
            (
                "application/grpc-web+proto",
                Some((Encoding::Binary, "application/grpc+proto")),
            ),
            (
                "application/grpc-web-text",
                Some((Encoding::Text, "application/grpc")),
            ),
            (
                "application/grpc-web-text+proto",
                Some((Encoding::Text, "application/grpc+proto")),
            ),
            ("application/grpc-web+json", None),
            ("application/grpc", None),
            ("application/json", None),
        ] {
            assert_eq!(
                spoken(&headers(&[(CONTENT_TYPE, kind)])),
                expected,
                "{kind}"
            );
        }
        assert_eq!(spoken(&HeaderMap::new()), None);
    }

    #[test]
    fn the_filter_is_taken_as_istiod_sends_it() {
        let filter = |name: &str, type_url: String| HttpFilter {
            name: name.to_owned(),
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url,
                value: Vec::new(),
            })),
            ..HttpFilter::default()
        };
        let router = filter("envoy.filters.http.router", Router::type_url());
        let web = filter("envoy.filters.http.grpc_web", proto::GrpcWeb::type_url());
        let compiled = |filters: &[HttpFilter]| Filters::compile(filters).unwrap().grpc_web;
        assert_eq!(compiled(&[web, router.clone()]), GrpcWeb::On);
        assert_eq!(compiled(&[router]), GrpcWeb::Off);
    }

    #[test]
    fn the_client_says_what_it_reads() {
        for (accept, expected) in [
            ("application/grpc-web-text", Encoding::Text),
            ("application/grpc-web-text+proto;q=1", Encoding::Text),
            ("text/html, application/grpc-web-text, */*", Encoding::Text),
            (
                "application/grpc-web+proto, application/grpc-web-text",
                Encoding::Binary,
            ),
            ("*/*", Encoding::Binary),
        ] {
            let asked = asked_for(&headers(&[(ACCEPT, accept)]));
            assert_eq!(asked, expected, "{accept}");
        }
        assert_eq!(asked_for(&HeaderMap::new()), Encoding::Binary);
    }

    #[tokio::test]
    async fn a_malformed_request_is_refused_whatever_else_has_failed() {
        let malformed = Malformed::default();
        malformed.tell();
        let failed = async { Err(Reply::no_route()) };
        let refused = wait(Some(&malformed), failed).await.unwrap_err();
        assert_eq!(refused.details, "grpc_base_64_decode_failed");
        let failed = async { Err(Reply::no_route()) };
        let refused = wait(None, failed).await.unwrap_err();
        assert_eq!(refused.details, "route_not_found");
    }
}
