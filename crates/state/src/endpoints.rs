//! The endpoints of one service, ready to be picked from. Built once for each batch that touches the service.

use std::sync::Arc;

use imbl::OrdMap;
use leyline_types::{Identity, Network, WorkloadUid};

use crate::{
    gateway::union,
    service::{HealthPolicy, Service},
    workload::{Health, PortMap, Workload},
};

/// A workload as an endpoint of a service.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The workload.
    pub(crate) workload: Arc<Workload>,
    /// Its own target ports for this service.
    pub(crate) ports: PortMap,
    /// Who may answer there: the workload and the service's further names, sorted.
    pub(crate) expected: Arc<[Identity]>,
}

/// All endpoints of a service that its health policy keeps, in order of their uid.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    list: Box<[Endpoint]>,
    /// Sum of the capacities up to and with each endpoint, for a weighted pick by binary search.
    cumulative: Box<[u64]>,
}

impl Endpoints {
    /// Those of the workloads that name the service.
    pub(crate) fn new(service: &Service, members: &OrdMap<WorkloadUid, Arc<Workload>>) -> Self {
        let key = service.key();
        let list: Box<[Endpoint]> = members
            .values()
            .filter(|workload| match service.health_policy() {
                HealthPolicy::AllowAll => true,
                HealthPolicy::OnlyHealthy => workload.status == Health::Healthy,
            })
            .filter_map(|workload| {
                Some(Endpoint {
                    ports: workload.services.get(&key)?.clone(),
                    expected: expected(service, workload),
                    workload: Arc::clone(workload),
                })
            })
            .collect();
        let mut sum = 0;
        let cumulative = list
            .iter()
            .map(|endpoint| {
                sum += u64::from(endpoint.workload.capacity);
                sum
            })
            .collect();
        Self { list, cumulative }
    }

    /// The endpoints in order of their uid.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Endpoint> {
        self.list.iter()
    }

    /// The endpoint that a workload is.
    pub(crate) fn by_uid(&self, uid: &WorkloadUid) -> Option<&Endpoint> {
        let at = self
            .list
            .binary_search_by(|endpoint| endpoint.workload.uid.cmp(uid));
        at.ok().and_then(|at| self.list.get(at))
    }

    /// Who may answer for the service in another network, whose gateway chooses the endpoint: any of those there, and the
    /// service's further names.
    pub(crate) fn expected_in(&self, service: &Service, network: &Network) -> Arc<[Identity]> {
        let there = self.list.iter().map(|endpoint| &endpoint.workload);
        let there = there.filter(|workload| workload.network == *network && !workload.is_sum());
        let own = there.flat_map(|workload| workload.expected_identities().iter());
        union(service.identities.iter().chain(own))
    }

    /// Sum of all capacities.
    pub(crate) fn total_capacity(&self) -> u64 {
        self.cumulative.last().copied().unwrap_or(0)
    }

    /// The endpoint that a ticket below the total capacity falls on.
    pub(crate) fn at_ticket(&self, ticket: u64) -> Option<&Endpoint> {
        self.list
            .get(self.cumulative.partition_point(|sum| *sum <= ticket))
    }
}

/// Shares the workload's own list unless the service adds to it.
fn expected(service: &Service, workload: &Workload) -> Arc<[Identity]> {
    if service.identities.is_empty() {
        return Arc::clone(workload.expected_identities());
    }
    let own = workload.expected_identities().iter();
    union(service.identities.iter().chain(own))
}
