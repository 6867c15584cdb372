//! Which objects may be about a service, without a look at all of them for each: a mesh of a thousand services has thousands of
//! routes and rules, and all of it is computed anew with every edit.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use leyline_types::NamespacedName;

use super::{
    backend_tls::BackendTls,
    names::{fit, full_host},
    rules,
};
use crate::objects::{
    AuthorizationPolicy, Objects, TargetRef, WAYPOINT_CLASS,
    l7::{
        destination_rule::DestinationRule,
        envoy_filter::EnvoyFilter,
        gateway_route::{GrpcRoute, HttpRoute, ParentRef},
        rate_limit::RateLimit,
        request_authentication::RequestAuthentication,
        telemetry::Telemetry,
        virtual_service::VirtualService,
    },
};
use crate::translate::trust_domains::AuthorizationPolicies;

/// An object with its name.
pub(super) type Known<'a, T> = (&'a NamespacedName, &'a T);

/// All indices.
pub(super) struct Index<'a> {
    pub(super) virtual_services: ByHost<'a, VirtualService>,
    pub(super) destination_rules: ByHost<'a, DestinationRule>,
    pub(super) http_routes: ByParent<'a, HttpRoute>,
    pub(super) grpc_routes: ByParent<'a, GrpcRoute>,
    pub(super) authorization_policies: ByTarget<'a, AuthorizationPolicy>,
    pub(super) request_authentications: ByTarget<'a, RequestAuthentication>,
    pub(super) telemetries: ByTarget<'a, Telemetry>,
    pub(super) rate_limits: ByTarget<'a, RateLimit>,
    pub(super) envoy_filters: ByTarget<'a, EnvoyFilter>,
    pub(super) backend_tls: BackendTls<'a>,
}

impl<'a> Index<'a> {
    pub(super) fn new(
        objects: &'a Objects,
        policies: &'a AuthorizationPolicies,
        cluster_domain: &str,
    ) -> Self {
        Self {
            virtual_services: ByHost::new(&objects.virtual_services, cluster_domain, |one| {
                one.spec.hosts.iter().map(String::as_str)
            }),
            destination_rules: ByHost::new(&objects.destination_rules, cluster_domain, |one| {
                std::iter::once(one.spec.host.as_str())
            }),
            http_routes: ByParent::new(&objects.http_routes, |one| &one.spec.parent_refs),
            grpc_routes: ByParent::new(&objects.grpc_routes, |one| &one.spec.parent_refs),
            authorization_policies: ByTarget::new(policies, |one| one.spec.targets()),
            request_authentications: ByTarget::new(&objects.request_authentications, |one| {
                one.spec.targets()
            }),
            telemetries: ByTarget::new(&objects.telemetries, |one| one.spec.targets()),
            rate_limits: ByTarget::new(&objects.rate_limits, |one| one.spec.target_refs.iter()),
            envoy_filters: ByTarget::new(&objects.envoy_filters, |one| one.spec.target_refs.iter()),
            backend_tls: BackendTls::new(&objects.backend_tls_policies),
        }
    }
}

/// Objects by the hosts that they name.
pub(super) struct ByHost<'a, T> {
    whole: HashMap<String, Vec<Known<'a, T>>>,
    patterns: Vec<(String, Known<'a, T>)>,
}

impl<'a, T> ByHost<'a, T> {
    fn new<'h, Hosts: Iterator<Item = &'h str>>(
        objects: &'a BTreeMap<NamespacedName, Arc<T>>,
        cluster_domain: &str,
        hosts: impl Fn(&'a T) -> Hosts,
    ) -> Self {
        let mut index = Self {
            whole: HashMap::new(),
            patterns: Vec::new(),
        };
        for (name, object) in objects {
            for host in hosts(object) {
                let host = full_host(host, name.namespace.as_str(), cluster_domain);
                let known = (name, object.as_ref());
                if host.starts_with('*') {
                    index.patterns.push((host, known));
                } else {
                    index.whole.entry(host).or_default().push(known);
                }
            }
        }
        index
    }

    /// Those about a host, with how well they fit. An object comes as often as it names the host.
    pub(super) fn about(&self, host: &str) -> impl Iterator<Item = (usize, Known<'a, T>)> {
        let whole = self.whole.get(host).into_iter().flatten();
        let whole = whole.map(|known| (usize::MAX, *known));
        let patterns = self.patterns.iter();
        let patterns =
            patterns.filter_map(move |(pattern, known)| Some((fit(pattern, host)?, *known)));
        whole.chain(patterns)
    }
}

/// Routes by namespace and name of the services that they name as their parents.
pub(super) struct ByParent<'a, T>(HashMap<String, Vec<Known<'a, T>>>);

impl<'a, T> ByParent<'a, T> {
    fn new(
        objects: &'a BTreeMap<NamespacedName, Arc<T>>,
        parents: impl Fn(&'a T) -> &'a Vec<ParentRef>,
    ) -> Self {
        let mut by_parent: HashMap<_, Vec<Known<'a, T>>> = HashMap::new();
        for (name, object) in objects {
            for parent in parents(object) {
                let key = key(rules::namespace_of(parent, name), &parent.name);
                let routes = by_parent.entry(key).or_default();
                if routes.last().is_none_or(|(last, _)| *last != name) {
                    routes.push((name, object));
                }
            }
        }
        Self(by_parent)
    }

    /// Those that may be attached to a service, in the order of their names.
    pub(super) fn of(&self, namespace: &str, name: &str) -> impl Iterator<Item = Known<'a, T>> {
        let routes = self.0.get(&key(namespace, name));
        routes.into_iter().flatten().copied()
    }
}

/// Policies by their own namespace and the names that their targets have; those without targets by themselves.
pub(super) struct ByTarget<'a, T> {
    targeted: HashMap<String, Vec<Known<'a, T>>>,
    untargeted: Vec<Known<'a, T>>,
}

impl<'a, T> ByTarget<'a, T> {
    fn new<Targets: Iterator<Item = &'a TargetRef>>(
        objects: &'a BTreeMap<NamespacedName, Arc<T>>,
        targets: impl Fn(&'a T) -> Targets,
    ) -> Self {
        let mut index = Self {
            targeted: HashMap::new(),
            untargeted: Vec::new(),
        };
        for (name, object) in objects {
            let known = (name, object.as_ref());
            let mut targets = targets(object).peekable();
            if targets.peek().is_none() {
                index.untargeted.push(known);
            }
            for target in targets {
                let key = key(name.namespace.as_str(), &target.name);
                index.targeted.entry(key).or_default().push(known);
            }
        }
        index
    }

    /// Those that name something of this name in their namespace, be it of another kind. An object comes as often as it does.
    fn named(&self, namespace: &str, name: &str) -> impl Iterator<Item = Known<'a, T>> {
        let found = self.targeted.get(&key(namespace, name));
        found.into_iter().flatten().copied()
    }

    /// All whose targets may be a service, its waypoint or the class of waypoints, in the order of their names.
    pub(super) fn aimed_at(
        &self,
        (namespace, name): (&str, &str),
        gateway: &NamespacedName,
        root_namespace: &str,
    ) -> Vec<Known<'a, T>> {
        let of_service = self.named(namespace, name);
        let of_gateway = self.named(gateway.namespace.as_str(), gateway.name.as_str());
        let of_class = self.named(root_namespace, WAYPOINT_CLASS);
        let mut all: Vec<_> = of_service.chain(of_gateway).chain(of_class).collect();
        all.sort_by_key(|(name, _)| *name);
        all.dedup_by_key(|(name, _)| *name);
        all
    }

    /// Those without targets, in the order of their names.
    pub(super) fn untargeted(&self) -> impl Iterator<Item = Known<'a, T>> {
        self.untargeted.iter().copied()
    }
}

/// What belongs together by namespace and name.
pub(super) fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: &str) -> NamespacedName {
        NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    #[test]
    fn policies_are_found_by_their_targets_in_the_order_of_their_names() {
        let policies: [(&str, &str, &[&str]); 8] = [
            ("istio-system", "of-all", &[]),
            ("istio-system", "of-class", &[WAYPOINT_CLASS]),
            ("shop", "of-other", &["other"]),
            ("shop", "of-service", &["server"]),
            ("shop", "of-service-twice", &["server", "other", "server"]),
            ("bank", "of-namesake", &["server"]),
            ("mesh", "of-gateway", &["waypoint"]),
            ("shop", "of-class-elsewhere", &[WAYPOINT_CLASS]),
        ];
        let policies: BTreeMap<_, _> = policies
            .iter()
            .map(|(namespace, name, targets)| {
                let targets = targets.iter().map(|target| TargetRef {
                    name: (*target).to_owned(),
                    ..TargetRef::default()
                });
                let targets: Vec<TargetRef> = targets.collect();
                (object(namespace, name), Arc::new(targets))
            })
            .collect();
        let index = ByTarget::new(&policies, |targets| targets.iter());
        let gateway = object("mesh", "waypoint");
        let names = |found: Vec<Known<'_, Vec<TargetRef>>>| -> Vec<String> {
            found.iter().map(|(name, _)| name.to_string()).collect()
        };
        let untargeted = names(index.untargeted().collect());
        assert_eq!(untargeted, ["istio-system/of-all"]);
        let aimed = names(index.aimed_at(("shop", "server"), &gateway, "istio-system"));
        let expected = [
            "istio-system/of-class",
            "mesh/of-gateway",
            "shop/of-service",
            "shop/of-service-twice",
        ];
        assert_eq!(aimed, expected);
    }
}
