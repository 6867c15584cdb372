//! ServiceEntries to service resources, one for each host, with addresses for those that have none; and their instances
//! that are no pods: WorkloadEntries and endpoints written into the ServiceEntry itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use leyline_proto::istio::workload::{
    AppProtocol, LoadBalancing, NetworkAddress, Service as WireService, Visibility,
    load_balancing::{HealthPolicy, Mode},
};
use leyline_types::NamespacedName;
use sha2::{Digest, Sha256};

use super::{
    Advice,
    networks::Networks,
    services::{
        Browsers, ConnectStrategy, GRPC_WEB, MeshService, Resolution, Target, TargetPort,
        address_bytes, is_entered_by_waypoint, network_addresses,
    },
    waypoints::{Attached, ServiceWaypoints, Waypoints},
};
use crate::objects::{EntryPort, Kind, ObjectKey, Objects, ServiceEntry, parse_block};

/// Says which of several addresses of a name is connected to.
const CONNECT_STRATEGY: &str = "istio.io/connect-strategy";

/// One host of a ServiceEntry.
pub(super) struct EntryService {
    pub(super) entry: Arc<ServiceEntry>,
    pub(super) name: NamespacedName,
    pub(super) host: String,
    pub(super) service: MeshService,
}

impl EntryService {
    /// Instances are resolved by name, and there is none but the host itself.
    pub(super) fn is_its_own_endpoint(&self) -> bool {
        let spec = &self.entry.spec;
        is_by_name(&self.entry)
            && spec.endpoints.is_empty()
            && spec.workload_selector.is_none()
            && !is_wildcard(&self.host)
    }
}

/// All hosts of all ServiceEntries that count.
pub(super) fn services(
    objects: &Objects,
    networks: &Networks,
    waypoints: &Waypoints<'_>,
    kubernetes: &BTreeMap<NamespacedName, MeshService>,
    advice: &mut Vec<Advice>,
) -> Vec<EntryService> {
    let mut taken: HashSet<String> = kubernetes.values().map(|s| s.key.clone()).collect();
    let hosts = kubernetes.values().map(|s| s.wire.hostname.clone());
    let mut canonical: HashSet<String> = hosts.collect();
    let mut allocator = Allocator::default();
    let mut services = Vec::new();
    for (name, entry) in by_age(objects) {
        let mut advise = Adviser { name, advice };
        let Some(visibility) = visibility(entry, &mut advise) else {
            continue;
        };
        let connect_strategy = connect_strategy(entry, &mut advise);
        for host in &entry.spec.hosts {
            let host = host.to_ascii_lowercase();
            let key = format!("{}/{host}", name.namespace);
            if !taken.insert(key.clone()) {
                advise.say_taken(&host);
                continue;
            }
            let ports: Vec<TargetPort> = entry.spec.ports.iter().filter_map(target_port).collect();
            let addresses = addresses(entry, name, &host, networks, &mut allocator);
            advise.look_at_addresses(&addresses, &host);
            let mut service = MeshService {
                wire: WireService {
                    hostname: host.clone(),
                    addresses,
                    ports: ports.iter().map(TargetPort::to_wire).collect(),
                    canonical: canonical.insert(host.clone()),
                    visibility: visibility.into(),
                    ..common(objects, name, entry)
                },
                key,
                selector: selector(entry),
                ports,
                waypoints: BTreeSet::new(),
                requires_waypoint: false,
                resolution: resolution(entry),
                connect_strategy,
            };
            attach_waypoints(&mut service, entry, waypoints, &mut advise);
            services.push(EntryService {
                entry: Arc::clone(entry),
                name: name.clone(),
                host,
                service,
            });
        }
    }
    services
}

/// What is the same for all hosts of an entry.
fn common(objects: &Objects, name: &NamespacedName, entry: &ServiceEntry) -> WireService {
    WireService {
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        subject_alt_names: entry.spec.subject_alt_names.clone(),
        load_balancing: load_balancing(entry),
        ingress_use_waypoint: is_entered_by_waypoint(objects, &entry.metadata, &name.namespace),
        ..WireService::default()
    }
}

fn attach_waypoints(
    service: &mut MeshService,
    entry: &ServiceEntry,
    waypoints: &Waypoints<'_>,
    advise: &mut Adviser<'_>,
) {
    let object = advise.object();
    let attached = Attached {
        object: &object,
        labels: entry.metadata.labels.as_ref(),
        annotations: entry.metadata.annotations.as_ref(),
        account: None,
    };
    let found = waypoints.of_service(attached, advise.advice);
    if service.resolution == Resolution::Request {
        advise.say_dynamic(entry, &found);
        if is_internal(entry) {
            return;
        }
    }
    service.wire.waypoint = found.waypoint;
    service.wire.weighted_waypoints = found.weighted;
    service.waypoints = found.names;
}

/// The oldest first: it keeps its name and its address whatever comes later.
fn by_age(objects: &Objects) -> Vec<(&NamespacedName, &Arc<ServiceEntry>)> {
    let mut entries: Vec<_> = objects.service_entries.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.metadata.creation_timestamp.as_ref().map(|t| t.0));
    entries
}

struct Adviser<'a> {
    name: &'a NamespacedName,
    advice: &'a mut Vec<Advice>,
}

impl Adviser<'_> {
    fn object(&self) -> ObjectKey {
        let (namespace, name) = (self.name.namespace.as_str(), self.name.name.as_str());
        ObjectKey::new(Kind::ServiceEntry, Some(namespace), name)
    }

    fn look_at_addresses(&mut self, addresses: &[NetworkAddress], host: &str) {
        if addresses.is_empty() {
            let reason = format!("{host} has no address, so that only DNS of others finds it");
            self.say("spec.addresses", reason);
        }
    }

    /// What keeps requests from hosts that only a waypoint finds.
    fn say_dynamic(&mut self, entry: &ServiceEntry, found: &ServiceWaypoints) {
        if is_internal(entry) {
            let reason =
                "waypoints serve resolution DYNAMIC_DNS for MESH_EXTERNAL alone: nobody serves it";
            self.say("spec.location", reason.to_owned());
        } else if found.names.is_empty() {
            let reason = "only a waypoint (label istio.io/use-waypoint) finds these hosts: nobody serves them";
            self.say("spec.resolution", reason.to_owned());
        }
        for (index, port) in entry.spec.ports.iter().enumerate() {
            let protocol = target_port(port).map(|port| port.app_protocol);
            if matches!(protocol, Some(AppProtocol::Tcp | AppProtocol::Unknown)) {
                let reason =
                    "only HTTP, gRPC and TLS say which host they are for: the port is not served";
                self.say(&format!("spec.ports[{index}].protocol"), reason.to_owned());
            }
        }
    }

    fn say_taken(&mut self, host: &str) {
        let reason = format!("another service of the namespace is called {host}");
        self.say("spec.hosts", reason);
    }

    fn say(&mut self, field: &str, reason: String) {
        self.advice.push(Advice {
            object: self.object(),
            field: field.to_owned(),
            reason,
        });
    }
}

/// `None` where nobody shall see it.
fn visibility(entry: &ServiceEntry, advise: &mut Adviser<'_>) -> Option<Visibility> {
    let exported = &entry.spec.export_to;
    let namespace = advise.name.namespace.clone();
    if exported.is_empty() || exported.iter().any(|to| to == "*") {
        return Some(Visibility::Public);
    }
    let own = |to: &String| to == "." || *to == namespace.as_str();
    if exported.iter().any(|to| !own(to) && to != "~") {
        let reason = "node proxies know only \"*\" and \".\": the other namespaces do not see it";
        advise.say("spec.exportTo", reason.to_owned());
    }
    exported
        .iter()
        .any(own)
        .then_some(Visibility::NamespaceOnly)
}

fn selector(entry: &ServiceEntry) -> BTreeMap<String, String> {
    let selector = entry.spec.workload_selector.as_ref();
    selector.map(|one| one.labels.clone()).unwrap_or_default()
}

fn is_wildcard(host: &str) -> bool {
    host.starts_with("*.")
}

fn is_by_name(entry: &ServiceEntry) -> bool {
    matches!(
        entry.spec.resolution.as_deref(),
        Some("DNS" | "DNS_ROUND_ROBIN")
    )
}

fn is_internal(entry: &ServiceEntry) -> bool {
    entry.spec.location.as_deref() == Some("MESH_INTERNAL")
}

/// Without resolution connections go where the client wants.
fn is_passthrough(entry: &ServiceEntry) -> bool {
    matches!(entry.spec.resolution.as_deref(), None | Some("NONE"))
}

fn resolution(entry: &ServiceEntry) -> Resolution {
    match entry.spec.resolution.as_deref() {
        Some("DNS") => Resolution::Names,
        Some("DNS_ROUND_ROBIN") => Resolution::OneName,
        Some("DYNAMIC_DNS") => Resolution::Request,
        None | Some("NONE") => Resolution::Client,
        Some(_) => Resolution::Address,
    }
}

fn connect_strategy(entry: &ServiceEntry, advise: &mut Adviser<'_>) -> ConnectStrategy {
    let annotations = entry.metadata.annotations.as_ref();
    let value = annotations.and_then(|all| all.get(CONNECT_STRATEGY));
    match value.map(String::as_str) {
        None | Some("DEFAULT") => ConnectStrategy::Default,
        Some("RACE_FIRST_TCP_CONNECT") => ConnectStrategy::RaceFirstTcpConnect,
        Some(_) => {
            let field = format!("metadata.annotations.{CONNECT_STRATEGY}");
            let reason = "has no effect: must be DEFAULT or RACE_FIRST_TCP_CONNECT";
            advise.say(&field, reason.to_owned());
            ConnectStrategy::Default
        }
    }
}

fn load_balancing(entry: &ServiceEntry) -> Option<LoadBalancing> {
    is_passthrough(entry).then(|| LoadBalancing {
        mode: Mode::Passthrough.into(),
        health_policy: HealthPolicy::AllowAll.into(),
        ..LoadBalancing::default()
    })
}

fn target_port(port: &EntryPort) -> Option<TargetPort> {
    let service_port = u32::try_from(port.number).ok()?;
    let target = match port.target_port {
        None => service_port,
        Some(target) => u32::try_from(target).ok()?,
    };
    let browsers = if port.protocol.eq_ignore_ascii_case(GRPC_WEB) {
        Browsers::ByGrpcWeb
    } else {
        Browsers::NotServed
    };
    let app_protocol = match port.protocol.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP_PROXY" => AppProtocol::Http11,
        "HTTP2" => AppProtocol::Http2,
        "GRPC" | "GRPC-WEB" => AppProtocol::Grpc,
        "HTTPS" | "TLS" => AppProtocol::Tls,
        "TCP" | "MONGO" | "REDIS" | "MYSQL" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    };
    Some(TargetPort {
        name: port.name.clone(),
        service_port,
        target: Target::Number(target),
        app_protocol,
        browsers,
    })
}

/// What the entry says, else what a controller has allocated, else what is allocated here.
fn addresses(
    entry: &ServiceEntry,
    name: &NamespacedName,
    host: &str,
    networks: &Networks,
    allocator: &mut Allocator,
) -> Vec<NetworkAddress> {
    let spec = entry.spec.addresses.iter();
    let spec: Vec<NetworkAddress> = spec
        .filter_map(|text| parse_block(text).ok())
        .flat_map(|block| {
            networks.all().map(move |network| NetworkAddress {
                network: network.to_owned(),
                address: address_bytes(block.network()),
                length: (block.prefix_len() < block.max_prefix_len())
                    .then(|| u32::from(block.prefix_len())),
            })
        })
        .collect();
    if !spec.is_empty() {
        return spec;
    }
    let allocated = entry.status.addresses.iter();
    let allocated = allocated.filter(|one| one.host.is_empty() || one.host == host);
    let mut addresses: Vec<IpAddr> = allocated.filter_map(|one| one.value.parse().ok()).collect();
    // A client of a passed-through service must get the host's own address; one of hosts that only a waypoint knows must not.
    let is_served = match resolution(entry) {
        Resolution::Client => false,
        Resolution::Request => true,
        Resolution::Address | Resolution::Names | Resolution::OneName => !is_wildcard(host),
    };
    if addresses.is_empty() && is_served {
        addresses = allocator.allocate(&format!("{name}/{host}"));
    }
    network_addresses(networks, &addresses)
}

/// Gives addresses of Istio's ranges for such services, 240.240.0.0/16 and 2001:2::/48.
///
/// An address follows from the name of the service alone, so that it stays over restarts without being stored. Of two
/// that would have the same, the one that comes later takes the next free one.
#[derive(Default)]
struct Allocator {
    taken: HashSet<u16>,
}

impl Allocator {
    /// Nothing when all 65,534 are taken.
    fn allocate(&mut self, name: &str) -> Vec<IpAddr> {
        let digest = Sha256::digest(name.as_bytes());
        let first = digest.iter().take(2);
        let first = first.fold(0u16, |number, byte| number << 8 | u16::from(*byte));
        for step in 0..u16::MAX {
            let number = first.wrapping_add(step);
            // Neither the address of the network nor its broadcast address.
            if number == 0 || number == u16::MAX || !self.taken.insert(number) {
                continue;
            }
            let [high, low] = number.to_be_bytes();
            return vec![
                Ipv4Addr::new(240, 240, high, low).into(),
                Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number).into(),
            ];
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_stable_and_never_given_twice() {
        let mut all = Allocator::default();
        let mut seen = HashSet::new();
        let first = Allocator::default().allocate("ns/a/host");
        assert_eq!(all.allocate("ns/a/host"), first);
        seen.extend(first);
        for number in 0..u16::MAX - 2 {
            let addresses = all.allocate(&number.to_string());
            assert_eq!(addresses.len(), 2, "{number}");
            assert!(addresses.into_iter().all(|address| seen.insert(address)));
        }
        assert_eq!(all.allocate("one too many"), Vec::<IpAddr>::new());
    }
}
