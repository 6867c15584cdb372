//! Kubernetes Services to the service resources of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use leyline_proto::istio::workload::{
    AppProtocol, IpFamilies, LoadBalancing, NetworkAddress, Port, Service as WireService,
    load_balancing::{HealthPolicy, Mode, Scope},
};
use leyline_types::{NamespacedName, Str};

use super::{
    Advice, MeshSettings,
    networks::Networks,
    selectors::Selectors,
    session_affinity,
    waypoints::{Attached, ServiceWaypoints, Waypoints},
};
use crate::objects::{Kind, ObjectKey, Objects};

const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
const REQUIRE_WAYPOINT: &str = "leyline.io/require-waypoint";

/// The protocol of browsers, which alone has a hyphen in its name.
pub(super) const GRPC_WEB: &str = "grpc-web";

/// Where a service port leads on a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u32),
    /// A named container port.
    Name(String),
}

/// A TCP port of a service.
#[derive(Clone, Debug)]
pub(super) struct TargetPort {
    pub(super) name: String,
    pub(super) service_port: u32,
    pub(super) target: Target,
    pub(super) app_protocol: AppProtocol,
    pub(super) browsers: Browsers,
}

/// Whether browsers are served on a port; no word of the wire to node proxies tells gRPC-Web from gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Browsers {
    #[default]
    NotServed,
    /// They speak gRPC-Web, and the application gRPC.
    ByGrpcWeb,
}

/// How the endpoints of a service are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Resolution {
    /// By their addresses.
    #[default]
    Address,
    /// By names, each of which stands for all its addresses.
    Names,
    /// By a name that stands for one endpoint, whatever its address.
    OneName,
    /// The client has found one.
    Client,
    /// Each request says by its host which one it is for.
    Request,
}

/// Which of the addresses of a name is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ConnectStrategy {
    /// The one that balancing draws, or the first.
    #[default]
    Default,
    /// The first that answers.
    RaceFirstTcpConnect,
}

/// A service and what its workloads need to know of it.
pub(super) struct MeshService {
    pub(super) wire: WireService,
    /// `namespace/hostname`.
    pub(super) key: String,
    /// Empty: endpoints come from EndpointSlices.
    pub(super) selector: BTreeMap<String, String>,
    pub(super) ports: Vec<TargetPort>,
    /// The Gateways that its traffic goes through.
    pub(super) waypoints: BTreeSet<NamespacedName>,
    /// Whether its pods refuse what does not come through them.
    pub(super) requires_waypoint: bool,
    pub(super) resolution: Resolution,
    pub(super) connect_strategy: ConnectStrategy,
}

/// All services that the mesh knows; not ExternalName, which is only DNS.
pub(super) fn services(
    objects: &Objects,
    mesh: &MeshSettings,
    networks: &Networks,
    waypoints: &Waypoints<'_>,
    advice: &mut Vec<Advice>,
) -> BTreeMap<NamespacedName, MeshService> {
    let mut owners = BTreeMap::new();
    let mut services = BTreeMap::new();
    for (name, service) in &objects.services {
        let Some(spec) = &service.spec else { continue };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let addresses = addresses(spec);
        advise_on_addresses(name, spec, &addresses, &mut owners, advice);
        let mut translated = translate_one(objects, mesh, name, service, spec);
        translated.wire.addresses = network_addresses(networks, &addresses);
        translated.wire.ip_families = ip_families(spec, &addresses).into();
        translated.wire.extensions = session_affinity::extensions(name, spec, advice);
        if !waypoints.is_gateway_service(name, service) {
            attach_waypoints(&mut translated, name, service, waypoints, advice);
        }
        services.insert(name.clone(), translated);
    }
    services
}

/// Services by namespace, to be found by the labels of a pod.
pub(super) fn by_selector<'a>(
    services: impl Iterator<Item = &'a MeshService>,
) -> HashMap<&'a str, Selectors<&'a MeshService>> {
    let mut found: HashMap<&str, Selectors<&MeshService>> = HashMap::new();
    for service in services {
        let of_namespace = found.entry(service.wire.namespace.as_str()).or_default();
        of_namespace.insert(&service.selector, service);
    }
    found
}

fn advise_on_addresses(
    name: &NamespacedName,
    spec: &ServiceSpec,
    addresses: &[IpAddr],
    owners: &mut BTreeMap<IpAddr, NamespacedName>,
    advice: &mut Vec<Advice>,
) {
    let mut advise = |field: &str, reason: String| {
        advice.push(Advice {
            object: ObjectKey::new(
                Kind::Service,
                Some(name.namespace.as_str()),
                name.name.as_str(),
            ),
            field: field.to_owned(),
            reason,
        });
    };
    if addresses.is_empty() && spec.cluster_ip.as_deref() != Some("None") {
        let reason =
            "no clusterIP, so that the service has no address; addresses are not allocated here";
        advise("spec", reason.to_owned());
    }
    for address in addresses {
        if let Some(owner) = owners.insert(*address, name.clone()) {
            advise(
                "spec.clusterIP",
                format!("{address} is also the address of service {owner}"),
            );
        }
    }
}

/// Whether ingress gateways go through the waypoint of a service: its own label, or else that of its namespace (Istio,
/// "Ingress with waypoints").
pub(super) fn is_entered_by_waypoint(
    objects: &Objects,
    metadata: &ObjectMeta,
    namespace: &Str,
) -> bool {
    let labels = metadata.labels.as_ref();
    let own = labels.and_then(|labels| labels.get(INGRESS_USE_WAYPOINT));
    let inherited = || objects.namespace_label(namespace.as_str(), INGRESS_USE_WAYPOINT);
    own.map(String::as_str).or_else(inherited) == Some("true")
}

fn translate_one(
    objects: &Objects,
    mesh: &MeshSettings,
    name: &NamespacedName,
    service: &Service,
    spec: &ServiceSpec,
) -> MeshService {
    let hostname = format!(
        "{}.{}.svc.{}",
        name.name, name.namespace, mesh.cluster_domain
    );
    let ports: Vec<TargetPort> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(target_port)
        .collect();
    let wire = WireService {
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        ports: ports.iter().map(TargetPort::to_wire).collect(),
        load_balancing: load_balancing(objects, service, spec),
        canonical: true,
        ingress_use_waypoint: is_entered_by_waypoint(objects, &service.metadata, &name.namespace),
        hostname: hostname.clone(),
        ..WireService::default()
    };
    MeshService {
        wire,
        key: format!("{}/{hostname}", name.namespace),
        selector: spec.selector.clone().unwrap_or_default(),
        ports,
        waypoints: BTreeSet::new(),
        requires_waypoint: false,
        resolution: Resolution::Address,
        connect_strategy: ConnectStrategy::Default,
    }
}

fn attach_waypoints(
    translated: &mut MeshService,
    name: &NamespacedName,
    service: &Service,
    waypoints: &Waypoints<'_>,
    advice: &mut Vec<Advice>,
) {
    let object = ObjectKey::new(
        Kind::Service,
        Some(name.namespace.as_str()),
        name.name.as_str(),
    );
    let labels = service.metadata.labels.as_ref();
    let attached = Attached {
        object: &object,
        labels,
        annotations: service.metadata.annotations.as_ref(),
        account: waypoints.account_of(name, service),
    };
    let ServiceWaypoints {
        waypoint,
        weighted,
        names,
    } = waypoints.of_service(attached, advice);
    translated.wire.waypoint = waypoint;
    translated.wire.weighted_waypoints = weighted;
    translated.waypoints = names;
    let required = labels.and_then(|labels| labels.get(REQUIRE_WAYPOINT));
    translated.requires_waypoint = required.is_some_and(|value| value == "true");
    if translated.requires_waypoint && translated.waypoints.is_empty() {
        let reason = "the service has no waypoint: nobody reaches its pods";
        advice.push(Advice {
            object,
            field: format!("metadata.labels.{REQUIRE_WAYPOINT}"),
            reason: reason.to_owned(),
        });
    }
}

fn addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten();
    let mut addresses = Vec::new();
    for text in spec.cluster_ip.iter().chain(all) {
        if let Ok(address) = text.parse::<IpAddr>()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

/// The address of a service is the same in every network of the cluster.
pub(super) fn network_addresses(networks: &Networks, addresses: &[IpAddr]) -> Vec<NetworkAddress> {
    let pairs = networks
        .all()
        .flat_map(|network| addresses.iter().map(move |address| (network, *address)));
    pairs
        .map(|(network, address)| network_address(network, address))
        .collect()
}

fn network_address(network: &str, address: IpAddr) -> NetworkAddress {
    NetworkAddress {
        network: network.to_owned(),
        address: address_bytes(address),
        length: None,
    }
}

/// 4 or 16 bytes, as the wire has addresses.
pub(super) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn target_port(port: &ServicePort) -> Option<TargetPort> {
    if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
        return None;
    }
    let service_port = u32::try_from(port.port).ok()?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(service_port),
        Some(IntOrString::Int(number)) => Target::Number(u32::try_from(*number).ok()?),
        Some(IntOrString::String(name)) => Target::Name(name.clone()),
    };
    let (app_protocol, browsers) = app_protocol(port);
    Some(TargetPort {
        name: port.name.clone().unwrap_or_default(),
        service_port,
        target,
        app_protocol,
        browsers,
    })
}

/// `appProtocol`, else the part of the port's name before the first hyphen that does not belong to a protocol.
fn app_protocol(port: &ServicePort) -> (AppProtocol, Browsers) {
    let name = port.name.as_deref().unwrap_or_default();
    let by_name = || match name.get(..GRPC_WEB.len()) {
        Some(web) if web.eq_ignore_ascii_case(GRPC_WEB) => web,
        Some(_) | None => name.split('-').next().unwrap_or_default(),
    };
    let protocol = port.app_protocol.as_deref().unwrap_or_else(by_name);
    let protocol = protocol.to_ascii_lowercase();
    if protocol == GRPC_WEB {
        return (AppProtocol::Grpc, Browsers::ByGrpcWeb);
    }
    let protocol = match protocol.as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    };
    (protocol, Browsers::NotServed)
}

impl TargetPort {
    pub(super) fn to_wire(&self) -> Port {
        let target_port = match self.target {
            Target::Number(number) => number,
            Target::Name(_) => 0,
        };
        self.wire_port(target_port)
    }

    /// With the target resolved for a workload.
    pub(super) fn wire_port(&self, target_port: u32) -> Port {
        Port {
            service_port: self.service_port,
            target_port,
            app_protocol: self.app_protocol.into(),
        }
    }
}

fn ip_families(spec: &ServiceSpec, addresses: &[IpAddr]) -> IpFamilies {
    let named = spec.ip_families.iter().flatten().map(String::as_str);
    let mut families: BTreeSet<&str> = named.collect();
    if families.is_empty() {
        let of = |address: &IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
        families = addresses.iter().map(of).collect();
    }
    match (families.contains("IPv4"), families.contains("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(
    objects: &Objects,
    service: &Service,
    spec: &ServiceSpec,
) -> Option<LoadBalancing> {
    let annotation = |metadata: &ObjectMeta| {
        metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(DISTRIBUTION).cloned())
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
    let inherited = || {
        objects
            .namespaces
            .get(namespace)
            .and_then(|ns| annotation(&ns.metadata))
    };
    let distribution = spec
        .traffic_distribution
        .clone()
        .or_else(|| annotation(&service.metadata))
        .or_else(inherited);
    let (preference, mode) = if spec.internal_traffic_policy.as_deref() == Some("Local") {
        (vec![Scope::Node], Mode::Strict)
    } else {
        match distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => (
                vec![Scope::Network, Scope::Region, Scope::Zone],
                Mode::Failover,
            ),
            Some("PreferSameNode") => (
                vec![
                    Scope::Network,
                    Scope::Region,
                    Scope::Zone,
                    Scope::Subzone,
                    Scope::Node,
                ],
                Mode::Failover,
            ),
            Some(_) | None => (Vec::new(), Mode::UnspecifiedMode),
        }
    };
    let health = if spec.publish_not_ready_addresses == Some(true) {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    let balancing = LoadBalancing {
        routing_preference: preference.into_iter().map(Into::into).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    };
    (balancing != LoadBalancing::default()).then_some(balancing)
}
