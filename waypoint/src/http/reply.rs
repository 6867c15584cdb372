//! Answers that the waypoint gives itself, in Envoy's words: users and their tools know them.

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};

use super::body::Body;

/// The media type of gRPC.
const GRPC: &str = "application/grpc";

/// Why a request was not answered by its upstream: Envoy's response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Flag {
    #[default]
    None,
    /// No route.
    NoRoute,
    /// No such cluster.
    NoCluster,
    /// No endpoint that could be asked.
    NoHealthyUpstream,
    /// No connection.
    UpstreamConnect,
    /// The connection broke.
    UpstreamReset,
    /// A limit of the cluster is reached.
    UpstreamOverflow,
    /// The route's deadline.
    UpstreamTimeout,
    /// All retries failed.
    RetryLimit,
    /// A policy.
    Denied,
    /// The client went away.
    Downstream,
    /// A limit of requests.
    RateLimited,
    /// A fault was injected.
    FaultInjected,
    /// A delay was injected.
    DelayInjected,
}

impl Flag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnect => "UF",
            Self::UpstreamReset => "UC",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamTimeout => "UT",
            Self::RetryLimit => "URX",
            // A denied request carries no flag, only details.
            Self::Denied => "-",
            Self::Downstream => "DC",
            Self::RateLimited => "RL",
            Self::FaultInjected => "FI",
            Self::DelayInjected => "DI",
        }
    }
}

/// An answer of the waypoint's own.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) flag: Flag,
    /// `RESPONSE_CODE_DETAILS`.
    pub(crate) details: String,
    /// For gRPC, where it is not that of the HTTP status.
    pub(crate) grpc_status: Option<u16>,
}

impl Reply {
    pub(crate) fn new(
        status: StatusCode,
        flag: Flag,
        details: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            headers: Vec::new(),
            flag,
            details: details.into(),
            grpc_status: None,
        }
    }

    /// No route takes the request.
    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, Flag::NoRoute, "route_not_found", "")
    }

    /// What is configured for the service cannot be served; the reason is for operators and not for clients.
    pub(crate) fn unsupported(reason: &str) -> Self {
        let details = format!("unsupported_configuration{{{reason}}}");
        let body = "the configuration of this service is not supported by its waypoint";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Flag::NoRoute,
            details,
            body,
        )
    }

    /// A policy refuses the request.
    pub(crate) fn denied(denial: &leyline_authz::RequestDenial) -> Self {
        let body = "RBAC: access denied";
        Self::new(
            StatusCode::FORBIDDEN,
            Flag::Denied,
            denial.to_string(),
            body,
        )
    }

    /// The response. gRPC is told in its own way (status in the headers, HTTP 200), as Envoy does.
    pub(crate) fn into_response(self, request: &HeaderMap) -> Response<Body> {
        let is_grpc = request
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(GRPC.as_bytes()));
        let mut response = if is_grpc {
            let mut response = Response::new(Body::empty());
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
            let status = self.grpc_status.unwrap_or_else(|| grpc_status(self.status));
            headers.insert("grpc-status", status.into());
            if let Ok(message) = HeaderValue::from_bytes(&self.body)
                && !message.is_empty()
            {
                headers.insert("grpc-message", message);
            }
            response
        } else {
            let has_body = !self.body.is_empty();
            let mut response = Response::new(Body::full(self.body));
            *response.status_mut() = self.status;
            if has_body {
                let text = HeaderValue::from_static("text/plain");
                response.headers_mut().insert(CONTENT_TYPE, text);
            }
            response
        };
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// gRPC's own mapping (grpc/doc/http-grpc-status-mapping.md).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
