//! One batch of changes on its way into the next snapshot. Endpoints are rebuilt at the end, once for each service
//! that the batch touched, however many of its workloads changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use leyline_authz::{Policy, Scope};
use leyline_types::{Identity, NamespacedName, Network, ServiceKey, Str, WorkloadUid};

use super::{Applied, Change};
use crate::{
    endpoints::Endpoints,
    index::{self, Candidate, NetworkIndex},
    service::Service,
    snapshot::{ServiceState, Snapshot},
    workload::{NetworkMode, Protocol, Workload},
};

pub(super) struct Batch<'a> {
    next: Snapshot,
    /// How many local workloads want a certificate of each identity.
    identities: &'a mut HashMap<Identity, usize>,
    /// Whether each identity that the batch touched was wanted before it.
    wanted_before: BTreeMap<Identity, bool>,
    applied: Applied,
    /// Services whose endpoints have to be built again.
    touched: BTreeSet<ServiceKey>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(current: &Snapshot, identities: &'a mut HashMap<Identity, usize>) -> Self {
        Self {
            next: current.clone(),
            identities,
            wanted_before: BTreeMap::new(),
            applied: Applied::default(),
            touched: BTreeSet::new(),
        }
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Workload(workload) => self.put_workload(workload),
            Change::Service(service) => self.put_service(service),
            Change::RemoveAddress(name) => self.remove_address(name),
            Change::Policy(policy) => self.put_policy(policy),
            Change::RemovePolicy(key) => self.remove_policy(&key),
        }
    }

    pub(super) fn finish(mut self) -> (Snapshot, Applied) {
        for key in std::mem::take(&mut self.touched) {
            self.rebuild_endpoints(key);
        }
        for (identity, before) in std::mem::take(&mut self.wanted_before) {
            match (before, self.identities.contains_key(&identity)) {
                (false, true) => self.applied.identities_needed.push(identity),
                (true, false) => self.applied.identities_released.push(identity),
                (true, true) | (false, false) => {}
            }
        }
        (self.next, self.applied)
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        let old = self.next.workloads.get(&workload.uid);
        if old == Some(&workload) {
            return;
        }
        if let Some(old) = old.cloned() {
            self.unlink_workload(&old);
        }
        self.link_workload(&workload);
        self.applied.workloads.insert(workload.uid.clone());
        self.next.workloads.insert(workload.uid.clone(), workload);
    }

    /// The name of a removed address does not say its kind: a workload if there is one, else a service.
    fn remove_address(&mut self, name: Str) {
        let uid = WorkloadUid::new(name);
        if let Some(old) = self.next.workloads.remove(&uid) {
            self.unlink_workload(&old);
            self.applied.workloads.insert(uid);
        } else if let Ok(key) = uid.as_str().parse::<ServiceKey>()
            && let Some(old) = self.next.services.remove(&key)
        {
            self.unlink_service(&key, &old.service);
            self.applied.services.insert(key);
        }
    }

    fn link_workload(&mut self, workload: &Arc<Workload>) {
        let next = &mut self.next;
        let candidate = Candidate(Arc::clone(workload));
        for ip in indexed_addresses(workload) {
            let network = next.networks.entry(workload.network.clone()).or_default();
            index::add(&mut network.workloads, *ip, candidate.clone());
        }
        if next.local.holds(workload) {
            index::add(&mut next.names, workload.name.clone(), candidate);
        }
        for key in workload.services.keys() {
            next.members
                .entry(key.clone())
                .or_default()
                .insert(workload.uid.clone(), Arc::clone(workload));
            self.touched.insert(key.clone());
        }
        if self.wants_certificate(workload) {
            self.note_identity(&workload.identity);
            *self
                .identities
                .entry(workload.identity.clone())
                .or_default() += 1;
        }
    }

    fn unlink_workload(&mut self, workload: &Arc<Workload>) {
        let candidate = Candidate(Arc::clone(workload));
        for ip in indexed_addresses(workload) {
            self.edit_network(&workload.network, |network| {
                index::take(&mut network.workloads, ip, &candidate);
            });
        }
        let next = &mut self.next;
        index::take(&mut next.names, &workload.name, &candidate);
        for key in workload.services.keys() {
            index::take_nested(&mut next.members, key, &workload.uid);
            self.touched.insert(key.clone());
        }
        if self.wants_certificate(workload) {
            self.note_identity(&workload.identity);
            if let Some(count) = self.identities.get_mut(&workload.identity) {
                *count -= 1;
                if *count == 0 {
                    self.identities.remove(&workload.identity);
                }
            }
        }
    }

    /// A local workload that is or answers for an HBONE endpoint.
    fn wants_certificate(&self, workload: &Workload) -> bool {
        let tunnelled = workload.protocol == Protocol::Hbone || workload.native_tunnel;
        tunnelled && self.next.local.holds(workload)
    }

    fn note_identity(&mut self, identity: &Identity) {
        let wanted = self.identities.contains_key(identity);
        self.wanted_before.entry(identity.clone()).or_insert(wanted);
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let key = service.key();
        let old = self.next.services.get(&key).map(|known| &known.service);
        if old == Some(&service) {
            return;
        }
        if let Some(old) = old.cloned() {
            self.unlink_service(&key, &old);
        }
        self.link_service(&key, &service);
        let endpoints = Arc::default();
        self.next
            .services
            .insert(key.clone(), ServiceState { service, endpoints });
        self.touched.insert(key);
    }

    fn link_service(&mut self, key: &ServiceKey, service: &Service) {
        let next = &mut self.next;
        index::add(&mut next.hosts, lower(&service.hostname), key.clone());
        for vip in &service.vips {
            let network = next.networks.entry(vip.network.clone()).or_default();
            index::add(&mut network.vips, vip.address, key.clone());
        }
        for block in &service.cidr_vips {
            let network = next.networks.entry(block.network.clone()).or_default();
            network.blocks.add(block.cidr, key.clone());
        }
    }

    fn unlink_service(&mut self, key: &ServiceKey, service: &Service) {
        index::take(&mut self.next.hosts, &lower(&service.hostname), key);
        for vip in &service.vips {
            self.edit_network(&vip.network, |network| {
                index::take(&mut network.vips, &vip.address, key);
            });
        }
        for block in &service.cidr_vips {
            self.edit_network(&block.network, |network| {
                network.blocks.take(block.cidr, key)
            });
        }
    }

    /// Removes from the index of a network, and the index when nothing is left in it.
    fn edit_network(&mut self, name: &Network, edit: impl FnOnce(&mut NetworkIndex)) {
        let Some(network) = self.next.networks.get_mut(name) else {
            return;
        };
        edit(network);
        if network.is_empty() {
            self.next.networks.remove(name);
        }
    }

    fn rebuild_endpoints(&mut self, key: ServiceKey) {
        let Some(known) = self.next.services.get_mut(&key) else {
            // The workloads wait among the members until the service comes.
            return;
        };
        let members = self.next.members.get(&key);
        let endpoints = members.map(|members| Endpoints::new(&known.service, members));
        known.endpoints = Arc::new(endpoints.unwrap_or_default());
        self.applied.services.insert(key);
    }

    fn put_policy(&mut self, policy: Arc<Policy>) {
        let old = self.next.policies.get(&policy.key);
        if old == Some(&policy) {
            return;
        }
        if let Some(old) = old.cloned() {
            self.unlink_policy(&old);
        }
        let (next, key) = (&mut self.next, policy.key.clone());
        match policy.scope {
            Scope::Global => {
                next.global_policies
                    .insert(key.clone(), Arc::clone(&policy));
            }
            Scope::Namespace => {
                next.namespace_policies
                    .entry(key.namespace.clone())
                    .or_default()
                    .insert(key.clone(), Arc::clone(&policy));
            }
            Scope::WorkloadSelector => {}
        }
        next.policies.insert(key.clone(), policy);
        self.applied.policies.insert(key);
    }

    fn remove_policy(&mut self, key: &NamespacedName) {
        if let Some(old) = self.next.policies.remove(key) {
            self.unlink_policy(&old);
            self.applied.policies.insert(key.clone());
        }
    }

    fn unlink_policy(&mut self, policy: &Policy) {
        let (next, key) = (&mut self.next, &policy.key);
        match policy.scope {
            Scope::Global => {
                next.global_policies.remove(key);
            }
            Scope::Namespace => {
                index::take_nested(&mut next.namespace_policies, &key.namespace, key);
            }
            Scope::WorkloadSelector => {}
        }
    }
}

/// The addresses that tell a workload: those of the host network are shared by all of its node.
fn indexed_addresses(workload: &Workload) -> &[std::net::IpAddr] {
    match workload.network_mode {
        NetworkMode::Standard => &workload.addresses,
        NetworkMode::HostNetwork => &[],
    }
}

/// Host names compare without case.
fn lower(hostname: &Str) -> Str {
    if hostname
        .as_str()
        .bytes()
        .any(|byte| byte.is_ascii_uppercase())
    {
        hostname.as_str().to_ascii_lowercase().into()
    } else {
        hostname.clone()
    }
}
