//! Kubernetes objects to what node proxies subscribe to: workloads, services, authorization policies; and which pods
//! each node shall enrol. Pure: the same objects and enrolment give the same bytes and versions.

mod authorization;
mod conditions;
mod endpoints;
mod enrolment;
mod inventory;
pub(crate) mod keys;
mod locality;
mod mesh_config;
mod networks;
mod peer_authentication;
mod require_waypoint;
mod resource;
mod selectors;
mod service_entries;
mod services;
mod session_affinity;
mod trust_domains;
pub mod waypoint;
mod waypoints;
mod workload_entries;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use leyline_proto::istio::{security::Authorization, workload::zds::Exempt};
use leyline_types::{Identity, InterfaceName, NamespacedName, TrustDomain, WorkloadName};

use crate::objects::{ObjectKey, Objects};

pub use keys::{KeySets, KeySource};
pub use resource::{Resource, Resources};
pub use waypoint::{Finding, WaypointConfigs};

/// What holds for the whole mesh.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// In every identity.
    pub trust_domain: TrustDomain,
    /// First part of every workload's uid.
    pub cluster_id: String,
    /// Policies without a selector in it hold for the whole mesh; its labels name the network.
    pub root_namespace: String,
    /// Suffix of service host names.
    pub cluster_domain: String,
    /// Service accounts of node proxies, which are never enrolled.
    pub node_accounts: Vec<NamespacedName>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster_id: "Kubernetes".to_owned(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_accounts: vec![NamespacedName {
                namespace: "istio-system".into(),
                name: "ztunnel".into(),
            }],
        }
    }
}

/// Something about a valid object that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Advice {
    /// The object.
    pub object: ObjectKey,
    /// The field.
    pub field: String,
    /// What and why.
    pub reason: String,
}

/// A pod that is to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPod {
    /// What it is called.
    pub name: WorkloadName,
    /// Tells it from an earlier pod of the same name: its node, account, addresses, and Kubernetes' uid where given.
    pub instance: String,
    /// What of it is left alone.
    pub exempt: Exempt,
    /// Interfaces by which its guests send.
    pub reroute: Vec<InterfaceName>,
}

/// The pods of a node that are to be enrolled, by uid.
pub type WantedPods = BTreeMap<String, WantedPod>;

/// Instances of the pods whose node reported the capture in place, by uid.
pub type Captured = BTreeMap<String, String>;

/// The whole of it.
#[derive(Clone, Debug, Default)]
pub struct Translation {
    /// Workloads by uid, services by `namespace/hostname`.
    pub addresses: Arc<Resources>,
    /// Policies by `namespace/name`.
    pub authorizations: Arc<Resources>,
    /// For each node.
    pub wanted: BTreeMap<String, WantedPods>,
    /// The node of each pod, by uid.
    pub pod_nodes: BTreeMap<String, String>,
    /// Namespace and service account of the live pods of each node.
    pub identities: BTreeMap<String, BTreeSet<(String, String)>>,
    /// The configuration of each waypoint.
    pub waypoints: WaypointConfigs,
    /// The Gateway that each live pod of a waypoint is an instance of, with the service account that it must prove.
    pub waypoint_pods: BTreeMap<NamespacedName, WaypointPod>,
    /// For the authors of the objects.
    pub advice: Vec<Advice>,
    /// Conditions of objects that do not hold.
    pub findings: Vec<Finding>,
}

/// A pod of a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointPod {
    /// Its Gateway.
    pub gateway: NamespacedName,
    /// Its service account, of the same namespace.
    pub service_account: String,
}

impl Translation {
    /// Whether a pod that has not ended runs on the node with the identity's namespace and service account.
    pub(crate) fn runs_on(&self, node: &str, identity: &Identity) -> bool {
        let account = (
            identity.namespace().to_string(),
            identity.service_account().to_string(),
        );
        // No node: a pod that is not scheduled yet runs nowhere.
        !node.is_empty()
            && self
                .identities
                .get(node)
                .is_some_and(|accounts| accounts.contains(&account))
    }
}

/// Computes everything; parts of waypoints that stay the same are taken from `before`.
pub fn translate(
    objects: &Objects,
    captured: &Captured,
    mesh: &MeshSettings,
    keys: &KeySets,
    before: &WaypointConfigs,
) -> Translation {
    let mut advice = Vec::new();
    let networks = networks::Networks::new(objects, mesh, &mut advice);
    inventory::advise(objects, mesh, &mut advice);
    let waypoints = waypoints::Waypoints::new(objects, mesh, &networks);
    let services = services::services(objects, mesh, &networks, &waypoints, &mut advice);
    let hosts = service_entries::services(objects, &networks, &waypoints, &services, &mut advice);
    let config = mesh_config::of(objects, mesh, &mut advice);
    let trust_domains = trust_domains::TrustDomains::new(mesh, &config);
    let authorization_policies = trust_domains.expand(&objects.authorization_policies);
    let policies = authorization::Policies::new(&authorization_policies, mesh, &mut advice);
    let peers = peer_authentication::PeerAuthentications::new(objects, mesh, &mut advice);
    let wanted = enrolment::wanted(objects, mesh);

    let context = workloads::Context {
        objects,
        mesh,
        services: services::by_selector(all_services(&services, &hosts)),
        slices: &endpoints::Slices::new(objects, &services),
        policies: &policies,
        peers: &peers,
        captured,
        wanted: &wanted,
        networks: &networks,
        waypoints: &waypoints,
    };
    let mut required = require_waypoint::RequireWaypoint::new(&trust_domains);
    let all_services: Vec<&services::MeshService> = all_services(&services, &hosts).collect();
    let (placed, mut members) = of_pods(&context, &all_services, &mut required, &mut advice);
    members.extend(of_others(&context, &hosts));
    trust_domains.tell_all(&mut members);
    let addresses = addresses(&members, &all_services);
    let policies = policies.into_wire().into_iter().chain(peers.into_wire());
    let authorizations = authorizations(policies.chain(required.into_wire()));
    let waypoint_pods = waypoint_pods(objects, &waypoints);
    let direct = waypoint::by_gateway(&members, &waypoints.addresses());
    let inputs = waypoint::Inputs::new(
        (objects, mesh, keys, direct),
        (&config, &trust_domains, &authorization_policies),
        (&all_services, &members),
        (waypoints.names(), &waypoint_pods),
    );
    Translation {
        addresses: Arc::new(addresses),
        authorizations: Arc::new(authorizations),
        wanted,
        pod_nodes: placed.0,
        identities: placed.1,
        waypoints: waypoint::configs(&inputs, before, &mut advice),
        findings: waypoint::findings(&inputs),
        waypoint_pods,
        advice: in_order(advice),
    }
}

/// Each once.
fn in_order(mut advice: Vec<Advice>) -> Vec<Advice> {
    advice.sort();
    advice.dedup();
    advice
}

/// Of Kubernetes and of ServiceEntries.
fn all_services<'a>(
    kubernetes: &'a BTreeMap<NamespacedName, services::MeshService>,
    hosts: &'a [service_entries::EntryService],
) -> impl Iterator<Item = &'a services::MeshService> {
    let hosts = hosts.iter().map(|host| &host.service);
    kubernetes.values().chain(hosts)
}

fn authorizations(policies: impl Iterator<Item = Authorization>) -> Resources {
    let policies = policies.map(|policy| {
        let name = format!("{}/{}", policy.namespace, policy.name);
        (name, resource::authorization(&policy))
    });
    policies.collect()
}

fn addresses(members: &[waypoint::Member], services: &[&services::MeshService]) -> Resources {
    let services = services.iter().map(|service| {
        let name = format!("{}/{}", service.wire.namespace, service.wire.hostname);
        (name, resource::service(&service.wire))
    });
    let members = members.iter().map(|member| {
        let workload = &member.workload;
        (workload.uid.clone(), resource::workload(workload))
    });
    members.chain(services).collect()
}

/// The pods that may ask for the configuration of a waypoint.
fn waypoint_pods(
    objects: &Objects,
    waypoints: &waypoints::Waypoints<'_>,
) -> BTreeMap<NamespacedName, WaypointPod> {
    let pods = objects.pods.iter();
    let pods = pods.filter(|(_, pod)| workloads::is_live(pod));
    pods.filter_map(|(name, pod)| {
        let (gateway, _) = waypoints.gateway_of(pod)?;
        let pod = WaypointPod {
            gateway,
            service_account: workloads::service_account_of(pod).to_owned(),
        };
        Some((name.clone(), pod))
    })
    .collect()
}

/// The node of each pod by uid, and the accounts in use on each node.
type Placement = (
    BTreeMap<String, String>,
    BTreeMap<String, BTreeSet<(String, String)>>,
);

/// The workloads of pods, and where they are.
fn of_pods(
    context: &workloads::Context<'_>,
    services: &[&services::MeshService],
    required: &mut require_waypoint::RequireWaypoint<'_>,
    advice: &mut Vec<Advice>,
) -> (Placement, Vec<waypoint::Member>) {
    let mut members = Vec::new();
    let services = services.iter();
    let by_key: HashMap<&str, &services::MeshService> = services
        .map(|service| (service.key.as_str(), *service))
        .collect();
    let mut pod_nodes = BTreeMap::new();
    let mut identities: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for pod in context.objects.pods.values() {
        if workloads::is_live(pod) {
            let accounts = identities.entry(workloads::node_of(pod).to_owned());
            accounts.or_default().insert((
                workloads::namespace_of(pod).to_owned(),
                workloads::service_account_of(pod).to_owned(),
            ));
        }
        if let Some(mut workload) = workloads::of_pod(context, pod, advice) {
            let of_pod = workload.services.keys();
            let of_pod = of_pod.filter_map(|key| by_key.get(key.as_str()).copied());
            let policy = required.attach(&workload.namespace, of_pod, context.waypoints);
            workload.authorization_policies.extend(policy);
            pod_nodes.insert(workload.uid.clone(), workload.node.clone());
            members.push(waypoint::Member {
                workload,
                labels: pod.metadata.labels.clone().unwrap_or_default(),
            });
        }
    }
    ((pod_nodes, identities), members)
}

/// The workloads that are no pods.
fn of_others(
    context: &workloads::Context<'_>,
    hosts: &[service_entries::EntryService],
) -> impl Iterator<Item = waypoint::Member> {
    let endpoints = endpoints::workloads(context).into_iter();
    let gateways = context.networks.workloads(context.objects);
    let entries = workload_entries::workloads(context, hosts);
    let all = endpoints.chain(gateways).chain(entries);
    all.map(waypoint::Member::without_labels)
}

/// Uid of the workload of a pod.
fn pod_uid(mesh: &MeshSettings, namespace: &str, name: &str) -> String {
    format!("{}//Pod/{namespace}/{name}", mesh.cluster_id)
}

/// Whether all of `selector` is in `labels`. An empty selector chooses nothing here; callers that mean "all" say so.
fn selects(selector: &BTreeMap<String, String>, labels: Option<&BTreeMap<String, String>>) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

#[cfg(test)]
mod tests;
