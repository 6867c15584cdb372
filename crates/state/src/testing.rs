//! Short ways to write a mesh in tests, through the same conversion as the wire.

use std::net::IpAddr;

use leyline_proto::istio::{security, workload as wire};
use leyline_types::{NamespacedName, Network, TRUST_DOMAIN_ALIASES, WorkloadUid};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};

use crate::{Change, LocalNode, Snapshot, Store, Workload, convert};

pub(crate) fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

pub(crate) fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(format!("c//Pod/ns/{name}"))
}

/// A healthy, un-enrolled pod of namespace `ns` on node `a`; its service account is its name.
pub(crate) fn pod(name: &str, ips: &[&str]) -> wire::Workload {
    wire::Workload {
        uid: uid(name).to_string(),
        name: name.into(),
        namespace: "ns".into(),
        service_account: name.into(),
        addresses: ips.iter().map(|ip| bytes(ip)).collect(),
        node: "a".into(),
        workload_type: wire::WorkloadType::Pod.into(),
        ..wire::Workload::default()
    }
}

/// The same, enrolled.
pub(crate) fn hbone(name: &str, ips: &[&str]) -> wire::Workload {
    wire::Workload {
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        ..pod(name, ips)
    }
}

/// Tells of other trust domains that a workload and its peers may be of.
pub(crate) fn trust_domain_aliases(names: &[&str]) -> wire::Extension {
    let values = names.iter().map(|&name| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(name.to_owned())),
    });
    let list = prost_types::ListValue {
        values: values.collect(),
    };
    wire::Extension {
        name: TRUST_DOMAIN_ALIASES.to_owned(),
        config: Some(prost_types::Any {
            type_url: "type.googleapis.com/google.protobuf.ListValue".to_owned(),
            value: list.encode_to_vec(),
        }),
    }
}

/// Adds a workload to a service of namespace `ns`, with its own target ports.
pub(crate) fn in_service(
    mut workload: wire::Workload,
    service: &str,
    ports: &[(u32, u32)],
) -> wire::Workload {
    let ports = port_list(ports);
    workload
        .services
        .insert(format!("ns/{service}.ns"), wire::PortList { ports });
    workload
}

pub(crate) fn port_list(ports: &[(u32, u32)]) -> Vec<wire::Port> {
    let port = |&(service_port, target_port)| wire::Port {
        service_port,
        target_port,
        app_protocol: 0,
    };
    ports.iter().map(port).collect()
}

pub(crate) fn vip(address: &str) -> wire::NetworkAddress {
    let (address, length) = match address.split_once('/') {
        Some((address, length)) => (address, Some(length.parse().unwrap())),
        None => (address, None),
    };
    wire::NetworkAddress {
        network: String::new(),
        address: bytes(address),
        length,
    }
}

/// A service of namespace `ns`, port 80 to 8080.
pub(crate) fn service(name: &str, vips: &[&str]) -> wire::Service {
    wire::Service {
        name: name.into(),
        namespace: "ns".into(),
        hostname: format!("{name}.ns"),
        addresses: vips.iter().map(|one| vip(one)).collect(),
        ports: port_list(&[(80, 8080)]),
        ..wire::Service::default()
    }
}

pub(crate) fn gateway(hostname: &str) -> wire::GatewayAddress {
    let name = wire::NamespacedHostname {
        namespace: "ns".into(),
        hostname: hostname.into(),
    };
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(name)),
        hbone_mtls_port: 15008,
    }
}

pub(crate) fn deny_all(key: &str, scope: security::Scope) -> security::Authorization {
    let key: NamespacedName = key.parse().unwrap();
    security::Authorization {
        name: key.name.to_string(),
        namespace: key.namespace.to_string(),
        scope: scope.into(),
        action: security::Action::Deny.into(),
        groups: vec![security::Group::default()],
        ..security::Authorization::default()
    }
}

impl From<wire::Workload> for Change {
    fn from(workload: wire::Workload) -> Self {
        Self::Workload(convert::workload(workload).unwrap().into())
    }
}

impl From<wire::Service> for Change {
    fn from(service: wire::Service) -> Self {
        Self::Service(convert::service(service).unwrap().into())
    }
}

impl From<security::Authorization> for Change {
    fn from(policy: security::Authorization) -> Self {
        Self::Policy(convert::policy(policy).unwrap().into())
    }
}

/// A synced store of node `a` with these resources.
pub(crate) fn store(changes: impl IntoIterator<Item = Change>) -> Store {
    let store = Store::new(LocalNode {
        network: Network::default(),
        node: Some("a".into()),
    });
    store.apply(changes);
    store.mark_synced();
    store
}

pub(crate) fn json(snapshot: &Snapshot) -> serde_json::Value {
    serde_json::to_value(snapshot.dump()).unwrap()
}

pub(crate) fn workload_of<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Workload {
    snapshot.workload_by_uid(&uid(name)).unwrap()
}
