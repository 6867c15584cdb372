//! What applies to the services of one waypoint: DestinationRules, policies, and which clusters its routes use.

use std::{
    cell::RefCell,
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
};

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster,
    endpoint::v3::ClusterLoadAssignment,
    route::v3::route_action::{
        HashPolicy,
        hash_policy::{
            ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
        },
    },
};
use leyline_types::NamespacedName;

use super::{
    clusters::{self, Policy, TcpOptions, Traffic, Which, locality::Standpoint},
    index::{ByTarget, Known},
    names::is_exported,
    pb,
    policies::Named,
    routes::{Clusters, UNKNOWN_CLUSTER},
    rule::Target,
    view::{ServiceView, View},
};
use crate::objects::{
    TargetRef, duration,
    l7::{
        destination_rule::{ConsistentHash, DestinationRule},
        request_authentication::RequestAuthentication,
    },
};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const ISTIO_GROUP: &str = "networking.istio.io";

/// Of two objects about a host the one with the more specific host counts, then the one that is nearer to the clients.
type Rank = (usize, Reverse<usize>);

/// Of one waypoint.
pub(super) struct Settings<'a> {
    view: &'a View<'a>,
    gateway: &'a NamespacedName,
    /// Hosts behind this waypoint.
    owned: BTreeSet<&'a str>,
    /// Host and which of its clusters, as routes ask for them.
    used: RefCell<BTreeSet<(String, Which)>>,
}

/// Names the clusters of one kind of traffic.
pub(super) struct ClustersOf<'s, 'a> {
    settings: &'s Settings<'a>,
    /// Where a target names no port.
    port: u16,
    traffic: Traffic,
}

impl<'a> Settings<'a> {
    pub(super) fn new(
        view: &'a View<'a>,
        gateway: &'a NamespacedName,
        owned: &[&'a ServiceView<'a>],
    ) -> Self {
        Self {
            view,
            gateway,
            owned: owned.iter().map(|service| service.host).collect(),
            used: RefCell::default(),
        }
    }

    pub(super) fn clusters_of(&self, port: u16, traffic: Traffic) -> ClustersOf<'_, 'a> {
        ClustersOf {
            settings: self,
            port,
            traffic,
        }
    }

    /// The cluster of a service that the waypoint itself asks; `None` when there is no such port.
    pub(super) fn service_cluster(&self, host: &str, port: u16) -> Option<String> {
        let service = self.view.services.get(host)?;
        service.ports.iter().find(|known| known.number == port)?;
        let which = Which {
            traffic: Traffic::Http,
            port,
            subset: None,
            owned: false,
        };
        let name = which.name(host);
        self.used.borrow_mut().insert((host.to_owned(), which));
        Some(name)
    }

    /// The cluster of what MeshConfig names as `host` or `namespace/host`; `None` when there is no such port.
    pub(super) fn provider_cluster(&self, service: &str, port: u32) -> Option<String> {
        let port = u16::try_from(port).ok()?;
        let (namespace, host) = match service.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, service),
        };
        let known = self.view.services.get(host)?;
        let fits = namespace.is_none_or(|namespace| known.namespace == namespace);
        fits.then(|| self.service_cluster(host, port)).flatten()
    }

    /// Clusters that a configuration of the user's names, as `outbound|8081||host`.
    pub(super) fn named_cluster(&self, name: &str) {
        let mut parts = name.splitn(4, '|');
        if let (Some("outbound"), Some(port), Some(""), Some(host)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && let Ok(port) = port.parse()
        {
            self.service_cluster(host, port);
        }
    }

    /// The rule for a host: the most specific host wins, then the client's namespace (here the waypoint's), the
    /// service's, the root's.
    fn rule(&self, host: &str) -> Option<&'a DestinationRule> {
        self.ranked_rule(host).map(|(_, rule)| rule)
    }

    fn ranked_rule(&self, host: &str) -> Option<(Rank, &'a DestinationRule)> {
        let service = self.view.services.get(host)?;
        let rules = self.view.index.destination_rules.about(host);
        let fitting = rules.filter_map(|(fit, (name, rule))| {
            let namespace = name.namespace.as_str();
            let seen = is_exported(
                &rule.spec.export_to,
                namespace,
                self.gateway.namespace.as_str(),
            );
            let rank = self.rank(fit, namespace, service).filter(|_| seen)?;
            Some((rank, rule))
        });
        fitting.max_by_key(|(rank, _)| *rank)
    }

    /// How much an object of a namespace has to say about a service; `None` where that is nothing.
    fn rank(&self, fit: usize, namespace: &str, service: &ServiceView<'_>) -> Option<Rank> {
        let root = self.view.mesh.root_namespace.as_str();
        let places = [self.gateway.namespace.as_str(), service.namespace, root];
        let place = places.iter().position(|place| *place == namespace)?;
        Some((fit, Reverse(place)))
    }

    fn policy(&self, host: &str, port: u16, subset: Option<&str>) -> Policy {
        let rule = self.ranked_rule(host);
        let of_subset = subset.and_then(|name| {
            let subsets = rule?.1.spec.subsets.iter();
            subsets.into_iter().find(|subset| subset.name == name)
        });
        let of_rule = rule.and_then(|(_, rule)| rule.spec.traffic_policy.as_ref());
        let policy = |of_rule| Policy::of(of_rule, of_subset, port);
        let service = self.view.services.get(host);
        let backend = service.and_then(|service| {
            let found = self.view.index.backend_tls.of_port(service, port)?;
            let rank = self.rank(usize::MAX, service.namespace, service)?;
            Some((found, rank))
        });
        let Some((backend, rank)) = backend else {
            return policy(of_rule);
        };
        // istiod makes a DestinationRule of it, for the very host: of two for one host the older's policy counts alone.
        match rule {
            Some((of, _)) if of > rank => policy(of_rule),
            Some((of, rule)) if of == rank && rule.spec.traffic_policy.is_some() => {
                match backend.compare_age(&rule.metadata) {
                    Some(Ordering::Greater) => policy(of_rule),
                    Some(Ordering::Less | Ordering::Equal) => policy(None).or_tls(backend.tls()),
                    None => policy(of_rule).or_tls(backend.tls()),
                }
            }
            Some(_) | None => policy(None).or_tls(backend.tls()),
        }
    }

    /// The labels of a subset; `None` when there is no such subset.
    fn subset_labels(&self, host: &str, subset: &str) -> Option<&'a BTreeMap<String, String>> {
        let subsets = self.rule(host)?.spec.subsets.iter();
        let found = subsets.into_iter().find(|known| known.name == subset)?;
        Some(&found.labels)
    }

    /// Policies of the service, of the waypoint, and of its class, in the order of their names.
    pub(super) fn policies_of(&self, service: &ServiceView<'_>) -> Vec<Named<'a>> {
        let policies = self.applying(&self.view.index.authorization_policies, service, |policy| {
            policy.spec.targets()
        });
        policies
            .map(|(name, policy)| Named {
                namespace: name.namespace.as_str(),
                name: name.name.as_str(),
                policy,
            })
            .collect()
    }

    /// What is said about the tokens of requests, in the order of names.
    pub(super) fn authentications_of(
        &self,
        service: &ServiceView<'_>,
    ) -> Vec<&'a RequestAuthentication> {
        let policies = self.applying(
            &self.view.index.request_authentications,
            service,
            |policy| policy.spec.targets(),
        );
        policies.map(|(_, policy)| policy).collect()
    }

    /// Objects one of whose targets is this service, this waypoint or its class, in the order of their names.
    pub(super) fn applying<T, Targets: Iterator<Item = &'a TargetRef>>(
        &self,
        index: &ByTarget<'a, T>,
        service: &ServiceView<'_>,
        targets: impl Fn(&'a T) -> Targets,
    ) -> impl Iterator<Item = Known<'a, T>> {
        let aimed = self.aimed_at(index, service).into_iter();
        aimed.filter(move |(name, object)| {
            let namespace = name.namespace.as_str();
            targets(object).any(|target| self.targets(target, namespace, service))
        })
    }

    /// Objects whose targets may be a service of this waypoint, in the order of their names.
    pub(super) fn aimed_at<T>(
        &self,
        index: &ByTarget<'a, T>,
        service: &ServiceView<'_>,
    ) -> Vec<Known<'a, T>> {
        let service = (service.namespace, service.name);
        index.aimed_at(service, self.gateway, &self.view.mesh.root_namespace)
    }

    /// Whether a reference of an object in `namespace` means this service or this waypoint.
    pub(super) fn targets(
        &self,
        target: &TargetRef,
        namespace: &str,
        service: &ServiceView<'_>,
    ) -> bool {
        let of = target.namespace.as_deref().unwrap_or(namespace);
        // Objects of other namespaces cannot be targeted.
        if of != namespace && !of.is_empty() {
            return false;
        }
        match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") | (ISTIO_GROUP, "ServiceEntry") => {
                service.namespace == namespace && service.name == target.name
            }
            (GATEWAY_GROUP, "Gateway") => {
                self.gateway.namespace.as_str() == namespace
                    && self.gateway.name.as_str() == target.name
            }
            (GATEWAY_GROUP, "GatewayClass") => {
                namespace == self.view.mesh.root_namespace
                    && target.name == crate::objects::WAYPOINT_CLASS
            }
            _ => false,
        }
    }

    /// Every cluster that services or routes use, with its endpoints, and those of the pods of the waypoint that see
    /// them differently.
    pub(super) fn into_clusters(
        self,
        owned: &[&ServiceView<'_>],
        pods: &[(&NamespacedName, Standpoint)],
    ) -> BuiltClusters {
        self.use_own(owned);
        let used = self.used.borrow().clone();
        let mut built = BuiltClusters::default();
        for (host, which) in used {
            let Some(service) = self.view.services.get(host.as_str()) else {
                continue;
            };
            let subset = which.subset.as_deref();
            let policy = self.policy(&host, which.port, subset);
            let labels = subset.and_then(|subset| self.subset_labels(&host, subset));
            built.secrets.extend(clusters::secrets(&policy));
            let cluster = clusters::cluster(service, &which, &policy, labels, self.view.config);
            let seen = |from| clusters::assignment(service, &which, &policy, labels, from);
            for (pod, from) in pods {
                if let Some(assignment) = seen(Some(from)) {
                    let of_pod = built.near.entry((*pod).clone()).or_default();
                    of_pod.insert(cluster.name.clone(), assignment);
                }
            }
            if let Some(assignment) = seen(None) {
                built.endpoints.insert(cluster.name.clone(), assignment);
            }
            built.clusters.insert(cluster.name.clone(), cluster);
        }
        built
    }

    /// Each port has its clusters, whether a route names them or not.
    fn use_own(&self, owned: &[&ServiceView<'_>]) {
        for service in owned {
            for port in &service.ports {
                let kinds = [
                    (Traffic::Http, port.protocol.may_be_http()),
                    (Traffic::Tcp, port.protocol.may_be_tcp()),
                ];
                for (traffic, _) in kinds.into_iter().filter(|(_, used)| *used) {
                    let which = Which {
                        traffic,
                        port: port.number,
                        subset: None,
                        owned: true,
                    };
                    self.used
                        .borrow_mut()
                        .insert((service.host.to_owned(), which));
                }
            }
        }
    }
}

/// What one waypoint sends to.
#[derive(Debug, Default)]
pub(super) struct BuiltClusters {
    pub(super) clusters: BTreeMap<String, Cluster>,
    pub(super) endpoints: BTreeMap<String, ClusterLoadAssignment>,
    /// Names of the secrets that clusters are to be given.
    pub(super) secrets: BTreeSet<String>,
    /// By pod, in place of `endpoints`.
    pub(super) near: BTreeMap<NamespacedName, BTreeMap<String, ClusterLoadAssignment>>,
}

impl ClustersOf<'_, '_> {
    /// Istio takes those of the first destination.
    pub(super) fn tcp_options(&self, target: Option<&Target>, host: &str) -> TcpOptions {
        let (host, port, subset) = match target {
            Some(Target::Service { host, port, subset }) => {
                (host.as_str(), port.unwrap_or(self.port), subset.as_deref())
            }
            Some(_) => return TcpOptions::default(),
            None => (host, self.port, None),
        };
        self.settings.policy(host, port, subset).tcp_options()
    }
}

impl Clusters for ClustersOf<'_, '_> {
    fn cluster(&self, target: &Target) -> String {
        let Target::Service { host, port, subset } = target else {
            return UNKNOWN_CLUSTER.to_owned();
        };
        let settings = self.settings;
        let Some(service) = settings.view.services.get(host.as_str()) else {
            return UNKNOWN_CLUSTER.to_owned();
        };
        // The port that is named, else that of the request, else the only one.
        let only = || match service.ports.as_slice() {
            [only] => Some(only.number),
            _ => None,
        };
        let has = |port: u16| service.ports.iter().any(|known| known.number == port);
        let port = match port {
            Some(port) => has(*port).then_some(*port),
            None if has(self.port) => Some(self.port),
            None => only(),
        };
        let known_subset = subset
            .as_deref()
            .is_none_or(|subset| settings.subset_labels(host, subset).is_some());
        let Some(port) = port.filter(|_| known_subset) else {
            return UNKNOWN_CLUSTER.to_owned();
        };
        let which = Which {
            traffic: self.traffic,
            port,
            subset: subset.clone(),
            owned: settings.owned.contains(host.as_str()),
        };
        let name = which.name(host);
        settings.used.borrow_mut().insert((host.clone(), which));
        name
    }

    fn hash_policies(&self, target: &Target) -> Vec<HashPolicy> {
        let Target::Service { host, port, subset } = target else {
            return Vec::new();
        };
        let port = port.unwrap_or(self.port);
        let policy = self.settings.policy(host, port, subset.as_deref());
        let balancer = policy.load_balancer();
        let hash = balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
        hash.and_then(hash_policy)
            .map(|specifier| HashPolicy {
                terminal: false,
                policy_specifier: Some(specifier),
            })
            .into_iter()
            .collect()
    }
}

fn hash_policy(hash: &ConsistentHash) -> Option<PolicySpecifier> {
    if let Some(name) = &hash.http_header_name {
        return Some(PolicySpecifier::Header(Header {
            header_name: name.clone(),
            regex_rewrite: None,
        }));
    }
    if let Some(cookie) = &hash.http_cookie {
        let attributes = cookie.attributes.iter();
        return Some(PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie
                .ttl
                .as_ref()
                .and_then(|ttl| duration::parse(ttl).ok())
                .and_then(pb::duration),
            path: cookie.path.clone().unwrap_or_default(),
            attributes: attributes
                .map(|attribute| CookieAttribute {
                    name: attribute.name.clone(),
                    value: attribute.value.clone().unwrap_or_default(),
                })
                .collect(),
        }));
    }
    if hash.use_source_ip == Some(true) {
        return Some(PolicySpecifier::ConnectionProperties(
            ConnectionProperties { source_ip: true },
        ));
    }
    let name = hash.http_query_parameter_name.clone()?;
    Some(PolicySpecifier::QueryParameter(QueryParameter { name }))
}
