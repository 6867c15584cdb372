//! VirtualServices and routes of the Gateway API.

use leyline_types::NamespacedName;
use serde_json::Value;

use super::Teller;
use crate::{
    objects::{
        Kind, Objects,
        l7::{
            gateway_route::{BackendRef, HttpFilter, RouteSpec, StreamRule},
            virtual_service::{TcpMatch, TlsMatch, TlsRoute, VirtualServiceSpec},
        },
    },
    translate::{Advice, MeshSettings, waypoint::names::full_host},
};

const UNKNOWABLE: &str = "a waypoint does not know this of its clients: the match never holds";
const NOT_LOOKED_AT: &str = "is not looked at: the match holds without it";
const REFUSED: &str = "is not supported: requests that come here are answered with 500";

pub(super) fn virtual_services(objects: &Objects, mesh: &MeshSettings, advice: &mut Vec<Advice>) {
    for (name, one) in &objects.virtual_services {
        let mut teller = Teller::new(Kind::VirtualService, name, advice);
        for (index, route) in one.spec.http.iter().enumerate() {
            let field = format!("spec.http[{index}]");
            for (at, matched) in route.matches.iter().enumerate() {
                teller.tell_if(
                    matched.stat_prefix.is_some(),
                    format!("{field}.match[{at}].statPrefix"),
                    "has no effect: requests are counted by service",
                );
            }
        }
        for (index, route) in one.spec.tcp.iter().enumerate() {
            for (at, matched) in route.matches.iter().enumerate() {
                of_tcp_match(
                    &format!("spec.tcp[{index}].match[{at}]"),
                    matched,
                    &mut teller,
                );
            }
        }
        for (index, route) in one.spec.tls.iter().enumerate() {
            let field = format!("spec.tls[{index}]");
            of_tls_route(&field, route, (name, &one.spec, mesh), &mut teller);
        }
    }
}

fn of_tcp_match(field: &str, matched: &TcpMatch, teller: &mut Teller<'_>) {
    for (part, is_set, reason) in [
        (
            "sourceLabels",
            !matched.source_labels.is_empty(),
            UNKNOWABLE,
        ),
        (
            "sourceNamespace",
            matched.source_namespace.is_some(),
            UNKNOWABLE,
        ),
        (
            "destinationSubnets",
            !matched.destination_subnets.is_empty(),
            NOT_LOOKED_AT,
        ),
        (
            "sourceSubnet",
            matched.source_subnet.is_some(),
            NOT_LOOKED_AT,
        ),
    ] {
        teller.tell_if(is_set, format!("{field}.{part}"), reason);
    }
}

fn of_tls_route(
    field: &str,
    route: &TlsRoute,
    (name, spec, mesh): (&NamespacedName, &VirtualServiceSpec, &MeshSettings),
    teller: &mut Teller<'_>,
) {
    let full = |host: &String| full_host(host, name.namespace.as_str(), &mesh.cluster_domain);
    let hosts: Vec<String> = spec.hosts.iter().map(full).collect();
    for (at, matched) in route.matches.iter().enumerate() {
        let TlsMatch {
            sni_hosts,
            destination_subnets,
            source_labels,
            source_namespace,
            ..
        } = matched;
        let field = format!("{field}.match[{at}]");
        for (part, is_set, reason) in [
            ("sourceLabels", !source_labels.is_empty(), UNKNOWABLE),
            ("sourceNamespace", source_namespace.is_some(), UNKNOWABLE),
            (
                "destinationSubnets",
                !destination_subnets.is_empty(),
                NOT_LOOKED_AT,
            ),
        ] {
            teller.tell_if(is_set, format!("{field}.{part}"), reason);
        }
        for (index, host) in sni_hosts.iter().enumerate() {
            teller.tell_if(
                !hosts.contains(&host.to_ascii_lowercase()),
                format!("{field}.sniHosts[{index}]"),
                "never holds: names other than those of the services themselves are not told apart",
            );
        }
    }
}

pub(super) fn of_gateway_api(objects: &Objects, mesh: &MeshSettings, advice: &mut Vec<Advice>) {
    for (name, route) in &objects.http_routes {
        let mut teller = Teller::new(Kind::HttpRoute, name, advice);
        of_http_rules(&route.spec, &mut teller, |rule| HttpParts {
            filters: &rule.filters,
            backends: &rule.backend_refs,
            is_persistent: rule.session_persistence.is_some(),
        });
    }
    for (name, route) in &objects.grpc_routes {
        let mut teller = Teller::new(Kind::GrpcRoute, name, advice);
        of_http_rules(&route.spec, &mut teller, |rule| HttpParts {
            filters: &rule.filters,
            backends: &rule.backend_refs,
            is_persistent: rule.session_persistence.is_some(),
        });
    }
    for (name, route) in &objects.tcp_routes {
        let mut teller = Teller::new(Kind::TcpRoute, name, advice);
        of_spec(&route.spec, &mut teller);
        of_hostnames(&route.spec, &mut teller);
        of_stream_rules(&route.spec.rules, &mut teller);
    }
    for (name, route) in &objects.tls_routes {
        let mut teller = Teller::new(Kind::TlsRoute, name, advice);
        of_spec(&route.spec, &mut teller);
        of_stream_rules(&route.spec.rules, &mut teller);
        let services = route.spec.parent_refs.iter().map(|parent| {
            let namespace = parent.namespace.as_deref();
            let namespace = namespace.unwrap_or(name.namespace.as_str());
            format!("{}.{namespace}.svc.{}", parent.name, mesh.cluster_domain)
        });
        let services: Vec<String> = services.collect();
        for (index, host) in route.spec.hostnames.iter().enumerate() {
            let host = host.to_ascii_lowercase();
            let parents = &route.spec.parent_refs;
            teller.tell_if(
                !services.contains(&host) && parents.iter().all(|parent| parent.name != host),
                format!("spec.hostnames[{index}]"),
                "never holds: names other than those of the services themselves are not told apart",
            );
        }
    }
}

fn of_spec<Rule>(spec: &RouteSpec<Rule>, teller: &mut Teller<'_>) {
    teller.tell_if(
        spec.use_default_gateways.is_some(),
        "spec.useDefaultGateways",
        "has no effect: routes are attached to Services and ServiceEntries",
    );
}

/// As the Gateway API has it for meshes.
fn of_hostnames<Rule>(spec: &RouteSpec<Rule>, teller: &mut Teller<'_>) {
    teller.tell_if(
        !spec.hostnames.is_empty(),
        "spec.hostnames",
        "is not looked at: a route of a Service is for all its requests",
    );
}

/// What rules of HTTP and of gRPC have in common.
struct HttpParts<'a> {
    filters: &'a [HttpFilter],
    backends: &'a [BackendRef<HttpFilter>],
    is_persistent: bool,
}

fn of_http_rules<Rule>(
    spec: &RouteSpec<Rule>,
    teller: &mut Teller<'_>,
    parts: impl Fn(&Rule) -> HttpParts<'_>,
) {
    of_spec(spec, teller);
    of_hostnames(spec, teller);
    for (index, rule) in spec.rules.iter().enumerate() {
        of_http_rule(&format!("spec.rules[{index}]"), &parts(rule), teller);
    }
}

fn of_http_rule(field: &str, parts: &HttpParts<'_>, teller: &mut Teller<'_>) {
    let HttpParts {
        filters,
        backends,
        is_persistent,
    } = *parts;
    teller.tell_if(
        is_persistent,
        format!("{field}.sessionPersistence"),
        "has no effect: requests of one client go to any endpoint",
    );
    for (index, filter) in filters.iter().enumerate() {
        let refused = filter.external_auth.is_some() || filter.extension_ref.is_some();
        teller.tell_if(refused, format!("{field}.filters[{index}].type"), REFUSED);
    }
    for (backend, to) in backends.iter().enumerate() {
        for (index, filter) in to.filters.iter().enumerate() {
            let place = format!("{field}.backendRefs[{backend}].filters[{index}]");
            let field = format!("{place}.type");
            let refused = filter.external_auth.is_some() || filter.extension_ref.is_some();
            teller.tell_if(refused, field.clone(), REFUSED);
            let of_rule = filter.request_mirror.is_some()
                || filter.request_redirect.is_some()
                || filter.cors.is_some();
            let reason = "has no effect on one backend: it belongs to the rule";
            teller.tell_if(of_rule, field, reason);
            let rewrite = filter.url_rewrite.as_ref();
            teller.tell_if(
                rewrite.is_some_and(|rewrite| rewrite.path.is_some()),
                format!("{place}.urlRewrite.path"),
                reason,
            );
        }
    }
}

fn of_stream_rules(rules: &[StreamRule], teller: &mut Teller<'_>) {
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if index > 0 {
            let reason = "has no effect: the first rule takes all connections";
            teller.tell(field.clone(), reason);
        }
        let filters = |one: &BackendRef<Value>| !one.filters.is_empty();
        for (at, _) in rule
            .backend_refs
            .iter()
            .enumerate()
            .filter(|(_, one)| filters(one))
        {
            let reason = "has no effect: connections have no filters";
            teller.tell(format!("{field}.backendRefs[{at}].filters"), reason);
        }
    }
}
