//! An HTTP chain: the connection manager of one service port, with its filters and its routes.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager,
    http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, StripPortMode,
    },
};
use leyline_types::Str;

use super::{
    any::limit,
    error::{At, Compiled, Unsupported},
    header_case::HeaderCase,
    route::RouteTable,
    telemetry::Telemetry,
    tracing::Tracing,
};
use crate::http::filters::Filters;

/// Envoy's default.
const STREAM_IDLE: Duration = Duration::from_secs(300);

/// A compiled HTTP chain.
#[derive(Debug)]
pub(crate) struct HttpChain {
    pub(crate) filters: Filters,
    pub(crate) routes: RouteSource,
    pub(crate) paths: PathNormalization,
    pub(crate) server_header: ServerHeader,
    pub(crate) request_id: RequestId,
    pub(crate) client_identity: ClientIdentity,
    pub(crate) host_port: HostPort,
    /// Of requests.
    pub(crate) header_case: HeaderCase,
    /// `websocket` and others that requests may switch to.
    pub(crate) upgrades: Vec<String>,
    /// A connection without a request for so long is ended.
    pub(crate) idle: Option<Duration>,
    /// A request on which nothing moves for so long is ended, where its route says nothing.
    pub(crate) stream_idle: Option<Duration>,
    /// What is told of requests.
    pub(crate) telemetry: Arc<Telemetry>,
}

/// Where the routes are.
#[derive(Clone, Debug)]
pub(crate) enum RouteSource {
    /// In the listener, as istiod sends them.
    Inline(Arc<RouteTable>),
    /// In a resource of their own, as our control plane sends them.
    Named(Str),
}

/// What is done to a path before anything is decided on it (MeshConfig `pathNormalization`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathNormalization {
    /// RFC 3986: dot segments, unreserved characters; backslashes become slashes.
    pub(crate) normalize: bool,
    pub(crate) merge_slashes: bool,
    pub(crate) escaped_slashes: EscapedSlashes,
}

/// What happens to `%2F` and `%5C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// The `server` header of responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerHeader {
    Overwrite(Str),
    AppendIfAbsent(Str),
    PassThrough,
}

/// What becomes of the `x-forwarded-client-cert` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientIdentity {
    /// No client certificate is seen within a tunnel, so that the client has made it up (Envoy's rule).
    Removed,
    /// As it is, or as filters set it.
    Kept,
}

/// What becomes of the port in a request's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostPort {
    Kept,
    Removed,
}

/// `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestId {
    /// Made where a request has none.
    Generate,
    Leave,
}

impl HttpChain {
    pub(crate) fn compile(manager: &HttpConnectionManager) -> Compiled<Self> {
        let upgrades = manager.upgrade_configs.iter();
        let common = manager.common_http_protocol_options.as_ref();
        let mut filters = Filters::compile(&manager.http_filters)?;
        let metrics = std::mem::take(&mut filters.metrics);
        let tracing = Tracing::compile(manager);
        let telemetry = Telemetry::compile(&manager.access_log, metrics, tracing)?;
        Ok(Self {
            telemetry: Arc::new(telemetry),
            filters,
            routes: routes(manager)?,
            paths: paths(manager)?,
            server_header: server_header(manager)?,
            request_id: if manager.generate_request_id.is_none_or(|flag| flag.value) {
                RequestId::Generate
            } else {
                RequestId::Leave
            },
            client_identity: client_identity(manager)?,
            host_port: match manager.strip_port_mode {
                Some(StripPortMode::StripAnyHostPort(true)) => HostPort::Removed,
                Some(StripPortMode::StripAnyHostPort(false)) | None => HostPort::Kept,
            },
            header_case: HeaderCase::of(manager.http_protocol_options.as_ref()),
            idle: limit(common.and_then(|common| common.idle_timeout.as_ref()))
                .at("common_http_protocol_options")?,
            stream_idle: match &manager.stream_idle_timeout {
                None => Some(STREAM_IDLE),
                some => limit(some.as_ref()).at("stream_idle_timeout")?,
            },
            upgrades: upgrades
                .filter(|upgrade| upgrade.enabled.is_none_or(|flag| flag.value))
                .map(|upgrade| upgrade.upgrade_type.to_ascii_lowercase())
                .collect(),
        })
    }
}

fn routes(manager: &HttpConnectionManager) -> Compiled<RouteSource> {
    match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            let table = RouteTable::compile(config).at("route_config")?;
            Ok(RouteSource::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
            Ok(RouteSource::Named(rds.route_config_name.as_str().into()))
        }
        Some(RouteSpecifier::Rds(_)) => Err(Unsupported::missing("rds.route_config_name")),
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(Unsupported::new("scoped routes")),
        None => Err(Unsupported::missing("route_config")),
    }
}

fn paths(manager: &HttpConnectionManager) -> Compiled<PathNormalization> {
    if manager.path_normalization_options.is_some() {
        return Err(Unsupported::new("path_normalization_options"));
    }
    let action = PathWithEscapedSlashesAction::try_from(manager.path_with_escaped_slashes_action);
    let escaped_slashes = match action {
        Ok(
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged,
        ) => EscapedSlashes::Keep,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => {
            EscapedSlashes::UnescapeAndRedirect
        }
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::UnescapeAndForward,
        Err(_) => return Err(Unsupported::new("path_with_escaped_slashes_action")),
    };
    Ok(PathNormalization {
        normalize: manager.normalize_path.is_some_and(|flag| flag.value),
        merge_slashes: manager.merge_slashes,
        escaped_slashes,
    })
}

fn client_identity(manager: &HttpConnectionManager) -> Compiled<ClientIdentity> {
    match ForwardClientCertDetails::try_from(manager.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => Ok(ClientIdentity::Kept),
        // All others do more only where there is a certificate.
        Ok(
            ForwardClientCertDetails::Sanitize
            | ForwardClientCertDetails::ForwardOnly
            | ForwardClientCertDetails::AppendForward
            | ForwardClientCertDetails::SanitizeSet,
        ) => Ok(ClientIdentity::Removed),
        Err(_) => Err(Unsupported::new("forward_client_cert_details")),
    }
}

fn server_header(manager: &HttpConnectionManager) -> Compiled<ServerHeader> {
    let name = match manager.server_name.as_str() {
        "" => "envoy",
        name => name,
    };
    match manager.server_header_transformation {
        0 => Ok(ServerHeader::Overwrite(name.into())),
        1 => Ok(ServerHeader::AppendIfAbsent(name.into())),
        2 => Ok(ServerHeader::PassThrough),
        _ => Err(Unsupported::new("server_header_transformation")),
    }
}
