//! The part of `/config_dump` that this crate knows, in order of the keys. Serializes from the snapshot itself.

use std::{collections::BTreeMap, sync::Arc};

use leyline_authz::Policy;
use leyline_types::{ServiceKey, WorkloadUid};
use serde::Serialize;

use crate::{
    service::Service,
    snapshot::{ServiceState, Snapshot},
    workload::{PortMap, Workload},
};

/// Workloads, services, policies and staged endpoints; to be flattened into the dump of the process.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump<'a> {
    workloads: Vec<&'a Workload>,
    services: Vec<ServiceDump<'a>>,
    policies: Vec<&'a Policy>,
    /// Endpoints of services that are not known yet.
    staged_services: BTreeMap<String, BTreeMap<&'a str, EndpointDump<'a>>>,
}

#[derive(Debug, Serialize)]
struct ServiceDump<'a> {
    #[serde(flatten)]
    service: &'a Service,
    endpoints: BTreeMap<&'a str, EndpointDump<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointDump<'a> {
    workload_uid: &'a WorkloadUid,
    port: &'a PortMap,
}

impl Snapshot {
    /// Everything in it, for the admin page.
    pub fn dump(&self) -> Dump<'_> {
        let mut workloads: Vec<&Workload> = self.workloads.values().map(Arc::as_ref).collect();
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let mut services: Vec<(&ServiceKey, &ServiceState)> = self.services.iter().collect();
        services.sort_by_key(|(key, _)| *key);
        let mut policies: Vec<&Policy> = self.policies.values().map(Arc::as_ref).collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        Dump {
            workloads,
            services: services
                .into_iter()
                .map(|(_, known)| service(known))
                .collect(),
            policies,
            staged_services: self.staged(),
        }
    }

    fn staged(&self) -> BTreeMap<String, BTreeMap<&str, EndpointDump<'_>>> {
        let unknown = self
            .members
            .iter()
            .filter(|(key, _)| !self.services.contains_key(*key));
        unknown
            .map(|(key, members)| {
                let endpoints = members
                    .values()
                    .filter_map(|workload| Some(endpoint(workload, workload.services.get(key)?)));
                (key.to_string(), endpoints.collect())
            })
            .collect()
    }
}

fn service(known: &ServiceState) -> ServiceDump<'_> {
    let endpoints = known.endpoints.iter();
    ServiceDump {
        service: &known.service,
        endpoints: endpoints
            .map(|one| endpoint(&one.workload, &one.ports))
            .collect(),
    }
}

fn endpoint<'a>(workload: &'a Workload, port: &'a PortMap) -> (&'a str, EndpointDump<'a>) {
    let dump = EndpointDump {
        workload_uid: &workload.uid,
        port,
    };
    (workload.uid.as_str(), dump)
}
