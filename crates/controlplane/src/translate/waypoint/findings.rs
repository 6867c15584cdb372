//! What routes, rules and policies refer to and what is there: for the conditions of their objects, as `controlplane
//! status` shows them, and for the log. Reasons are those of the Gateway API and of Istio's analysis.

mod tls;

use std::collections::{BTreeMap, BTreeSet};

use leyline_types::NamespacedName;

use super::{
    Inputs,
    names::{full_host, service_host},
    rules::is_granted,
};
use crate::{
    objects::{
        Gateway, HBONE, Kind, ObjectKey, TargetRef, WAYPOINT_CLASS,
        l7::{
            gateway_route::{BackendRef, HttpFilter, ParentRef},
            virtual_service::{Destination, VirtualService},
        },
    },
    translate::Advice,
};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const ISTIO_GROUP: &str = "networking.istio.io";
const MESH: &str = "mesh";

/// A condition that does not hold, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `Accepted`, `ResolvedRefs`, `ResolvedWaypoints`.
    pub condition: &'static str,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence, and where.
    pub advice: Advice,
}

/// Services by host name, with whether they have a waypoint.
struct Known<'a> {
    inputs: &'a Inputs<'a>,
    hosts: BTreeMap<&'a str, bool>,
    /// Subsets of each host by name.
    subsets: BTreeMap<String, BTreeSet<&'a str>>,
    found: Vec<Finding>,
}

/// All of them, sorted.
pub(in crate::translate) fn findings(inputs: &Inputs<'_>) -> Vec<Finding> {
    let services = inputs.services.iter();
    let hosts = services.map(|one| (one.wire.hostname.as_str(), !one.waypoints.is_empty()));
    let mut subsets: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, rule) in &inputs.objects.destination_rules {
        let namespace = name.namespace.as_str();
        let host = full_host(&rule.spec.host, namespace, &inputs.mesh.cluster_domain);
        let names = rule.spec.subsets.iter().map(|one| one.name.as_str());
        subsets.entry(host).or_default().extend(names);
    }
    let mut known = Known {
        inputs,
        hosts: hosts.collect(),
        subsets,
        found: Vec::new(),
    };
    known.gateways();
    known.routes();
    known.virtual_services();
    known.destination_rules();
    known.credentials();
    known.backend_tls();
    known.policies();
    known.found.sort();
    known.found
}

impl Known<'_> {
    fn add(
        &mut self,
        object: &ObjectKey,
        (condition, reason): (&'static str, &'static str),
        field: String,
        message: String,
    ) {
        self.found.push(Finding {
            condition,
            reason,
            advice: Advice {
                object: object.clone(),
                field,
                reason: message,
            },
        });
    }

    fn gateways(&mut self) {
        for (name, gateway) in &self.inputs.objects.gateways {
            let object = key(Kind::Gateway, name);
            if !is_served(gateway) {
                let message = format!(
                    "Gateways of class {} are not served; those of class {WAYPOINT_CLASS} are",
                    gateway.spec.gateway_class_name
                );
                let field = "spec.gatewayClassName".to_owned();
                self.add(&object, ("Accepted", "NotServed"), field, message);
            }
        }
    }

    fn routes(&mut self) {
        let objects = self.inputs.objects;
        for (name, route) in &objects.http_routes {
            let rules = route.spec.rules.iter().map(|rule| {
                let mirrors = mirrors(&rule.filters);
                refs(&rule.backend_refs).chain(mirrors).collect()
            });
            self.route(Kind::HttpRoute, name, &route.spec.parent_refs, rules);
        }
        for (name, route) in &objects.grpc_routes {
            let rules = route.spec.rules.iter().map(|rule| {
                let mirrors = mirrors(&rule.filters);
                refs(&rule.backend_refs).chain(mirrors).collect()
            });
            self.route(Kind::GrpcRoute, name, &route.spec.parent_refs, rules);
        }
        for (name, route) in &objects.tcp_routes {
            let rules = route.spec.rules.iter();
            let rules = rules.map(|rule| refs(&rule.backend_refs).collect());
            self.route(Kind::TcpRoute, name, &route.spec.parent_refs, rules);
        }
        for (name, route) in &objects.tls_routes {
            let rules = route.spec.rules.iter();
            let rules = rules.map(|rule| refs(&rule.backend_refs).collect());
            self.route(Kind::TlsRoute, name, &route.spec.parent_refs, rules);
        }
    }

    fn route<'b>(
        &mut self,
        kind: Kind,
        name: &NamespacedName,
        parents: &[ParentRef],
        rules: impl Iterator<Item = Vec<Backend<'b>>>,
    ) {
        let object = key(kind, name);
        for (index, parent) in parents.iter().enumerate() {
            self.parent(&object, name, &format!("spec.parentRefs[{index}]"), parent);
        }
        for (rule, backends) in rules.enumerate() {
            for backend in &backends {
                let field = format!("spec.rules[{rule}].{}", backend.field);
                self.backend(&object, name, field, backend);
            }
        }
    }

    fn parent(&mut self, object: &ObjectKey, name: &NamespacedName, field: &str, of: &ParentRef) {
        let group = of.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = of.kind.as_deref().unwrap_or("Gateway");
        let namespace = of.namespace.as_deref().unwrap_or(name.namespace.as_str());
        let host = match (group, kind) {
            ("" | "core", "Service") => self.service(namespace, &of.name),
            (ISTIO_GROUP, "ServiceEntry") => return,
            _ => {
                let message = format!(
                    "a parent of kind {kind} is not served: routes are attached to Services and ServiceEntries"
                );
                let why = ("Accepted", "InvalidKind");
                return self.add(object, why, field.to_owned(), message);
            }
        };
        let field = field.to_owned();
        if let Some(section) = &of.section_name
            && self.lacks_port(&host, section)
        {
            let message = format!(
                "Service {namespace}/{} has no port `{section}`: the route has no effect",
                of.name
            );
            let why = ("Accepted", "NoMatchingParent");
            return self.add(object, why, format!("{field}.sectionName"), message);
        }
        match self.hosts.get(host.as_str()) {
            None => {
                let message = format!("there is no Service {namespace}/{}", of.name);
                self.add(object, ("Accepted", "NoMatchingParent"), field, message);
            }
            Some(_) if namespace != name.namespace.as_str() => {
                let message = "a route for the clients of its own namespace: a waypoint does not tell them apart, it has no effect";
                let why = ("Accepted", "UnsupportedValue");
                self.add(object, why, field, message.to_owned());
            }
            Some(false) => {
                let message = format!(
                    "Service {namespace}/{} has no waypoint (label istio.io/use-waypoint): the route has no effect",
                    of.name
                );
                let why = ("ResolvedWaypoints", "MissingUseWaypointLabel");
                self.add(object, why, field, message);
            }
            Some(true) => {}
        }
    }

    /// Whether a service that is there has no port of this name.
    fn lacks_port(&self, host: &str, name: &str) -> bool {
        let mut services = self.inputs.services.iter();
        let service = services.find(|service| service.wire.hostname == host);
        service.is_some_and(|service| !service.ports.iter().any(|port| port.name == name))
    }

    fn backend(
        &mut self,
        object: &ObjectKey,
        route: &NamespacedName,
        field: String,
        to: &Backend<'_>,
    ) {
        let namespace = to.namespace.unwrap_or(route.namespace.as_str());
        let host = match (to.group, to.kind) {
            ("" | "core", "Service") => self.service(namespace, to.name),
            (ISTIO_GROUP, "Hostname") => to.name.to_ascii_lowercase(),
            _ => {
                let message = format!("{} is no kind of backend: {}", to.kind, to.without);
                return self.add(object, ("ResolvedRefs", "InvalidKind"), field, message);
            }
        };
        let kind = object.kind.as_str();
        let reference = (to.group, to.kind, to.name);
        if !is_granted(self.inputs.objects, (kind, route), namespace, reference) {
            let message = format!(
                "no ReferenceGrant in namespace {namespace} lets a {kind} of {} name this: {}",
                route.namespace, to.without
            );
            let why = ("ResolvedRefs", "RefNotPermitted");
            return self.add(object, why, field, message);
        }
        if !self.hosts.contains_key(host.as_str()) {
            let message = format!("there is no host {host}: {}", to.without);
            self.add(object, ("ResolvedRefs", "BackendNotFound"), field, message);
        }
    }

    fn service(&self, namespace: &str, name: &str) -> String {
        let name = NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        };
        service_host(&name, &self.inputs.mesh.cluster_domain)
    }

    fn virtual_services(&mut self) {
        for (name, one) in &self.inputs.objects.virtual_services {
            let object = key(Kind::VirtualService, name);
            let gateways = &one.spec.gateways;
            if !gateways.is_empty() && !gateways.iter().any(|gateway| gateway == MESH) {
                let message = "none of these gateways is `mesh`: it has no effect".to_owned();
                let why = ("Accepted", "NotServed");
                self.add(&object, why, "spec.gateways".to_owned(), message);
                continue;
            }
            for (field, destination) in destinations(one) {
                self.destination(&object, name, field, destination);
            }
        }
    }

    fn destination(
        &mut self,
        object: &ObjectKey,
        name: &NamespacedName,
        field: String,
        to: &Destination,
    ) {
        let domain = &self.inputs.mesh.cluster_domain;
        let host = full_host(&to.host, name.namespace.as_str(), domain);
        let why = ("ResolvedRefs", "ReferencedResourceNotFound");
        if !self.hosts.contains_key(host.as_str()) {
            let message = format!("there is no host {host}: requests for it are refused");
            return self.add(object, why, format!("{field}.host"), message);
        }
        let Some(subset) = &to.subset else { return };
        let subsets = self.subsets.get(&host);
        if !subsets.is_some_and(|known| known.contains(subset.as_str())) {
            let message = format!(
                "no DestinationRule of {host} has a subset {subset}: requests for it are refused"
            );
            self.add(object, why, format!("{field}.subset"), message);
        }
    }

    fn destination_rules(&mut self) {
        for (name, rule) in &self.inputs.objects.destination_rules {
            let domain = &self.inputs.mesh.cluster_domain;
            let host = full_host(&rule.spec.host, name.namespace.as_str(), domain);
            if !host.starts_with('*') && !self.hosts.contains_key(host.as_str()) {
                let object = key(Kind::DestinationRule, name);
                let why = ("ResolvedRefs", "ReferencedResourceNotFound");
                let message = format!("there is no host {host}: the rule has no effect");
                self.add(&object, why, "spec.host".to_owned(), message);
            }
        }
    }

    fn policies(&mut self) {
        let objects = self.inputs.objects;
        for (name, one) in &objects.authorization_policies {
            let object = key(Kind::AuthorizationPolicy, name);
            self.targets(&object, name, &one.spec.target_ref, &one.spec.target_refs);
        }
        for (name, one) in &objects.request_authentications {
            let object = key(Kind::RequestAuthentication, name);
            self.targets(&object, name, &one.spec.target_ref, &one.spec.target_refs);
        }
        for (name, one) in &objects.telemetries {
            let object = key(Kind::Telemetry, name);
            self.targets(&object, name, &one.spec.target_ref, &one.spec.target_refs);
        }
        for (name, one) in &objects.envoy_filters {
            let object = key(Kind::EnvoyFilter, name);
            self.targets(&object, name, &None, &one.spec.target_refs);
        }
    }

    fn targets(
        &mut self,
        object: &ObjectKey,
        name: &NamespacedName,
        single: &Option<TargetRef>,
        several: &[TargetRef],
    ) {
        let single = single.iter().map(|one| ("spec.targetRef".to_owned(), one));
        let several = several.iter().enumerate();
        let several = several.map(|(at, one)| (format!("spec.targetRefs[{at}]"), one));
        for (field, target) in single.chain(several) {
            let place = NamespacedName {
                namespace: name.namespace.clone(),
                name: target.name.as_str().into(),
            };
            let there = match target.kind.as_str() {
                "Service" => self
                    .hosts
                    .contains_key(service_host(&place, &self.inputs.mesh.cluster_domain).as_str()),
                "Gateway" => self.inputs.objects.gateways.contains_key(&place),
                "ServiceEntry" => self.inputs.objects.service_entries.contains_key(&place),
                _ => true,
            };
            if !there {
                let message = format!(
                    "there is no {} {place}: it has no effect there",
                    target.kind
                );
                self.add(object, ("Accepted", "TargetNotFound"), field, message);
            }
        }
    }
}

/// Whether a class is one that a mesh acts on.
fn is_served(gateway: &Gateway) -> bool {
    use crate::objects::{EAST_WEST_CLASS, REMOTE_CLASS};
    gateway.is_of_class(WAYPOINT_CLASS)
        || gateway.is_of_class(EAST_WEST_CLASS)
        || gateway.is_of_class(REMOTE_CLASS)
        // A waypoint of another make, which node proxies are told of by its address.
        || gateway.spec.listeners.iter().any(|listener| listener.protocol == HBONE)
}

fn key(kind: Kind, name: &NamespacedName) -> ObjectKey {
    ObjectKey::new(kind, Some(name.namespace.as_str()), name.name.as_str())
}

/// A backend of a route of any kind.
struct Backend<'a> {
    /// Within the rule.
    field: String,
    /// What follows where it is not there.
    without: &'static str,
    group: &'a str,
    kind: &'a str,
    namespace: Option<&'a str>,
    name: &'a str,
}

fn refs<Filter>(backends: &[BackendRef<Filter>]) -> impl Iterator<Item = Backend<'_>> {
    let backends = backends.iter().enumerate();
    backends.map(|(index, one)| Backend {
        field: format!("backendRefs[{index}]"),
        without: "its share is refused",
        group: one.group.as_deref().unwrap_or_default(),
        kind: one.kind.as_deref().unwrap_or("Service"),
        namespace: one.namespace.as_deref(),
        name: &one.name,
    })
}

/// To whom copies go.
fn mirrors(filters: &[HttpFilter]) -> impl Iterator<Item = Backend<'_>> {
    let filters = filters.iter().enumerate();
    let mirrors = filters.filter_map(|(index, one)| Some((index, one.request_mirror.as_ref()?)));
    mirrors.map(|(index, mirror)| {
        let one = &mirror.backend_ref;
        Backend {
            field: format!("filters[{index}].requestMirror.backendRef"),
            without: "no copies are sent",
            group: one.group.as_deref().unwrap_or_default(),
            kind: one.kind.as_deref().unwrap_or("Service"),
            namespace: one.namespace.as_deref(),
            name: &one.name,
        }
    })
}

/// Every destination with its field.
fn destinations(one: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (index, route) in one.spec.http.iter().enumerate() {
        let place = format!("spec.http[{index}]");
        for (at, to) in route.route.iter().enumerate() {
            all.push((format!("{place}.route[{at}].destination"), &to.destination));
        }
        for (at, to) in route.mirrors.iter().enumerate() {
            all.push((
                format!("{place}.mirrors[{at}].destination"),
                &to.destination,
            ));
        }
        if let Some(to) = &route.mirror {
            all.push((format!("{place}.mirror"), to));
        }
    }
    for (index, route) in one.spec.tcp.iter().enumerate() {
        for (at, to) in route.route.iter().enumerate() {
            let field = format!("spec.tcp[{index}].route[{at}].destination");
            all.push((field, &to.destination));
        }
    }
    all
}
