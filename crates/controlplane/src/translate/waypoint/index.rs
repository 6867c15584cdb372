//! Which objects may be about a service, without a look at all of them for each: a mesh of a thousand services has thousands of
//! routes and rules, and all of it is computed anew with every edit.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use leyline_types::NamespacedName;

use super::{
    names::{fit, full_host},
    rules,
};
use crate::objects::{
    Objects,
    l7::{
        destination_rule::DestinationRule,
        gateway_route::{GrpcRoute, HttpRoute, ParentRef},
        virtual_service::VirtualService,
    },
};

/// An object with its name.
pub(super) type Known<'a, T> = (&'a NamespacedName, &'a T);

/// All indices.
pub(super) struct Index<'a> {
    pub(super) virtual_services: ByHost<'a, VirtualService>,
    pub(super) destination_rules: ByHost<'a, DestinationRule>,
    pub(super) http_routes: ByParent<'a, HttpRoute>,
    pub(super) grpc_routes: ByParent<'a, GrpcRoute>,
}

impl<'a> Index<'a> {
    pub(super) fn new(objects: &'a Objects, cluster_domain: &str) -> Self {
        Self {
            virtual_services: ByHost::new(&objects.virtual_services, cluster_domain, |one| {
                one.spec.hosts.iter().map(String::as_str)
            }),
            destination_rules: ByHost::new(&objects.destination_rules, cluster_domain, |one| {
                std::iter::once(one.spec.host.as_str())
            }),
            http_routes: ByParent::new(&objects.http_routes, |one| &one.spec.parent_refs),
            grpc_routes: ByParent::new(&objects.grpc_routes, |one| &one.spec.parent_refs),
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

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}
