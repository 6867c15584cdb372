//! `istio.workload.Workload`.

use std::{collections::BTreeMap, sync::Arc};

use leyline_proto::istio::workload as proto;
use leyline_types::{
    ENROLMENT_PENDING, Identity, NamespacedName, Network, ServiceKey, TRUST_DOMAIN_ALIASES,
    TrustDomain, WorkloadName, WorkloadUid,
};
use prost::Message;

use super::{
    error::{ConvertError, FieldError, Problem},
    field,
};
use crate::workload::{
    ApplicationTunnel, Enrolment, Health, Locality, NetworkMode, PortMap, Protocol, TunnelProtocol,
    Workload, WorkloadType,
};

/// Service account of a workload that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Cluster of a workload that names none.
const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Weight of a workload that names none.
const DEFAULT_CAPACITY: u32 = 1;

/// Converts a workload.
///
/// # Errors
/// Names the workload, the field and the reason.
pub fn workload(wire: proto::Workload) -> Result<Workload, ConvertError> {
    let uid = wire.uid.clone();
    convert(wire).map_err(|error| error.of(&uid))
}

fn convert(wire: proto::Workload) -> Result<Workload, FieldError> {
    let name = WorkloadName {
        name: wire.name.into(),
        namespace: field::required("namespace", wire.namespace)?,
        service_account: field::or_default(wire.service_account, DEFAULT_SERVICE_ACCOUNT),
    };
    let identity = identity(&wire.trust_domain, &name)?;
    let aliases = trust_domain_aliases(&wire.extensions)?;
    let locality = wire.locality.unwrap_or_default();
    Ok(Workload {
        uid: WorkloadUid::new(field::required("uid", wire.uid)?),
        network: Network::new(wire.network),
        addresses: addresses(&wire.addresses)?,
        hostname: wire.hostname.into(),
        protocol: protocol(wire.tunnel_protocol)?,
        enrolment: enrolment(&wire.extensions),
        network_mode: match field::known("network_mode", wire.network_mode)? {
            proto::NetworkMode::Standard => NetworkMode::Standard,
            proto::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        status: match field::known("status", wire.status)? {
            proto::WorkloadStatus::Healthy => Health::Healthy,
            proto::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        node: wire.node.into(),
        cluster_id: field::or_default(wire.cluster_id, DEFAULT_CLUSTER),
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        workload_name: wire.workload_name.into(),
        workload_type: match field::known("workload_type", wire.workload_type)? {
            proto::WorkloadType::Deployment => WorkloadType::Deployment,
            proto::WorkloadType::Cronjob => WorkloadType::CronJob,
            proto::WorkloadType::Pod => WorkloadType::Pod,
            proto::WorkloadType::Job => WorkloadType::Job,
        },
        canonical_name: wire.canonical_name.into(),
        canonical_revision: wire.canonical_revision.into(),
        native_tunnel: wire.native_tunnel,
        application_tunnel: wire.application_tunnel.map(tunnel).transpose()?,
        waypoint: gateway("waypoint", wire.waypoint)?,
        network_gateway: gateway("network_gateway", wire.network_gateway)?,
        authorization_policies: policies(&wire.authorization_policies)?,
        capacity: wire.capacity.unwrap_or(DEFAULT_CAPACITY),
        services: services(wire.services)?,
        expected: in_all(&identity, &aliases)?,
        identity,
        trust_domain_aliases: aliases,
        name,
    })
}

/// Other extensions are other programs'.
fn enrolment(extensions: &[proto::Extension]) -> Enrolment {
    if extensions.iter().any(|one| one.name == ENROLMENT_PENDING) {
        Enrolment::Pending
    } else {
        Enrolment::Settled
    }
}

/// [`TRUST_DOMAIN_ALIASES`], a `google.protobuf.ListValue` of names; istiod tells node proxies of none.
fn trust_domain_aliases(extensions: &[proto::Extension]) -> Result<Box<[TrustDomain]>, FieldError> {
    let Some(extension) = extensions
        .iter()
        .find(|one| one.name == TRUST_DOMAIN_ALIASES)
    else {
        return Ok(Box::default());
    };
    let problem = |problem| FieldError::new(format!("extensions[{TRUST_DOMAIN_ALIASES}]"), problem);
    let list = extension
        .config
        .as_ref()
        .and_then(|config| prost_types::ListValue::decode(&config.value[..]).ok())
        .ok_or_else(|| problem(Problem::TrustDomains))?;
    let name = |value: prost_types::Value| match value.kind {
        Some(prost_types::value::Kind::StringValue(name)) => name
            .parse()
            .map_err(|error| problem(Problem::Identity(error))),
        _ => Err(problem(Problem::TrustDomains)),
    };
    list.values.into_iter().map(name).collect()
}

/// The identity and the same service account in the other trust domains.
fn in_all(identity: &Identity, aliases: &[TrustDomain]) -> Result<Arc<[Identity]>, FieldError> {
    let others = aliases
        .iter()
        .filter(|alias| *alias != identity.trust_domain());
    let others = others.map(|alias| {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        Identity::new(alias.clone(), namespace.as_str(), account.as_str())
            .map_err(|error| FieldError::new("service_account", Problem::Identity(error)))
    });
    std::iter::once(Ok(identity.clone()))
        .chain(others)
        .collect()
}

fn identity(trust_domain: &str, name: &WorkloadName) -> Result<Identity, FieldError> {
    let trust_domain = if trust_domain.is_empty() {
        TrustDomain::default()
    } else {
        trust_domain
            .parse()
            .map_err(|error| FieldError::new("trust_domain", Problem::Identity(error)))?
    };
    Identity::new(
        trust_domain,
        name.namespace.as_str(),
        name.service_account.as_str(),
    )
    .map_err(|error| FieldError::new("service_account", Problem::Identity(error)))
}

fn addresses(wire: &[Vec<u8>]) -> Result<Box<[std::net::IpAddr]>, FieldError> {
    let parse = |(at, bytes): (usize, &Vec<u8>)| {
        field::ip(bytes).map_err(|problem| FieldError::new(format!("addresses[{at}]"), problem))
    };
    wire.iter().enumerate().map(parse).collect()
}

/// A protocol that is not understood must not be read as plaintext.
fn protocol(value: i32) -> Result<Protocol, FieldError> {
    match field::known("tunnel_protocol", value)? {
        proto::TunnelProtocol::None => Ok(Protocol::Tcp),
        proto::TunnelProtocol::Hbone => Ok(Protocol::Hbone),
        proto::TunnelProtocol::LegacyIstioMtls => Err(FieldError::new(
            "tunnel_protocol",
            Problem::Unsupported("LEGACY_ISTIO_MTLS"),
        )),
    }
}

fn tunnel(wire: proto::ApplicationTunnel) -> Result<ApplicationTunnel, FieldError> {
    let protocol = match field::known("application_tunnel.protocol", wire.protocol)? {
        proto::application_tunnel::Protocol::None => TunnelProtocol::None,
        proto::application_tunnel::Protocol::Proxy => TunnelProtocol::Proxy,
    };
    let port = field::optional_port(wire.port)
        .map_err(|problem| FieldError::new("application_tunnel.port", problem))?;
    Ok(ApplicationTunnel { protocol, port })
}

fn gateway(
    field: &str,
    wire: Option<proto::GatewayAddress>,
) -> Result<Option<crate::workload::Gateway>, FieldError> {
    wire.map(field::gateway)
        .transpose()
        .map_err(|error| error.within(field))
}

fn policies(wire: &[String]) -> Result<Box<[NamespacedName]>, FieldError> {
    let parse = |(at, text): (usize, &String)| {
        text.parse().map_err(|error| {
            FieldError::new(
                format!("authorization_policies[{at}]"),
                Problem::Name(error),
            )
        })
    };
    wire.iter().enumerate().map(parse).collect()
}

fn services(
    wire: std::collections::HashMap<String, proto::PortList>,
) -> Result<BTreeMap<ServiceKey, PortMap>, FieldError> {
    let mut services = BTreeMap::new();
    for (text, ports) in wire {
        let key: ServiceKey = text
            .parse()
            .map_err(|error| FieldError::new("services", Problem::ServiceKey(error)))?;
        let ports =
            port_map(&ports.ports).map_err(|error| error.within(format!("services[{key}]")))?;
        services.insert(key, ports);
    }
    Ok(services)
}

/// A target of 0 is a named port that this workload does not have; the service may still know one.
fn port_map(wire: &[proto::Port]) -> Result<PortMap, FieldError> {
    let mut pairs = Vec::with_capacity(wire.len());
    for (at, one) in wire.iter().enumerate() {
        let at = |problem| FieldError::new(format!("ports[{at}]"), problem);
        let service_port = field::port(one.service_port).map_err(at)?;
        if let Some(target) = field::optional_port(one.target_port).map_err(at)? {
            pairs.push((service_port, target));
        }
    }
    Ok(PortMap::new(pairs))
}
