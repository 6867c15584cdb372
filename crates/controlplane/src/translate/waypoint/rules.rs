//! Which rules a service's port has: VirtualServices and routes of the Gateway API that are about it (facts A.7).

use std::cmp::Reverse;

use leyline_types::NamespacedName;

use super::{
    from_gateway_api::{self as api, Backends, Ranked, Reference},
    from_virtual_service as vs,
    names::{is_exported, service_host},
    rule::{HttpRule, Retry, Target},
    view::{ServiceView, View},
};
use crate::{
    objects::{
        Kind, ObjectKey, Objects,
        l7::{
            gateway_route::ParentRef,
            virtual_service::{HttpRoute, VirtualService},
        },
        mesh_config::MeshConfig,
    },
    translate::Advice,
};

/// The gateway that means "inside the mesh".
pub(super) const MESH: &str = "mesh";
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The retries of routes that say nothing of them.
pub(super) fn default_retry(config: &MeshConfig) -> Retry {
    let policy = config.default_http_retry_policy.as_ref();
    policy.map_or(Retry::Default, |policy| vs::retry(Some(policy)))
}

/// The HTTP rules in the order in which they count: VirtualServices, else routes of the Gateway API by their rank.
pub(super) fn http(
    view: &View<'_>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
    port: u16,
    advice: &mut Vec<Advice>,
) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (name, virtual_service) in virtual_services(view, gateway, service) {
        let place = vs::Place {
            namespace: name.namespace.as_str(),
            cluster_domain: &view.mesh.cluster_domain,
            port,
        };
        for (index, route) in virtual_service.spec.http.iter().enumerate() {
            advise(name, index, route, advice);
            match &route.delegate {
                None => rules.extend(vs::http_rule(route, &place)),
                Some(delegate) => {
                    let namespace = delegate.namespace.clone();
                    let child = NamespacedName {
                        namespace: namespace
                            .unwrap_or_else(|| name.namespace.to_string())
                            .as_str()
                            .into(),
                        name: delegate.name.as_str().into(),
                    };
                    match view.objects.virtual_services.get(&child) {
                        Some(child_service) => {
                            rules.extend(delegated(route, &child, child_service, view, port))
                        }
                        None => advice.push(Advice {
                            object: ObjectKey::new(
                                Kind::VirtualService,
                                Some(name.namespace.as_str()),
                                name.name.as_str(),
                            ),
                            field: format!("spec.http[{index}].delegate"),
                            reason: format!(
                                "there is no VirtualService {child}: requests that match get 404"
                            ),
                        }),
                    }
                }
            }
        }
    }
    if rules.is_empty() {
        rules = gateway_rules(view, service, port);
    }
    rules
}

/// Matches of the parent hold together with those of the child.
fn delegated(
    parent: &HttpRoute,
    name: &NamespacedName,
    child: &VirtualService,
    view: &View<'_>,
    port: u16,
) -> Vec<HttpRule> {
    let place = vs::Place {
        namespace: name.namespace.as_str(),
        cluster_domain: &view.mesh.cluster_domain,
        port,
    };
    let routes = child.spec.http.iter().filter_map(|route| {
        let merged = HttpRoute {
            matches: merge(parent, route)?,
            ..route.clone()
        };
        vs::http_rule(&merged, &place)
    });
    routes.collect()
}

/// `None` where they contradict each other: then the child's route never counts.
fn merge(
    parent: &HttpRoute,
    child: &HttpRoute,
) -> Option<Vec<crate::objects::l7::virtual_service::HttpMatch>> {
    if parent.matches.is_empty() {
        return Some(child.matches.clone());
    }
    if child.matches.is_empty() {
        return Some(parent.matches.clone());
    }
    let mut merged = Vec::new();
    for above in &parent.matches {
        for below in &child.matches {
            let mut both = below.clone();
            let conflict = (above.uri.is_some()
                && below.uri.is_some()
                && !narrows(above.uri.as_ref(), below.uri.as_ref()))
                || (above.method.is_some()
                    && below.method.is_some()
                    && above.method != below.method)
                || (above.authority.is_some()
                    && below.authority.is_some()
                    && above.authority != below.authority)
                || (above.port.is_some() && below.port.is_some() && above.port != below.port);
            if conflict {
                continue;
            }
            both.uri = below.uri.clone().or_else(|| above.uri.clone());
            both.method = below.method.clone().or_else(|| above.method.clone());
            both.scheme = below.scheme.clone().or_else(|| above.scheme.clone());
            both.authority = below.authority.clone().or_else(|| above.authority.clone());
            both.port = below.port.or(above.port);
            both.headers.extend(above.headers.clone());
            both.without_headers.extend(above.without_headers.clone());
            both.query_params.extend(above.query_params.clone());
            merged.push(both);
        }
    }
    (!merged.is_empty()).then_some(merged)
}

/// Whether all that `below` matches is matched by `above` too.
fn narrows(
    above: Option<&crate::objects::l7::StringMatch>,
    below: Option<&crate::objects::l7::StringMatch>,
) -> bool {
    let (Some(above), Some(below)) = (above, below) else {
        return true;
    };
    match &above.prefix {
        Some(prefix) => [&below.exact, &below.prefix]
            .into_iter()
            .flatten()
            .any(|text| text.starts_with(prefix.as_str())),
        None => above == below,
    }
}

fn advise(name: &NamespacedName, index: usize, route: &HttpRoute, advice: &mut Vec<Advice>) {
    for (at, matched) in route.matches.iter().enumerate() {
        if let Some(part) = vs::unknowable(matched) {
            advice.push(Advice {
                object: ObjectKey::new(
                    Kind::VirtualService,
                    Some(name.namespace.as_str()),
                    name.name.as_str(),
                ),
                field: format!("spec.http[{index}].match[{at}].{part}"),
                reason: "a waypoint does not know this of its clients: the match never holds"
                    .to_owned(),
            });
        }
    }
}

/// Those whose hosts have the service, of its namespace or the waypoint's, oldest first.
pub(super) fn virtual_services<'a>(
    view: &View<'a>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
) -> Vec<(&'a NamespacedName, &'a VirtualService)> {
    let all = view.index.virtual_services.about(service.host);
    let mut found: Vec<_> = all
        .map(|(_fit, known)| known)
        .filter(|(name, _)| {
            name.namespace == gateway.namespace || name.namespace.as_str() == service.namespace
        })
        .filter(|(name, one)| {
            is_exported(
                &one.spec.export_to,
                name.namespace.as_str(),
                gateway.namespace.as_str(),
            )
        })
        .filter(|(_, one)| {
            one.spec.gateways.is_empty() || one.spec.gateways.iter().any(|gateway| gateway == MESH)
        })
        .collect();
    found.sort_by_key(|(name, one)| {
        let created = one
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.to_string());
        // Written by hand there is no time; those count as the youngest.
        (created.is_none(), created, *name)
    });
    // One may name the host more than once.
    found.dedup_by_key(|(name, _)| *name);
    found
}

fn gateway_rules(view: &View<'_>, service: &ServiceView<'_>, port: u16) -> Vec<HttpRule> {
    let mut ranked: Vec<(Ranked, String)> = Vec::new();
    let mut add = |name: &NamespacedName, rules: Vec<Ranked>| {
        let place = name.to_string();
        ranked.extend(rules.into_iter().map(|rule| (rule, place.clone())));
    };
    for (name, route) in view.index.http_routes.of(service.namespace, service.name) {
        if is_attached(&route.spec.parent_refs, name, service, port) {
            let backends = finder(view, name, "HTTPRoute");
            add(
                name,
                api::http_rules(name.name.as_str(), &route.spec.rules, &backends),
            );
        }
    }
    for (name, route) in view.index.grpc_routes.of(service.namespace, service.name) {
        if is_attached(&route.spec.parent_refs, name, service, port) {
            let backends = finder(view, name, "GRPCRoute");
            add(
                name,
                api::grpc_rules(name.name.as_str(), &route.spec.rules, &backends),
            );
        }
    }
    // Equal ones stay in the order of their routes and within a route.
    ranked.sort_by(|(one, place), (other, of)| {
        (Reverse(one.rank), place).cmp(&(Reverse(other.rank), of))
    });
    ranked.into_iter().map(|(ranked, _)| ranked.rule).collect()
}

/// Whether a route names this port of the service as its parent. A route of another namespace is one of consumers, which
/// a waypoint does not tell apart, and is left out (facts E.1).
pub(super) fn is_attached(
    parents: &[ParentRef],
    route: &NamespacedName,
    service: &ServiceView<'_>,
    port: u16,
) -> bool {
    parents.iter().any(|parent| {
        let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let namespace = namespace_of(parent, route);
        let of_service = matches!(
            (group, kind),
            ("" | "core", "Service") | ("networking.istio.io", "ServiceEntry")
        );
        of_service
            && namespace == service.namespace
            && route.namespace.as_str() == service.namespace
            && parent.name == service.name
            && parent.port.is_none_or(|wanted| wanted == i64::from(port))
            && parent.section_name.as_ref().is_none_or(|wanted| {
                service
                    .sections
                    .contains(&(wanted.as_str(), u32::from(port)))
            })
    })
}

/// The namespace in which a route's parent is.
pub(super) fn namespace_of<'a>(parent: &'a ParentRef, route: &'a NamespacedName) -> &'a str {
    let namespace = parent.namespace.as_deref();
    namespace.unwrap_or_else(|| route.namespace.as_str())
}

pub(super) struct Finder<'a> {
    objects: &'a Objects,
    view: &'a View<'a>,
    route: &'a NamespacedName,
    kind: &'static str,
}

/// Finds the backends of a route.
pub(super) fn finder<'a>(
    view: &'a View<'a>,
    route: &'a NamespacedName,
    kind: &'static str,
) -> Finder<'a> {
    Finder {
        objects: view.objects,
        view,
        route,
        kind,
    }
}

impl Finder<'_> {
    /// A ReferenceGrant of the other namespace lets this kind of route name the object.
    fn is_granted(&self, namespace: &str, reference: &Reference<'_>) -> bool {
        let reference = (reference.group, reference.kind, reference.name);
        is_granted(self.objects, (self.kind, self.route), namespace, reference)
    }
}

/// Whether a route of a kind may name an object (group, kind, name) of a namespace.
pub(super) fn is_granted(
    objects: &Objects,
    (route_kind, route): (&str, &NamespacedName),
    namespace: &str,
    (group, kind, object): (&str, &str, &str),
) -> bool {
    namespace == route.namespace.as_str()
        || objects.reference_grants.iter().any(|(name, grant)| {
            let from = grant.spec.from.iter().any(|from| {
                from.group == GATEWAY_GROUP
                    && from.kind == route_kind
                    && from.namespace == route.namespace.as_str()
            });
            let to = grant.spec.to.iter().any(|to| {
                to.group == group
                    && to.kind == kind
                    && to.name.as_deref().is_none_or(|name| name == object)
            });
            name.namespace.as_str() == namespace && from && to
        })
}

impl Backends for Finder<'_> {
    fn target(&self, reference: &Reference<'_>) -> Target {
        let namespace = reference.namespace.unwrap_or(self.route.namespace.as_str());
        if !self.is_granted(namespace, reference) {
            return Target::Unknown;
        }
        let host = match (reference.group, reference.kind) {
            ("" | "core", "Service") => {
                let name = NamespacedName {
                    namespace: namespace.into(),
                    name: reference.name.into(),
                };
                service_host(&name, &self.view.mesh.cluster_domain)
            }
            ("networking.istio.io", "Hostname") => reference.name.to_ascii_lowercase(),
            _ => return Target::Unknown,
        };
        Target::Service {
            host,
            port: reference.port,
            subset: None,
        }
    }
}
