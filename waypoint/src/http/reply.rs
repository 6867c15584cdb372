//! Answers that the waypoint gives itself, in Envoy's words: users and their tools know them.

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};

use super::{
    body::Body,
    grpc::{is_grpc, status_of_http},
};

/// The media type of gRPC.
const GRPC: &str = "application/grpc";

/// Why a request was not answered by its upstream: Envoy's response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Flag {
    #[default]
    None,
    /// No endpoint that could be asked.
    NoHealthyUpstream,
    /// The route's deadline.
    UpstreamTimeout,
    /// No connection.
    UpstreamConnect,
    /// The connection broke.
    UpstreamReset,
    /// A limit of the cluster is reached.
    UpstreamOverflow,
    /// No route.
    NoRoute,
    /// A delay was injected.
    DelayInjected,
    /// A fault was injected.
    FaultInjected,
    /// A limit of requests.
    RateLimited,
    /// An external authorizer refused, or did not answer.
    UnauthorizedExternalService,
    /// The rate limit service failed.
    RateLimitService,
    /// The client went away.
    Downstream,
    /// All retries failed.
    RetryLimit,
    /// Nothing moved for long.
    IdleTimeout,
    /// The connection was too old.
    DurationTimeout,
    /// No such cluster.
    NoCluster,
    /// A host that the request names has no address.
    DnsFailure,
    /// A policy.
    Denied,
}

impl Flag {
    /// Those with letters, in Envoy's order.
    pub(crate) const ALL: [Self; 17] = [
        Self::NoHealthyUpstream,
        Self::UpstreamTimeout,
        Self::UpstreamConnect,
        Self::UpstreamReset,
        Self::UpstreamOverflow,
        Self::NoRoute,
        Self::DelayInjected,
        Self::FaultInjected,
        Self::RateLimited,
        Self::UnauthorizedExternalService,
        Self::RateLimitService,
        Self::Downstream,
        Self::RetryLimit,
        Self::IdleTimeout,
        Self::DurationTimeout,
        Self::NoCluster,
        Self::DnsFailure,
    ];

    /// Envoy's letters.
    pub(crate) fn as_str(self) -> &'static str {
        self.names().0
    }

    /// Envoy's words.
    pub(crate) fn long(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            // A denied request carries no flag, only details.
            Self::None | Self::Denied => ("-", "-"),
            Self::NoHealthyUpstream => ("UH", "NoHealthyUpstream"),
            Self::UpstreamTimeout => ("UT", "UpstreamRequestTimeout"),
            Self::UpstreamConnect => ("UF", "UpstreamConnectionFailure"),
            Self::UpstreamReset => ("UC", "UpstreamConnectionTermination"),
            Self::UpstreamOverflow => ("UO", "UpstreamOverflow"),
            Self::NoRoute => ("NR", "NoRouteFound"),
            Self::DelayInjected => ("DI", "DelayInjected"),
            Self::FaultInjected => ("FI", "FaultInjected"),
            Self::RateLimited => ("RL", "RateLimited"),
            Self::UnauthorizedExternalService => ("UAEX", "UnauthorizedExternalService"),
            Self::RateLimitService => ("RLSE", "RateLimitServiceError"),
            Self::Downstream => ("DC", "DownstreamConnectionTermination"),
            Self::RetryLimit => ("URX", "UpstreamRetryLimitExceeded"),
            Self::IdleTimeout => ("SI", "StreamIdleTimeout"),
            Self::DurationTimeout => ("DT", "DurationTimeout"),
            Self::NoCluster => ("NC", "NoClusterFound"),
            Self::DnsFailure => ("DF", "DnsResolutionFailed"),
        }
    }
}

/// How an answer of the waypoint's own is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Http,
    Grpc,
}

impl Form {
    /// As the request is.
    pub(crate) fn of(request: &HeaderMap) -> Self {
        if is_grpc(request) {
            Self::Grpc
        } else {
            Self::Http
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

    /// What a route says itself.
    pub(crate) fn direct(status: StatusCode, body: Bytes) -> Self {
        Self::new(status, Flag::None, "direct_response", body)
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
    pub(crate) fn into_response(self, form: Form) -> Response<Body> {
        let mut response = if form == Form::Grpc {
            let mut response = Response::new(Body::empty());
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
            let status = self
                .grpc_status
                .unwrap_or_else(|| status_of_http(self.status));
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
            if name != CONTENT_TYPE {
                response.headers_mut().append(name, value);
            } else if form == Form::Http {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
