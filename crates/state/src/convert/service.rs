//! `istio.workload.Service`.

use leyline_proto::istio::workload as proto;
use leyline_types::{Network, NetworkAddress, SESSION_AFFINITY};
use prost::Message;

use super::{
    error::{ConvertError, FieldError, Problem},
    field,
};
use crate::{
    service::{
        HealthPolicy, IpFamilies, LoadBalancing, Mode, NetworkBlock, RoutingScope, Service,
        ServicePort, ServicePorts, SessionAffinity, Visibility, WeightedGateway,
    },
    workload::Gateway,
};

/// A day, Kubernetes' limit of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Converts a service.
///
/// # Errors
/// Names the service, the field and the reason.
pub fn service(wire: proto::Service) -> Result<Service, ConvertError> {
    let key = format!("{}/{}", wire.namespace, wire.hostname);
    convert(wire).map_err(|error| error.of(&key))
}

fn convert(wire: proto::Service) -> Result<Service, FieldError> {
    let (vips, cidr_vips) = addresses(wire.addresses)?;
    Ok(Service {
        name: wire.name.into(),
        namespace: field::required("namespace", wire.namespace)?,
        hostname: field::required("hostname", wire.hostname)?,
        vips,
        cidr_vips,
        ports: ports(&wire.ports)?,
        // Names that are no workload identity (a ServiceEntry may list host names) cannot match a peer.
        identities: wire
            .subject_alt_names
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        subject_alt_names: wire.subject_alt_names.into_iter().map(Into::into).collect(),
        waypoint: wire
            .waypoint
            .map(field::gateway)
            .transpose()
            .map_err(|error| error.within("waypoint"))?,
        weighted_waypoints: weighted_waypoints(wire.weighted_waypoints)?,
        session_affinity: session_affinity(&wire.extensions)?,
        load_balancer: wire.load_balancing.map(load_balancing).transpose()?,
        ip_families: match field::known("ip_families", wire.ip_families)? {
            proto::IpFamilies::Automatic => None,
            proto::IpFamilies::Ipv4Only => Some(IpFamilies::IPv4),
            proto::IpFamilies::Ipv6Only => Some(IpFamilies::IPv6),
            proto::IpFamilies::Dual => Some(IpFamilies::Dual),
        },
        canonical: wire.canonical,
        // Istio: what is not known to be restricted is public.
        visibility: match proto::Visibility::try_from(wire.visibility) {
            Ok(proto::Visibility::NamespaceOnly) => Visibility::Namespace,
            Ok(proto::Visibility::Public) | Err(_) => Visibility::Public,
        },
    })
}

type Addresses = (Box<[NetworkAddress]>, Box<[NetworkBlock]>);

/// Splits single addresses from blocks; a block of one address is a single one.
fn addresses(wire: Vec<proto::NetworkAddress>) -> Result<Addresses, FieldError> {
    let (mut vips, mut blocks) = (Vec::new(), Vec::new());
    for (at, one) in wire.into_iter().enumerate() {
        let failed = |problem| FieldError::new(format!("addresses[{at}]"), problem);
        let network = Network::new(one.network);
        let address = field::ip(&one.address).map_err(failed)?;
        let block = one
            .length
            .map(|length| field::block(&one.address, length))
            .transpose()
            .map_err(failed)?;
        match block {
            Some(cidr) if cidr.prefix_len() < cidr.max_prefix_len() => {
                blocks.push(NetworkBlock { network, cidr });
            }
            Some(_) | None => vips.push(NetworkAddress { network, address }),
        }
    }
    Ok((vips.into(), blocks.into()))
}

fn ports(wire: &[proto::Port]) -> Result<ServicePorts, FieldError> {
    let mut ports = Vec::with_capacity(wire.len());
    for (at, one) in wire.iter().enumerate() {
        let failed = |name| move |problem| FieldError::new(format!("ports[{at}].{name}"), problem);
        ports.push(ServicePort {
            port: field::port(one.service_port).map_err(failed("service_port"))?,
            target: field::optional_port(one.target_port).map_err(failed("target_port"))?,
        });
    }
    Ok(ServicePorts::new(ports))
}

fn weighted_waypoints(
    wire: Vec<proto::WeightedGatewayAddress>,
) -> Result<Box<[WeightedGateway]>, FieldError> {
    let parse = |(at, one): (usize, proto::WeightedGatewayAddress)| {
        let within = format!("weighted_waypoints[{at}]");
        let destination: Result<Gateway, FieldError> = one
            .destination
            .ok_or_else(|| FieldError::new("destination", Problem::Missing))
            .and_then(field::gateway);
        Ok(WeightedGateway {
            destination: destination.map_err(|error| error.within(within))?,
            weight: one.weight,
        })
    };
    wire.into_iter().enumerate().map(parse).collect()
}

/// Ours travels as an extension, which Istio's ztunnel ignores and istiod never sends: named
/// [`SESSION_AFFINITY`], a `google.protobuf.Duration` with the timeout. Extensions of other names are none of ours.
fn session_affinity(wire: &[proto::Extension]) -> Result<Option<SessionAffinity>, FieldError> {
    let Some(extension) = wire.iter().find(|one| one.name == SESSION_AFFINITY) else {
        return Ok(None);
    };
    let timeout = extension
        .config
        .as_ref()
        .and_then(|config| prost_types::Duration::decode(&config.value[..]).ok())
        .and_then(|timeout| u32::try_from(timeout.seconds).ok())
        .filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds));
    let field = format!("extensions[{SESSION_AFFINITY}]");
    let timeout_seconds = timeout.ok_or_else(|| FieldError::new(field, Problem::Timeout))?;
    Ok(Some(SessionAffinity { timeout_seconds }))
}

fn load_balancing(wire: proto::LoadBalancing) -> Result<LoadBalancing, FieldError> {
    use proto::load_balancing as lb;
    let mode = match field::known("load_balancing.mode", wire.mode)? {
        lb::Mode::UnspecifiedMode => Mode::Standard,
        lb::Mode::Strict => Mode::Strict,
        lb::Mode::Failover => Mode::Failover,
        lb::Mode::Passthrough => Mode::Passthrough,
    };
    let health_policy = match field::known("load_balancing.health_policy", wire.health_policy)? {
        lb::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        lb::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    let routing_preferences = wire
        .routing_preference
        .into_iter()
        .enumerate()
        .map(|(at, value)| scope(&format!("load_balancing.routing_preference[{at}]"), value))
        .collect::<Result<_, _>>()?;
    Ok(LoadBalancing {
        mode,
        routing_preferences,
        health_policy,
    })
}

fn scope(name: &str, value: i32) -> Result<RoutingScope, FieldError> {
    use proto::load_balancing::Scope;
    Ok(match field::known(name, value)? {
        Scope::UnspecifiedScope => {
            return Err(FieldError::new(name, Problem::UnknownValue(value)));
        }
        Scope::Region => RoutingScope::Region,
        Scope::Zone => RoutingScope::Zone,
        Scope::Subzone => RoutingScope::Subzone,
        Scope::Node => RoutingScope::Node,
        Scope::Cluster => RoutingScope::Cluster,
        Scope::Network => RoutingScope::Network,
    })
}
