//! What node proxies are told, as text.

use std::fmt::Write;

use leyline_proto::istio::{
    security::{Action, Authorization, Match, Scope, string_match::MatchType},
    workload::{
        Address, AppProtocol, GatewayAddress, IpFamilies, Service, TunnelProtocol, Workload,
        WorkloadStatus, address, gateway_address::Destination,
    },
};
use leyline_types::{ENROLMENT_PENDING, TRUST_DOMAIN_ALIASES};
use prost::Message;

use super::*;

pub(super) fn describe(translation: &Translation) -> String {
    let mut text = String::new();
    for (name, resource) in &*translation.addresses {
        match Address::decode(resource.body.clone())
            .unwrap()
            .r#type
            .unwrap()
        {
            address::Type::Workload(workload) => describe_workload(&mut text, name, &workload),
            address::Type::Service(service) => describe_service(&mut text, name, &service),
        }
    }
    for (name, resource) in &*translation.authorizations {
        let policy = Authorization::decode(resource.body.clone()).unwrap();
        describe_policy(&mut text, name, &policy);
    }
    for (node, pods) in &translation.wanted {
        writeln!(
            text,
            "enrol on {node}: {:?}",
            pods.values()
                .map(|pod| pod.name.to_string())
                .collect::<Vec<_>>()
        )
        .unwrap();
    }
    for advice in &translation.advice {
        writeln!(
            text,
            "advice {} {}: {}",
            advice.object, advice.field, advice.reason
        )
        .unwrap();
    }
    text
}

fn describe_workload(text: &mut String, name: &str, w: &Workload) {
    assert_eq!(name, w.uid);
    let addresses: Vec<_> = w.addresses.iter().map(|bytes| ip(bytes)).collect();
    writeln!(
        text,
        "workload {name} {} {}/{} on {:?} sa {:?} {:?} {:?}{}",
        addresses.join(","),
        w.namespace,
        w.name,
        w.node,
        w.service_account,
        TunnelProtocol::try_from(w.tunnel_protocol).unwrap(),
        WorkloadStatus::try_from(w.status).unwrap(),
        if w.native_tunnel {
            " native"
        } else if w.extensions.iter().any(|one| one.name == ENROLMENT_PENDING) {
            " pending"
        } else {
            ""
        },
    )
    .unwrap();
    let mut extensions = w.extensions.iter();
    if let Some(aliases) = extensions.find(|one| one.name == TRUST_DOMAIN_ALIASES) {
        let list = aliases.config.as_ref().unwrap().value.as_slice();
        let list = prost_types::ListValue::decode(list).unwrap();
        let names = list.values.into_iter().map(|value| match value.kind {
            Some(prost_types::value::Kind::StringValue(name)) => name,
            other => panic!("{other:?}"),
        });
        let names = names.collect::<Vec<_>>().join(", ");
        writeln!(text, "  trust domain {:?} or {names}", w.trust_domain).unwrap();
    }
    writeln!(
        text,
        "  named {} canonical {} {}",
        w.workload_name, w.canonical_name, w.canonical_revision
    )
    .unwrap();
    if let Some(locality) = &w.locality {
        writeln!(
            text,
            "  locality {}/{}/{}",
            locality.region, locality.zone, locality.subzone
        )
        .unwrap();
    }
    if !w.network.is_empty() {
        writeln!(text, "  network {}", w.network).unwrap();
    }
    if let Some(gateway) = &w.network_gateway {
        writeln!(text, "  entered by {}", describe_gateway(gateway)).unwrap();
    }
    if let Some(waypoint) = &w.waypoint {
        writeln!(text, "  waypoint {}", describe_gateway(waypoint)).unwrap();
    }
    if let Some(tunnel) = &w.application_tunnel {
        writeln!(text, "  tunnel {} port {}", tunnel.protocol, tunnel.port).unwrap();
    }
    if !w.hostname.is_empty() {
        writeln!(text, "  host {}", w.hostname).unwrap();
    }
    if let Some(capacity) = w.capacity {
        writeln!(text, "  capacity {capacity}").unwrap();
    }
    if w.network_mode != 0 {
        writeln!(text, "  host network").unwrap();
    }
    let services: BTreeMap<_, _> = w.services.iter().collect();
    for (service, ports) in services {
        let ports: Vec<_> = ports
            .ports
            .iter()
            .map(|p| format!("{}->{}", p.service_port, p.target_port))
            .collect();
        writeln!(text, "  serves {service} {}", ports.join(",")).unwrap();
    }
    if !w.authorization_policies.is_empty() {
        writeln!(text, "  policies {}", w.authorization_policies.join(" ")).unwrap();
    }
}

fn describe_service(text: &mut String, name: &str, s: &Service) {
    let addresses: Vec<_> = s
        .addresses
        .iter()
        .map(|a| format!("{}/{}", a.network, ip(&a.address)))
        .collect();
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|p| {
            let protocol = AppProtocol::try_from(p.app_protocol).unwrap();
            format!("{}->{} {protocol:?}", p.service_port, p.target_port)
        })
        .collect();
    let families = IpFamilies::try_from(s.ip_families).unwrap();
    writeln!(
        text,
        "service {name} {addresses:?} {families:?} {}",
        ports.join(", ")
    )
    .unwrap();
    if s.visibility != 0 {
        writeln!(text, "  visible in its namespace").unwrap();
    }
    if !s.canonical {
        writeln!(text, "  not canonical").unwrap();
    }
    if let Some(waypoint) = &s.waypoint {
        writeln!(text, "  waypoint {}", describe_gateway(waypoint)).unwrap();
    }
    if s.ingress_use_waypoint {
        writeln!(text, "  ingress through the waypoint").unwrap();
    }
    for one in &s.weighted_waypoints {
        let waypoint = describe_gateway(one.destination.as_ref().unwrap());
        writeln!(text, "  {}% {waypoint}", one.weight).unwrap();
    }
    if let Some(balancing) = &s.load_balancing {
        writeln!(
            text,
            "  balancing {:?} mode {} health {}",
            balancing.routing_preference, balancing.mode, balancing.health_policy
        )
        .unwrap();
    }
}

fn describe_gateway(gateway: &GatewayAddress) -> String {
    let place = match gateway.destination.as_ref().unwrap() {
        Destination::Hostname(name) => format!("{}/{}", name.namespace, name.hostname),
        Destination::Address(address) => format!("{}/{}", address.network, ip(&address.address)),
    };
    format!("{place} port {}", gateway.hbone_mtls_port)
}

fn describe_policy(text: &mut String, name: &str, p: &Authorization) {
    let (scope, action) = (
        Scope::try_from(p.scope).unwrap(),
        Action::try_from(p.action).unwrap(),
    );
    let dry = if p.dry_run { " dry run" } else { "" };
    writeln!(text, "policy {name} {action:?} {scope:?}{dry}").unwrap();
    for group in &p.groups {
        let clauses: Vec<_> = group
            .rules
            .iter()
            .map(|rules| {
                rules
                    .matches
                    .iter()
                    .map(describe_match)
                    .collect::<Vec<_>>()
                    .join(" or ")
            })
            .collect();
        let all = if clauses.is_empty() {
            "anything".to_owned()
        } else {
            clauses.join("; and ")
        };
        writeln!(text, "  if {all}").unwrap();
    }
}

fn describe_match(m: &Match) -> String {
    let strings = |list: &[leyline_proto::istio::security::StringMatch]| -> Vec<String> {
        let one = |s: &leyline_proto::istio::security::StringMatch| match s
            .match_type
            .as_ref()
            .unwrap()
        {
            MatchType::Exact(text) => text.clone(),
            MatchType::Prefix(text) => format!("{text}..."),
            MatchType::Suffix(text) => format!("...{text}"),
            MatchType::Presence(()) => "any".to_owned(),
        };
        list.iter().map(one).collect()
    };
    let blocks = |list: &[leyline_proto::istio::security::Address]| -> Vec<String> {
        list.iter()
            .map(|a| format!("{}/{}", ip(&a.address), a.length))
            .collect()
    };
    let accounts = |list: &[leyline_proto::istio::security::ServiceAccountMatch]| -> Vec<String> {
        list.iter()
            .map(|a| format!("{}/{}", a.namespace, a.service_account))
            .collect()
    };
    let numbers = |list: &[u32]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
    let fields = [
        ("namespace", strings(&m.namespaces)),
        ("not namespace", strings(&m.not_namespaces)),
        ("principal", strings(&m.principals)),
        ("not principal", strings(&m.not_principals)),
        ("account", accounts(&m.service_accounts)),
        ("not account", accounts(&m.not_service_accounts)),
        ("source", blocks(&m.source_ips)),
        ("not source", blocks(&m.not_source_ips)),
        ("destination", blocks(&m.destination_ips)),
        ("not destination", blocks(&m.not_destination_ips)),
        ("port", numbers(&m.destination_ports)),
        ("not port", numbers(&m.not_destination_ports)),
    ];
    let used = fields.iter().filter(|(_, values)| !values.is_empty());
    used.map(|(name, values)| format!("{name} {}", values.join("|")))
        .collect::<Vec<_>>()
        .join(" & ")
}

fn ip(bytes: &[u8]) -> String {
    match bytes.len() {
        4 => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap()).to_string(),
        _ => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_string(),
    }
}
