//! What makes a Gateway useless to a mesh.

use std::net::IpAddr;

use super::{Invalid, metadata_of, net, push, text};
use crate::objects::{
    field::Field,
    gateway::{
        EAST_WEST_CLASS, Gateway, GatewayAddress, GatewayClass, GatewayListener, HBONE,
        REMOTE_CLASS, WAYPOINT_CLASS,
    },
    key::Kind,
};

/// Which traffic a waypoint is for.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const NETWORK: &str = "topology.istio.io/network";

/// Gateway.
pub(crate) fn gateway(object: &Gateway, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Gateway, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    if let Err(reason) = text::dns_subdomain(&spec.gateway_class_name) {
        push(found, field.key("gatewayClassName"), reason);
    }
    for (index, listener) in spec.listeners.iter().enumerate() {
        check_listener(&field.key("listeners").index(index), listener, found);
    }
    addresses(&field.key("addresses"), &spec.addresses, found);
    let status = Field::of("status").key("addresses");
    addresses(&status, &object.status.addresses, found);
    match spec.gateway_class_name.as_str() {
        WAYPOINT_CLASS => waypoint(object, found),
        EAST_WEST_CLASS | REMOTE_CLASS => network_gateway(object, found),
        _ => {}
    }
}

/// GatewayClass.
pub(crate) fn gateway_class(object: &GatewayClass, found: &mut Vec<Invalid>) {
    metadata_of(Kind::GatewayClass, &object.metadata, found);
    let name = &object.spec.controller_name;
    let path = name.split_once('/').filter(|(_, path)| !path.is_empty());
    if path.is_none_or(|(domain, _)| text::dns_subdomain(domain).is_err()) {
        let field = Field::of("spec").key("controllerName");
        push(
            found,
            field,
            format!("`{name}` is not a domain with a path"),
        );
    }
}

fn waypoint(object: &Gateway, found: &mut Vec<Invalid>) {
    let field = Field::of("spec").key("listeners");
    let only_hbone = match &object.spec.listeners[..] {
        [listener] => listener.protocol == HBONE && listener.port == 15008,
        _ => false,
    };
    if !only_hbone {
        let reason = "Expected a single listener on port 15008 with protocol \"HBONE\"";
        push(found, field, reason);
    }
    let traffic = object.label(WAYPOINT_FOR).unwrap_or("service");
    if !["service", "workload", "all", "none"].contains(&traffic) {
        let field = Field::of("metadata").key("labels").key(WAYPOINT_FOR);
        let reason = format!("`{traffic}` is none of service, workload, all, none");
        push(found, field, reason);
    }
}

fn network_gateway(object: &Gateway, found: &mut Vec<Invalid>) {
    if object.label(NETWORK).is_none() {
        let field = Field::of("metadata").key("labels").key(NETWORK);
        let reason = "a gateway between networks needs the label that names its network";
        push(found, field, reason);
    }
}

fn check_listener(field: &Field, listener: &GatewayListener, found: &mut Vec<Invalid>) {
    if let Err(reason) = text::dns_subdomain(&listener.name) {
        push(found, field.key("name"), reason);
    }
    if let Err(reason) = net::port(i64::from(listener.port)) {
        push(found, field.key("port"), reason);
    }
    let namespaces = listener
        .allowed_routes
        .as_ref()
        .and_then(|routes| routes.namespaces.as_ref());
    let from = namespaces.and_then(|namespaces| namespaces.from.as_deref());
    if !matches!(from, None | Some("Same" | "All" | "Selector" | "None")) {
        let field = field.key("allowedRoutes").key("namespaces").key("from");
        push(found, field, "must be Same, All, Selector or None");
    }
}

fn addresses(field: &Field, addresses: &[GatewayAddress], found: &mut Vec<Invalid>) {
    for (index, address) in addresses.iter().enumerate() {
        let field = field.index(index).key("value");
        match address.type_.as_deref() {
            // Without a value any address will do.
            _ if address.value.is_empty() => {}
            None | Some("IPAddress") if address.value.parse::<IpAddr>().is_err() => {
                push(found, field, "not an IP address");
            }
            Some("Hostname") => {
                if let Err(reason) = text::dns_subdomain(&address.value) {
                    push(found, field, reason);
                }
            }
            // Other types belong to other implementations.
            _ => {}
        }
    }
}
