//! A workload: one running instance that can be a source or a destination.
//! Made by `convert` only, immutable afterwards and shared by `Arc`. Serialized as `/config_dump` shows it.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use leyline_types::{
    Identity, NamespacedName, Network, NetworkAddress, ServiceKey, Str, TrustDomain, WorkloadName,
    WorkloadUid,
};
use serde::{Serialize, Serializer};

/// A pod, or another instance that the control plane describes in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The key in xDS.
    pub uid: WorkloadUid,
    /// Name, namespace and service account.
    #[serde(flatten)]
    pub name: WorkloadName,
    /// What its certificate says; shown as the trust domain, as the rest is in the name.
    #[serde(rename = "trustDomain", serialize_with = "trust_domain")]
    pub identity: Identity,
    /// Trust domains that it may be of as well, and its peers.
    #[serde(skip_serializing_if = "<[TrustDomain]>::is_empty")]
    pub trust_domain_aliases: Box<[TrustDomain]>,
    /// The network that its addresses belong to.
    pub network: Network,
    /// Its addresses; none when only a host name is known.
    #[serde(rename = "workloadIps")]
    pub addresses: Box<[IpAddr]>,
    /// Host name to resolve when it has no address.
    pub hostname: Str,
    /// How it is reached.
    pub protocol: Protocol,
    /// Whether it is known for sure how it is reached.
    #[serde(skip_serializing_if = "Enrolment::is_settled")]
    pub enrolment: Enrolment,
    /// Whether it shares the addresses of its node.
    pub network_mode: NetworkMode,
    /// Whether it is ready to serve.
    pub status: Health,
    /// The node that it runs on.
    pub node: Str,
    /// Its cluster.
    pub cluster_id: Str,
    /// Where it runs.
    pub locality: Locality,
    /// Name of the controller that owns it.
    pub workload_name: Str,
    /// Kind of controller.
    pub workload_type: WorkloadType,
    /// Canonical service, for telemetry.
    pub canonical_name: Str,
    /// Canonical revision, for telemetry.
    pub canonical_revision: Str,
    /// Whether the application speaks HBONE itself.
    pub native_tunnel: bool,
    /// How the application wants tunnelled connections delivered.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The waypoint of traffic addressed to this workload.
    pub waypoint: Option<Gateway>,
    /// The gateway of its network, for whoever is in another one.
    pub network_gateway: Option<Gateway>,
    /// Policies that select this workload by label.
    pub authorization_policies: Box<[NamespacedName]>,
    /// Relative weight in load balancing; 0 is never picked.
    pub capacity: u32,
    /// Services that it is an endpoint of, with its own target ports.
    #[serde(skip)]
    pub services: BTreeMap<ServiceKey, PortMap>,
    /// The identities of which a peer must have one to be this workload, its own first; ready to share.
    #[serde(skip)]
    pub(crate) expected: Arc<[Identity]>,
}

impl Workload {
    /// Whether it is a Kubernetes pod; a pod wins over another workload of the same address.
    pub(crate) fn is_pod(&self) -> bool {
        self.uid.as_str().contains("//Pod/")
    }

    /// Whether it must be resolved to be reached.
    pub fn has_only_hostname(&self) -> bool {
        self.addresses.is_empty() && !self.hostname.is_empty()
    }

    /// Whether it stands for all endpoints of a service in another network; then it has no identity of its own.
    pub(crate) fn is_sum(&self) -> bool {
        self.uid.as_str().contains("/SplitHorizonWorkload/")
    }

    /// The identities that a connection to this workload accepts, by address: its own, and the same in each alias of its
    /// trust domain.
    pub fn expected_identities(&self) -> &Arc<[Identity]> {
        &self.expected
    }
}

fn trust_domain<S: Serializer>(identity: &Identity, serializer: S) -> Result<S::Ok, S::Error> {
    identity.trust_domain().serialize(serializer)
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Plain TCP: not enrolled.
    Tcp,
    /// HBONE only: enrolled, never reached in plaintext.
    Hbone,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NetworkMode {
    /// Its own.
    Standard,
    /// Those of its node, so that an address does not tell it.
    HostNetwork,
}

/// Whether a workload is what it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Enrolment {
    /// Its protocol is how it is reached.
    Settled,
    /// It shall be captured and is not yet: in plaintext it must not be reached any more.
    Pending,
}

impl Enrolment {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde asks for a reference"
    )]
    fn is_settled(&self) -> bool {
        *self == Self::Settled
    }
}

/// Readiness as the control plane sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready, or being deleted.
    Unhealthy,
}

/// Kind of controller that made a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A deployment.
    Deployment,
    /// A cron job.
    CronJob,
    /// A pod of its own.
    Pod,
    /// A job.
    Job,
}

/// Where a workload runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Locality {
    /// Region.
    pub region: Str,
    /// Zone within the region.
    pub zone: Str,
    /// Part of the zone.
    pub subzone: Str,
}

/// How an application wants its tunnelled connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ApplicationTunnel {
    /// The framing.
    pub protocol: TunnelProtocol,
    /// The port to deliver to, if not the one asked for.
    pub port: Option<u16>,
}

/// Framing of an application tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelProtocol {
    /// None: bytes as they come.
    None,
    /// The PROXY protocol in front of the bytes.
    Proxy,
}

/// Where a waypoint or a network gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// The place.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Service(key) => key.fmt(f),
            GatewayDestination::Address(address) => address.fmt(f),
        }
    }
}

/// A gateway's place in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum GatewayDestination {
    /// A service.
    Service(ServiceKey),
    /// An address.
    Address(NetworkAddress),
}

/// Target ports by service port, in order of the service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap(Arc<[(u16, u16)]>);

impl PortMap {
    /// Makes a map of `(service port, target port)`; of equal service ports the last counts.
    pub fn new(pairs: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let ports: BTreeMap<u16, u16> = pairs.into_iter().collect();
        Self(ports.into_iter().collect())
    }

    /// The target port of a service port.
    pub fn target(&self, service_port: u16) -> Option<u16> {
        self.0
            .iter()
            .find_map(|(port, target)| (*port == service_port).then_some(*target))
    }
}

impl Serialize for PortMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(port, target)| (port, target)))
    }
}
