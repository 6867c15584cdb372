//! One consistent view of the mesh. A connection reads one snapshot once; the writer publishes the next one.
//! Cloning is cheap: all maps are persistent and share what did not change.

use std::{net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdMap};
use leyline_authz::{Policy, PolicySet, Scope};
use leyline_types::{
    Identity, NamespacedName, Network, ServiceKey, Str, WorkloadName, WorkloadUid,
};

use crate::{
    endpoints::Endpoints,
    index::{Candidate, NetworkIndex, SmallSet},
    service::Service,
    workload::{Enrolment, Protocol, Workload},
};

/// What this proxy knows of itself.
#[derive(Clone, Debug, Default)]
pub struct LocalNode {
    /// The network that unqualified addresses belong to.
    pub network: Network,
    /// The node whose workloads are local; every workload is when it is not set.
    pub node: Option<Str>,
}

impl LocalNode {
    /// Whether a workload runs on this node.
    pub(crate) fn holds(&self, workload: &Workload) -> bool {
        self.node.as_ref().is_none_or(|node| *node == workload.node)
    }
}

/// A service with its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct ServiceState {
    pub(crate) service: Arc<Service>,
    pub(crate) endpoints: Arc<Endpoints>,
}

/// Workloads, services and policies as of one update.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) local: Arc<LocalNode>,
    /// The control plane has told everything once, so that what is unknown here is not in the mesh.
    pub(crate) synced: bool,
    pub(crate) workloads: HashMap<WorkloadUid, Arc<Workload>>,
    /// Workloads of this node by name.
    pub(crate) names: HashMap<WorkloadName, SmallSet<Candidate>>,
    pub(crate) networks: HashMap<Network, NetworkIndex>,
    pub(crate) services: HashMap<ServiceKey, ServiceState>,
    /// Workloads by the services that they name, known or not: what is here without a service is staged.
    pub(crate) members: HashMap<ServiceKey, OrdMap<WorkloadUid, Arc<Workload>>>,
    /// Services by host name in lower case.
    pub(crate) hosts: HashMap<Str, SmallSet<ServiceKey>>,
    pub(crate) policies: HashMap<NamespacedName, Arc<Policy>>,
    pub(crate) global_policies: OrdMap<NamespacedName, Arc<Policy>>,
    pub(crate) namespace_policies: HashMap<Str, OrdMap<NamespacedName, Arc<Policy>>>,
}

impl Snapshot {
    /// Our network, as peers in others know it.
    pub fn network(&self) -> &Network {
        &self.local.network
    }

    /// Whether the control plane has told everything once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// A workload by its key.
    pub fn workload_by_uid(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values().map(Arc::as_ref)
    }

    /// A workload of this node by what the node knows of it.
    pub fn local_workload(&self, name: &WorkloadName) -> Option<&Arc<Workload>> {
        self.names
            .get(name)?
            .iter()
            .next()
            .map(|candidate| &candidate.0)
    }

    /// The workload at an address of our network; of several a pod, an enrolled one, a ready one first.
    pub(crate) fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.candidates(ip).next()
    }

    /// The source of a connection: the workload at its address that also has the identity it proved.
    ///
    /// So an address that passed to another pod is not attributed to it. Without an identity (plaintext) only the
    /// address tells.
    pub fn source_workload(
        &self,
        ip: IpAddr,
        identity: Option<&Identity>,
    ) -> Option<&Arc<Workload>> {
        self.candidates(ip).find(|workload| {
            identity.is_none_or(|identity| workload.expected_identities().contains(identity))
        })
    }

    /// All workloads at an address of our network, the likeliest first.
    pub fn workloads_at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.candidates(ip)
    }

    /// Whether an address is that of a service with endpoints that must not be reached in plaintext.
    pub fn stands_for_enrolled(&self, ip: IpAddr) -> bool {
        let network = self.own_network();
        let keys = network.and_then(|network| network.vips.get(&ip));
        let keys = keys.into_iter().flat_map(SmallSet::iter);
        let services = keys.filter_map(|key| self.services.get(key));
        let mut endpoints = services.flat_map(|known| known.endpoints.iter());
        endpoints.any(|endpoint| {
            let workload = &endpoint.workload;
            workload.protocol == Protocol::Hbone || workload.enrolment == Enrolment::Pending
        })
    }

    pub(crate) fn candidates(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.own_network()
            .and_then(|network| network.workloads.get(&ip))
            .into_iter()
            .flat_map(SmallSet::iter)
            .map(|candidate| &candidate.0)
    }

    fn own_network(&self) -> Option<&NetworkIndex> {
        self.networks.get(&self.local.network)
    }

    /// The service that clients of a namespace mean by a host name.
    pub fn service_by_host(&self, host: &str, namespace: &Str) -> Option<&Arc<Service>> {
        let keys = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.hosts.get(host.to_ascii_lowercase().as_str())
        } else {
            self.hosts.get(host)
        };
        self.preferred(keys?, namespace).map(|known| &known.service)
    }

    /// The service that clients of a namespace mean by an address: one that has it, else one whose block holds it.
    pub(crate) fn service_at(&self, ip: IpAddr, namespace: &Str) -> Option<&ServiceState> {
        let network = self.own_network()?;
        if let Some(known) = network
            .vips
            .get(&ip)
            .and_then(|keys| self.preferred(keys, namespace))
        {
            return Some(known);
        }
        // Own namespace before longer prefix before canonical.
        let mut longest = None;
        for keys in network.blocks.containing(ip) {
            let Some(known) = self.preferred(keys, namespace) else {
                continue;
            };
            if known.service.namespace == *namespace {
                return Some(known);
            }
            longest = longest.or(Some(known));
        }
        longest
    }

    /// Of the visible ones: the client's namespace, else the canonical one, else the first.
    fn preferred(&self, keys: &SmallSet<ServiceKey>, namespace: &Str) -> Option<&ServiceState> {
        let mut best: Option<&ServiceState> = None;
        for known in keys.iter().filter_map(|key| self.services.get(key)) {
            if !known.service.is_visible_to(namespace) {
                continue;
            }
            if known.service.namespace == *namespace {
                return Some(known);
            }
            let better = known.service.canonical && best.is_some_and(|b| !b.service.canonical);
            if best.is_none() || better {
                best = Some(known);
            }
        }
        best
    }

    /// A policy by its key.
    pub fn policy(&self, key: &NamespacedName) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that judge connections to a workload, and those it names that nobody has sent.
    pub fn policies_for(&self, workload: &Workload) -> PolicySet {
        let of_namespace = self.namespace_policies.get(&workload.name.namespace);
        let mut set = PolicySet {
            policies: self
                .global_policies
                .values()
                .chain(of_namespace.into_iter().flat_map(OrdMap::values))
                .cloned()
                .collect(),
            missing: Vec::new(),
        };
        for name in &workload.authorization_policies {
            match self.policies.get(name) {
                Some(policy) if applies_by_scope(policy, workload) => {}
                Some(policy) => set.policies.push(Arc::clone(policy)),
                None => set.missing.push(name.clone()),
            }
        }
        set
    }
}

/// Whether a policy is in the set without being named.
fn applies_by_scope(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.key.namespace == workload.name.namespace,
        Scope::WorkloadSelector => false,
    }
}

#[cfg(test)]
mod tests;
