//! Where the connections of a port go that are not HTTP: routes by the name in a client's TLS hello, which is only told from
//! none at all (facts A.4.2), and before routes of TCP (facts A.7).

use leyline_types::NamespacedName;
use serde_json::Value;

use super::{
    from_gateway_api::{Backends, Reference},
    names::full_host,
    rule::Target,
    rules::{Finder, MESH, finder, is_attached, virtual_services},
    view::{ServiceView, View},
};
use crate::objects::l7::{
    gateway_route::{BackendRef, StreamRule},
    virtual_service::{TcpDestination, TcpMatch, TlsMatch},
};

/// By weight; nothing special when empty.
pub(super) fn targets(
    view: &View<'_>,
    gateway: &NamespacedName,
    service: &ServiceView<'_>,
    port: u16,
) -> Vec<(Target, u32)> {
    let virtual_services = virtual_services(view, gateway, service);
    let domain = view.mesh.cluster_domain.as_str();
    let all = || virtual_services.iter().copied();
    let tls = all().find_map(|(name, one)| {
        let mut routes = one.spec.tls.iter();
        let route = routes.find(|route| {
            let mut matches = route.matches.iter();
            matches.any(|matched| tls_applies(matched, service.host, port))
        })?;
        Some(destinations(&route.route, name, domain))
    });
    let tcp = || {
        all().find_map(|(name, one)| {
            let mut routes = one.spec.tcp.iter();
            let route = routes.find(|route| {
                let mut matches = route.matches.iter();
                route.matches.is_empty() || matches.any(|matched| tcp_applies(matched, port))
            })?;
            Some(destinations(&route.route, name, domain))
        })
    };
    let of_gateway_api = || of_gateway_api(view, service, port);
    tls.or_else(tcp).or_else(of_gateway_api).unwrap_or_default()
}

fn of_gateway_api(
    view: &View<'_>,
    service: &ServiceView<'_>,
    port: u16,
) -> Option<Vec<(Target, u32)>> {
    let mut tls = view.objects.tls_routes.iter();
    let tls = tls.find_map(|(name, route)| {
        let names = &route.spec.hostnames;
        let mut named = names.iter().map(|host| host.to_ascii_lowercase());
        let holds = names.is_empty() || named.any(|host| host == service.host);
        (holds && is_attached(&route.spec.parent_refs, name, service, port))
            .then(|| backends(&route.spec.rules, &finder(view, name, "TLSRoute")))?
    });
    tls.or_else(|| {
        view.objects.tcp_routes.iter().find_map(|(name, route)| {
            is_attached(&route.spec.parent_refs, name, service, port)
                .then(|| backends(&route.spec.rules, &finder(view, name, "TCPRoute")))?
        })
    })
}

fn of_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

fn tcp_applies(matched: &TcpMatch, port: u16) -> bool {
    matched.port.is_none_or(|wanted| wanted == u32::from(port))
        && matched.source_labels.is_empty()
        && matched.source_namespace.is_none()
        && of_mesh(&matched.gateways)
}

fn tls_applies(matched: &TlsMatch, host: &str, port: u16) -> bool {
    let mut names = matched.sni_hosts.iter();
    matched.port.is_none_or(|wanted| wanted == u32::from(port))
        && matched.source_labels.is_empty()
        && matched.source_namespace.is_none()
        && of_mesh(&matched.gateways)
        && names.any(|name| name.eq_ignore_ascii_case(host))
}

fn destinations(all: &[TcpDestination], name: &NamespacedName, domain: &str) -> Vec<(Target, u32)> {
    let only = all.len() == 1;
    let target = |to: &TcpDestination| {
        let number = to.destination.port.as_ref().map(|port| port.number);
        let target = Target::Service {
            host: full_host(&to.destination.host, name.namespace.as_str(), domain),
            port: number.and_then(|number| u16::try_from(number).ok()),
            subset: to.destination.subset.clone(),
        };
        let weight = u32::try_from(to.weight).unwrap_or_default();
        (target, if only { weight.max(1) } else { weight })
    };
    all.iter().map(target).collect()
}

/// Those of the first rule, which takes all.
fn backends(rules: &[StreamRule], finder: &Finder<'_>) -> Option<Vec<(Target, u32)>> {
    let target = |one: &BackendRef<Value>| {
        let target = finder.target(&Reference {
            group: one.group.as_deref().unwrap_or_default(),
            kind: one.kind.as_deref().unwrap_or("Service"),
            namespace: one.namespace.as_deref(),
            name: &one.name,
            port: one.port.and_then(|port| u16::try_from(port).ok()),
        });
        let weight = one.weight.and_then(|weight| u32::try_from(weight).ok());
        (target, weight.unwrap_or(1))
    };
    let rule = rules.first()?;
    Some(rule.backend_refs.iter().map(target).collect())
}
