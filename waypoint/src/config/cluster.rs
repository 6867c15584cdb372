//! Clusters: a named set of endpoints, and how requests to them are balanced, limited and sent.

pub(crate) mod balance;
pub(crate) mod dns;
pub(crate) mod dynamic;
pub(crate) mod limits;
pub(crate) mod outlier;
pub(crate) mod transport;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::{
            self as proto,
            cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig},
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    google::protobuf::{Struct, value::Kind},
};
use leyline_types::Str;

use self::{
    balance::Balancing,
    dns::DnsSource,
    dynamic::DynamicSource,
    limits::{ConnectionUse, Limits},
    outlier::OutlierDetection,
    transport::{Server, Transport},
};
use super::{
    any::{decode, duration, text},
    endpoints::{EndpointSet, is_encap},
    error::{At, Compiled, Unsupported},
    header_case::HeaderCase,
    secrets::Secrets,
};
use crate::upstream::{balance::BalancerCell, state::ClusterState};

/// Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Key of the protocol options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A compiled cluster. What changes while it is used (connections, counters) lives with its endpoints.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: Str,
    pub(crate) endpoints: EndpointSource,
    pub(crate) balancing: Balancing,
    pub(crate) http: UpstreamHttp,
    /// Of responses.
    pub(crate) header_case: HeaderCase,
    pub(crate) connect_timeout: Duration,
    pub(crate) outlier: Option<OutlierDetection>,
    pub(crate) limits: Limits,
    pub(crate) connections: ConnectionUse,
    pub(crate) transport: Transport,
    /// What telemetry calls the destination.
    pub(crate) service: Option<ServiceRef>,
    /// Made of the endpoints that are known now.
    pub(crate) balancer: BalancerCell,
    /// Kept over updates.
    pub(crate) state: Arc<ClusterState>,
}

/// Where the endpoints are told.
#[derive(Debug)]
pub(crate) enum EndpointSource {
    /// By the ClusterLoadAssignment of this name.
    Eds(Str),
    /// In the cluster.
    Static(Arc<EndpointSet>),
    /// By name; found by `dns`, which puts them where those of EDS are.
    Dns(Arc<DnsSource>),
    /// The client says where it wants to go; the port may be another.
    Client { port: Option<u16> },
    /// Each request says which host it is for.
    Request(Arc<DynamicSource>),
}

/// Which HTTP the endpoints speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamHttp {
    Http1,
    Http2,
    /// What the client speaks.
    Downstream,
}

/// The service of a cluster, from its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceRef {
    pub(crate) host: Str,
    pub(crate) name: Str,
    pub(crate) namespace: Str,
}

impl Cluster {
    /// Compiles a cluster; what it counts goes on from that of `before`, which had its name.
    pub(crate) fn compile(
        proto: &proto::Cluster,
        before: Option<&Self>,
        secrets: &Secrets,
    ) -> Compiled<Self> {
        let options = proto.typed_extension_protocol_options.get(HTTP_OPTIONS);
        let options: Option<HttpProtocolOptions> = options.map(decode).transpose()?;
        let connect_timeout = proto.connect_timeout.as_ref();
        let connect_timeout = connect_timeout.map(duration).transpose()?;
        let service = service(proto);
        let host = service.as_ref().map(|service| service.host.as_str());
        let endpoints = endpoints(proto, host)?;
        let server = match (&endpoints, host) {
            (EndpointSource::Request(_), _) => Server::OfEachRequest,
            (_, Some(host)) => Server::Named(host),
            (_, None) => Server::Unknown,
        };
        let transport = before.map(|before| &before.transport);
        let transport = Transport::compile(proto, server, transport, secrets)?;
        let endpoints = match endpoints {
            EndpointSource::Request(source) if transport.tls.is_some() => {
                EndpointSource::Request(Arc::new(DynamicSource::clone(&source).by_tls()))
            }
            other => other,
        };
        Ok(Self {
            transport,
            name: proto.name.as_str().into(),
            endpoints,
            balancing: Balancing::compile(proto)?,
            http: http(options.as_ref())?,
            header_case: header_case(options.as_ref()),
            connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            outlier: OutlierDetection::compile(proto).at("outlier_detection")?,
            limits: Limits::compile(proto)?,
            connections: ConnectionUse::compile(options.as_ref())?,
            service,
            balancer: BalancerCell::default(),
            state: before.map_or_else(Arc::default, |before| before.state.clone()),
        })
    }
}

fn endpoints(proto: &proto::Cluster, host: Option<&str>) -> Compiled<EndpointSource> {
    let kind = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => *kind,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let source = DynamicSource::compile(proto, custom, host).at("cluster_type")?;
            return Ok(EndpointSource::Request(Arc::new(source)));
        }
        None => DiscoveryType::Static.into(),
    };
    match DiscoveryType::try_from(kind) {
        Ok(DiscoveryType::Eds) => {
            let named = proto.eds_cluster_config.as_ref();
            let named = named.map(|eds| eds.service_name.as_str());
            let name = named.filter(|name| !name.is_empty());
            Ok(EndpointSource::Eds(name.unwrap_or(&proto.name).into()))
        }
        Ok(DiscoveryType::Static) => {
            let assignment = proto.load_assignment.clone().unwrap_or_default();
            if is_encap(&assignment) {
                return Ok(EndpointSource::Client { port: None });
            }
            let set = EndpointSet::compile(&assignment, None).at("load_assignment")?;
            Ok(EndpointSource::Static(Arc::new(set)))
        }
        Ok(kind @ (DiscoveryType::StrictDns | DiscoveryType::LogicalDns)) => {
            let source = DnsSource::compile(proto, kind).at("load_assignment")?;
            Ok(EndpointSource::Dns(Arc::new(source)))
        }
        Ok(DiscoveryType::OriginalDst) => by_client(proto).at("original_dst_lb_config"),
        Err(_) => Err(Unsupported::new("type")),
    }
}

fn by_client(proto: &proto::Cluster) -> Compiled<EndpointSource> {
    let config = match &proto.lb_config {
        Some(LbConfig::OriginalDstLbConfig(config)) => Some(config),
        Some(_) | None => None,
    };
    if config.is_some_and(|config| config.use_http_header || config.metadata_key.is_some()) {
        return Err(Unsupported::new("use_http_header or metadata_key"));
    }
    let port = config.and_then(|config| config.upstream_port_override.as_ref());
    let port = port.map(|port| u16::try_from(port.value)).transpose();
    let port = port.map_err(|_too_large| Unsupported::new("upstream_port_override"))?;
    Ok(EndpointSource::Client { port })
}

fn http(options: Option<&HttpProtocolOptions>) -> Compiled<UpstreamHttp> {
    let options = options.and_then(|options| options.upstream_protocol_options.as_ref());
    match options {
        None => Ok(UpstreamHttp::Http1),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
            Ok(UpstreamHttp::Downstream)
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(UpstreamHttp::Http2),
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => Ok(UpstreamHttp::Http1),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => Err(Unsupported::new("HTTP/3")),
            }
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => Err(Unsupported::new("auto_config")),
    }
}

fn header_case(options: Option<&HttpProtocolOptions>) -> HeaderCase {
    let options = options.and_then(|options| options.upstream_protocol_options.as_ref());
    HeaderCase::of(match options {
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream)) => {
            downstream.http_protocol_options.as_ref()
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => Some(http1),
                Some(
                    ProtocolConfig::Http2ProtocolOptions(_)
                    | ProtocolConfig::Http3ProtocolOptions(_),
                )
                | None => None,
            }
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) | None => None,
    })
}

/// `metadata.filter_metadata.istio.services[0]`.
fn service(proto: &proto::Cluster) -> Option<ServiceRef> {
    let istio = proto.metadata.as_ref()?.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(list)) = &istio.fields.get("services")?.kind else {
        return None;
    };
    let Some(Kind::StructValue(first)) = &list.values.first()?.kind else {
        return None;
    };
    let field = |fields: &Struct, name: &str| text(fields, name).unwrap_or_default().into();
    Some(ServiceRef {
        host: field(first, "host"),
        name: field(first, "name"),
        namespace: field(first, "namespace"),
    })
}
