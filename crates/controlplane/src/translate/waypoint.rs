//! The user's services, routes and policies to the Envoy configuration of each waypoint (facts A): listeners, clusters,
//! endpoints and routes. Pure: the same objects give equal messages.

mod authentication;
mod authorizers;
mod backend_tls;
mod claims;
mod clusters;
mod direct;
mod envoy_filters;
mod findings;
mod from_gateway_api;
mod from_virtual_service;
mod in_order;
mod index;
mod limits;
mod listeners;
pub(super) mod names;
mod pb;
mod policies;
mod proxy_headers;
mod routes;
mod rule;
mod rules;
mod secrets;
mod settings;
mod stream_rules;
mod telemetry;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use leyline_types::NamespacedName;

use super::{
    Advice, KeySets, MeshSettings, Resource, Resources, WaypointPod, keys,
    services::MeshService,
    trust_domains::{AuthorizationPolicies, TrustDomains},
};
use crate::objects::{Objects, mesh_config::MeshConfig};
use authorizers::Authorizers;
use clusters::{Traffic, Which, locality::Standpoint};
use in_order::InOrder;
use listeners::{Checks, ClientIdentity, Lookups, Served, ServedPort};
use routes::{Clusters, Domain};
use settings::{BuiltClusters, Settings};
use view::{PortView, ServiceView, View};

pub use findings::Finding;
pub(super) use {direct::by_gateway, findings::findings, view::Member};

/// One type's resources by name, with the messages they were made of, by which it is told without encoding them what has
/// changed.
#[derive(Clone)]
pub struct Built<M> {
    messages: BTreeMap<String, M>,
    /// What is sent.
    pub resources: Arc<Resources>,
}

/// Only what there is: some of it is secret.
impl<M> fmt::Debug for Built<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.messages.keys()).finish()
    }
}

impl<M> Default for Built<M> {
    fn default() -> Self {
        Self {
            messages: BTreeMap::new(),
            resources: Arc::default(),
        }
    }
}

impl<M> Built<M> {
    fn new(messages: BTreeMap<String, M>, before: Option<&Self>) -> Self
    where
        M: InOrder,
    {
        if let Some(before) = before.filter(|before| before.messages == messages) {
            return Self {
                messages,
                resources: Arc::clone(&before.resources),
            };
        }
        let kept = |name: &String, message: &M| {
            let before = before.filter(|before| before.messages.get(name) == Some(message))?;
            before.resources.get(name).cloned()
        };
        let resources = messages.iter().map(|(name, message)| {
            let resource = kept(name, message).unwrap_or_else(|| Resource::new(message.to_bytes()));
            (name.clone(), resource)
        });
        Self {
            resources: Arc::new(resources.collect()),
            messages,
        }
    }
}

/// All that one waypoint is told.
#[derive(Clone, Debug, Default)]
pub struct WaypointConfig {
    /// Listeners by name.
    pub listeners: Built<Listener>,
    /// Clusters by name.
    pub clusters: Built<Cluster>,
    /// Endpoints by the name of their cluster.
    pub endpoints: Built<ClusterLoadAssignment>,
    /// The same for pods of the waypoint that are nearer to some than to others.
    near: BTreeMap<NamespacedName, Near>,
    /// Routes by the name of the chain that uses them.
    pub routes: Built<RouteConfiguration>,
    /// Certificates, keys and roots by the names that clusters have for them.
    pub secrets: Built<Secret>,
}

/// Endpoints as one pod sees them.
#[derive(Clone, Debug, Default)]
struct Near {
    /// Only those that differ.
    built: Built<ClusterLoadAssignment>,
    /// With all others.
    all: Arc<Resources>,
}

impl WaypointConfig {
    /// The endpoints for one of its pods.
    pub fn endpoints_of(&self, pod: &NamespacedName) -> &Arc<Resources> {
        let near = self.near.get(pod);
        near.map_or(&self.endpoints.resources, |near| &near.all)
    }
}

impl Near {
    fn new(
        messages: BTreeMap<String, ClusterLoadAssignment>,
        endpoints: &Built<ClusterLoadAssignment>,
        before: Option<&Self>,
    ) -> Self {
        let built = Built::new(messages, before.map(|before| &before.built));
        let mut all = Resources::clone(&endpoints.resources);
        let own = built.resources.iter();
        all.extend(own.map(|(name, resource)| (name.clone(), resource.clone())));
        Self {
            all: Arc::new(all),
            built,
        }
    }
}

/// The configuration of every waypoint, by its Gateway.
pub type WaypointConfigs = BTreeMap<NamespacedName, Arc<WaypointConfig>>;

/// What they are computed from.
pub(super) struct Inputs<'a> {
    objects: &'a Objects,
    mesh: &'a MeshSettings,
    keys: &'a KeySets,
    config: &'a MeshConfig,
    trust_domains: &'a TrustDomains,
    /// With principals in all trust domains.
    policies: &'a AuthorizationPolicies,
    services: &'a [&'a MeshService],
    members: &'a [Member],
    gateways: BTreeSet<NamespacedName>,
    pods: &'a BTreeMap<NamespacedName, WaypointPod>,
    /// Addresses of workloads by their waypoint.
    direct: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
}

/// Objects, settings, keys of token issuers, and addresses of workloads by their waypoint.
type Given<'a> = (
    &'a Objects,
    &'a MeshSettings,
    &'a KeySets,
    BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
);

/// What the user says of the whole mesh, and the policies with it.
type OfMesh<'a> = (&'a MeshConfig, &'a TrustDomains, &'a AuthorizationPolicies);

impl<'a> Inputs<'a> {
    pub(super) fn new(
        (objects, mesh, keys, direct): Given<'a>,
        (config, trust_domains, policies): OfMesh<'a>,
        (services, members): (&'a [&'a MeshService], &'a [Member]),
        (gateways, pods): (
            BTreeSet<NamespacedName>,
            &'a BTreeMap<NamespacedName, WaypointPod>,
        ),
    ) -> Self {
        Self {
            objects,
            mesh,
            keys,
            config,
            trust_domains,
            policies,
            services,
            members,
            gateways,
            pods,
            direct,
        }
    }
}

/// Computes the configurations; parts that equal `before`'s are `before`'s own.
pub(super) fn configs(
    inputs: &Inputs<'_>,
    before: &WaypointConfigs,
    advice: &mut Vec<Advice>,
) -> WaypointConfigs {
    keys::advise(inputs.objects, inputs.keys, advice);
    envoy_filters::advise(inputs.objects, advice);
    if inputs.gateways.is_empty()
        && inputs.objects.rate_limits.is_empty()
        && inputs.objects.telemetries.is_empty()
    {
        return WaypointConfigs::new();
    }
    let services = inputs.services.iter().copied();
    let view = View::new(inputs, services);
    telemetry::advise(&view, advice);
    limits::advise(&view, &inputs.gateways, advice);
    inputs
        .gateways
        .iter()
        .map(|gateway| {
            let before = before.get(gateway).map(Arc::as_ref);
            let pods = standpoints(inputs, gateway);
            let direct = inputs.direct.get(gateway);
            let config = waypoint_config(&view, gateway, &pods, direct, before, advice);
            (gateway.clone(), Arc::new(config))
        })
        .collect()
}

/// Where the pods of a waypoint are.
fn standpoints<'a>(
    inputs: &Inputs<'a>,
    gateway: &NamespacedName,
) -> Vec<(&'a NamespacedName, Standpoint)> {
    let pods = inputs
        .pods
        .iter()
        .filter(|(_, pod)| pod.gateway == *gateway);
    let member = |name: &NamespacedName| {
        inputs.members.iter().find(|member| {
            let workload = &member.workload;
            name.name == workload.name.as_str() && name.namespace == workload.namespace.as_str()
        })
    };
    pods.filter_map(|(name, _)| Some((name, Standpoint::of(member(name)?))))
        .collect()
}

fn waypoint_config(
    view: &View<'_>,
    gateway: &NamespacedName,
    pods: &[(&NamespacedName, Standpoint)],
    direct: Option<&BTreeSet<IpAddr>>,
    before: Option<&WaypointConfig>,
    advice: &mut Vec<Advice>,
) -> WaypointConfig {
    let owned = view.behind(gateway);
    let settings = Settings::new(view, gateway, &owned);
    let context = |service| PortContext {
        view,
        gateway,
        service,
        settings: &settings,
    };
    let mut routes = BTreeMap::new();
    let mut served = Vec::with_capacity(owned.len());
    for service in &owned {
        let ports = service.ports.iter();
        let ports = ports.map(|port| context(service).serve(port, &mut routes, advice));
        served.push(Served {
            service,
            ports: ports.collect(),
        });
    }
    let workloads = direct.map(|addresses| direct::workloads(gateway, addresses));
    if let Some(service) = &workloads {
        routes.insert(direct::HTTP.to_owned(), direct::routes(view.config));
        let ports = vec![direct::serve(&context(service), advice)];
        served.push(Served { service, ports });
    }
    let BuiltClusters {
        mut clusters,
        endpoints,
        secrets: named,
        near,
    } = settings.into_clusters(&owned, pods);
    if workloads.is_some() {
        clusters.insert(clusters::ENCAP.to_owned(), clusters::encap(view.config));
    }
    let listeners = listeners::listeners(&served, view.trust_domains, view.config);
    let listeners = listeners.into_iter().map(|one| (one.name.clone(), one));
    let endpoints = Built::new(endpoints, before.map(|before| &before.endpoints));
    let near = near.into_iter().map(|(pod, messages)| {
        let before = before.and_then(|before| before.near.get(&pod));
        (pod.clone(), Near::new(messages, &endpoints, before))
    });
    let secrets = secrets::resolve(view.objects, gateway, named);
    WaypointConfig {
        secrets: Built::new(secrets, before.map(|before| &before.secrets)),
        near: near.collect(),
        listeners: Built::new(listeners.collect(), before.map(|before| &before.listeners)),
        clusters: Built::new(clusters, before.map(|before| &before.clusters)),
        endpoints,
        routes: Built::new(routes, before.map(|before| &before.routes)),
    }
}

/// What the chains of one port are made from.
struct PortContext<'v, 'a> {
    view: &'v View<'a>,
    gateway: &'v NamespacedName,
    service: &'v ServiceView<'a>,
    settings: &'v Settings<'a>,
}

impl PortContext<'_, '_> {
    /// Who may ask, in Istio's order: authorizers are asked first, and tokens are read before policies look at their
    /// claims.
    fn checks(&self, port: &PortView, advice: &mut Vec<Advice>) -> Checks {
        let policies = self.settings.policies_of(self.service);
        let port = policies::Port {
            protocol: port.protocol,
            authorizers: &Authorizers {
                config: self.view.config,
                settings: self.settings,
            },
        };
        let mut checks = policies::custom(&policies, port, advice);
        let authentications = self.settings.authentications_of(self.service);
        let tokens = authentication::filter(&authentications, self.view.keys);
        checks.http.extend(tokens);
        checks.extend(policies::checks(&policies));
        checks
    }

    /// Whether applications are told who the client is.
    fn identity(&self) -> ClientIdentity {
        let gateway = self.view.objects.gateways.get(self.gateway);
        ClientIdentity::of(gateway.map(AsRef::as_ref))
    }

    /// The port's chains; its routes are put beside them.
    fn serve(
        &self,
        port: &PortView,
        routes: &mut BTreeMap<String, RouteConfiguration>,
        advice: &mut Vec<Advice>,
    ) -> ServedPort {
        let (service, number) = (self.service, port.number);
        let name = |traffic| {
            let which = Which {
                traffic,
                port: number,
                subset: None,
                owned: true,
            };
            which.name(service.host)
        };
        let (http, tcp) = (name(Traffic::Http), name(Traffic::Tcp));
        let patches =
            envoy_filters::patches(self.view, self.settings, self.gateway, service, number);
        if port.protocol.may_be_http() {
            let rules = rules::http(self.view, self.gateway, service, number, advice);
            let table = routes::Table {
                name: &http,
                host: service.host,
                port: number,
                default_retry: rules::default_retry(self.view.config),
                domain: Domain::of(service),
            };
            let clusters = self.settings.clusters_of(number, Traffic::Http);
            let mut table = routes::table(&table, &rules, &clusters);
            patches.apply(&mut table);
            routes.insert(http.clone(), table);
        }
        let clusters = self.settings.clusters_of(number, Traffic::Tcp);
        let targets = stream_rules::targets(self.view, self.gateway, service, number);
        let mut checks = self.checks(port, advice);
        checks
            .http
            .extend(limits::filters(self.view, self.settings, service));
        checks.http.extend(patches.filters());
        ServedPort {
            port: number,
            protocol: port.protocol,
            tcp_options: clusters
                .tcp_options(targets.first().map(|(target, _)| target), service.host),
            tcp_targets: targets
                .iter()
                .map(|(target, weight)| (clusters.cluster(target), *weight))
                .collect(),
            identity: self.identity(),
            checks,
            lookups: Lookups {
                http: clusters::dynamic::http(service),
                tls: clusters::dynamic::tls(service, port),
            },
            told: telemetry::of(self.view, self.settings, self.gateway, service),
            http,
            tcp,
        }
    }
}
