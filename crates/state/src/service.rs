//! A service: a name and virtual addresses behind which workloads stand.
//! Made by `convert` only, immutable afterwards and shared by `Arc`. Serialized as `/config_dump` shows it.

use std::net::IpAddr;

use ipnet::IpNet;
use leyline_types::{Identity, Network, NetworkAddress, ServiceKey, Str};
use serde::{Serialize, Serializer};

use crate::workload::Gateway;

/// A Kubernetes Service, or one host of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Short name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    /// Fully qualified host name.
    pub hostname: Str,
    /// Virtual addresses.
    pub vips: Box<[NetworkAddress]>,
    /// Blocks of virtual addresses.
    pub cidr_vips: Box<[NetworkBlock]>,
    /// Ports.
    pub ports: ServicePorts,
    /// Names that its endpoints may have besides their own identity.
    pub subject_alt_names: Box<[Str]>,
    /// Those of them that are workload identities; nothing else can match a peer.
    #[serde(skip)]
    pub identities: Box<[Identity]>,
    /// The waypoint of traffic addressed to this service.
    pub waypoint: Option<Gateway>,
    /// Several waypoints, sampled for each connection.
    pub weighted_waypoints: Box<[WeightedGateway]>,
    /// How an endpoint is chosen; absent means any healthy one.
    pub load_balancer: Option<LoadBalancing>,
    /// Whether a client stays with its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
    /// Address families that it serves; absent means any.
    pub ip_families: Option<IpFamilies>,
    /// Whether it is the chosen one among services of one host name in several namespaces.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
}

impl Service {
    /// Its key in xDS.
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    /// Whether clients of a namespace see it.
    pub(crate) fn is_visible_to(&self, namespace: &Str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => self.namespace == *namespace,
        }
    }

    /// How an endpoint is chosen.
    pub(crate) fn mode(&self) -> Mode {
        self.load_balancer
            .as_ref()
            .map_or(Mode::Standard, |lb| lb.mode)
    }

    /// Whether endpoints that are not ready are used too.
    pub(crate) fn health_policy(&self) -> HealthPolicy {
        self.load_balancer
            .as_ref()
            .map_or(HealthPolicy::OnlyHealthy, |lb| lb.health_policy)
    }

    /// Whether endpoints may be reached at an address of this family.
    pub(crate) fn serves_family_of(&self, address: IpAddr) -> bool {
        serve_family_of(self.ip_families, address)
    }
}

/// Whether a service of these families may have an address of this one.
pub(crate) fn serve_family_of(families: Option<IpFamilies>, address: IpAddr) -> bool {
    match families {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::IPv4) => address.is_ipv4(),
        Some(IpFamilies::IPv6) => address.is_ipv6(),
    }
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients use.
    pub port: u16,
    /// The port of every endpoint; `None` when each endpoint has its own (a named port).
    pub target: Option<u16>,
}

/// The ports of a service, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePorts(Box<[ServicePort]>);

impl ServicePorts {
    /// Takes the ports in any order; of equal service ports the last counts.
    pub fn new(ports: impl IntoIterator<Item = ServicePort>) -> Self {
        let sorted: std::collections::BTreeMap<u16, ServicePort> =
            ports.into_iter().map(|port| (port.port, port)).collect();
        Self(sorted.into_values().collect())
    }

    /// The port that clients call by this number.
    pub(crate) fn find(&self, port: u16) -> Option<ServicePort> {
        self.0.iter().copied().find(|known| known.port == port)
    }
}

impl Serialize for ServicePorts {
    /// Service port to target port, 0 for a named one.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|p| (p.port, p.target.unwrap_or(0))))
    }
}

/// A block of addresses in one network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NetworkBlock {
    /// The network.
    pub network: Network,
    /// The block, without host bits.
    pub cidr: IpNet,
}

/// One of several waypoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedGateway {
    /// The waypoint.
    pub destination: Gateway,
    /// Its share.
    pub weight: u32,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// What the preferences mean.
    pub mode: Mode,
    /// What an endpoint should share with the source, most important first.
    pub routing_preferences: Box<[RoutingScope]>,
    /// Whether endpoints that are not ready are used too.
    pub health_policy: HealthPolicy,
}

/// What routing preferences mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// Nothing: any endpoint.
    Standard,
    /// Only endpoints that share every scope.
    Strict,
    /// The endpoints that share the most leading scopes.
    Failover,
    /// No endpoint at all: to the original destination.
    Passthrough,
}

/// Something that an endpoint can share with the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RoutingScope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// Kubernetes' `sessionAffinity: ClientIP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinity {
    /// For how long after its last connection a client is kept with its endpoint.
    pub timeout_seconds: u32,
}

/// Which endpoints a service keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// Ready ones.
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Address families of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum IpFamilies {
    /// Both.
    Dual,
    /// IPv4 only.
    IPv4,
    /// IPv6 only.
    IPv6,
}

/// Who sees a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Everyone.
    Public,
    /// Clients of its own namespace.
    Namespace,
}
