//! What an API server would refuse beyond the schema, as far as it matters to a mesh.

mod backend_tls_policy;
mod destination;
mod envoy_filter;
mod gateway;
mod gateway_route;
mod http;
mod limit;
mod mesh_config;
mod net;
mod policy;
mod request_authentication;
mod route;
mod secret;
mod service_entry;
mod telemetry;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Node, Pod, Service, ServiceAccount, ServicePort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::objects::{field::Field, key::Kind, l7::proxy_config::ProxyConfig};

pub(crate) use backend_tls_policy::backend_tls_policy;
pub(crate) use destination::destination_rule;
pub(crate) use envoy_filter::envoy_filter;
pub(crate) use gateway::{gateway, gateway_class};
pub(crate) use gateway_route::{grpc_route, http_route, reference_grant, tcp_route, tls_route};
pub(crate) use limit::rate_limit;
pub(crate) use mesh_config::mesh_config;
pub(crate) use net::parse_block;
pub(crate) use policy::{authorization_policy, peer_authentication};
pub(crate) use request_authentication::request_authentication;
pub(crate) use route::{grpc_status, virtual_service};
pub(crate) use secret::{ca_bundle, secret};
pub(crate) use service_entry::{service_entry, workload_entry};
pub(crate) use telemetry::telemetry;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Invalid {
    pub(crate) field: Field,
    pub(crate) reason: String,
}

fn push(found: &mut Vec<Invalid>, field: Field, reason: impl Into<String>) {
    found.push(Invalid {
        field,
        reason: reason.into(),
    });
}

/// Names, labels and annotation keys.
pub(crate) fn metadata_of(kind: Kind, metadata: &ObjectMeta, found: &mut Vec<Invalid>) {
    let field = Field::of("metadata");
    let name = metadata.name.as_deref().unwrap_or_default();
    // These become labels of DNS names.
    let name_error = if matches!(kind, Kind::Namespace | Kind::Service) {
        text::dns_label(name)
    } else {
        text::dns_subdomain(name)
    };
    if let Err(reason) = name_error {
        push(found, field.key("name"), reason);
    }
    match (metadata.namespace.as_deref(), kind.is_namespaced()) {
        (Some(namespace), true) if !namespace.is_empty() => {
            if let Err(reason) = text::dns_label(namespace) {
                push(found, field.key("namespace"), reason);
            }
        }
        (Some(namespace), false) if !namespace.is_empty() => {
            let reason = format!("{} is not a namespaced kind", kind.as_str());
            push(found, field.key("namespace"), reason);
        }
        _ => {}
    }
    labels(&field.key("labels"), metadata.labels.as_ref(), found);
    for key in metadata.annotations.iter().flat_map(BTreeMap::keys) {
        if let Err(reason) = text::label_key(key) {
            push(found, field.key("annotations").key(key), reason);
        }
    }
}

fn labels(field: &Field, labels: Option<&BTreeMap<String, String>>, found: &mut Vec<Invalid>) {
    for (key, value) in labels.into_iter().flatten() {
        if let Err(reason) = text::label_key(key).and_then(|()| text::label_value(value)) {
            push(found, field.key(key), reason);
        }
    }
}

/// Who is in the mesh hangs on one word: a typo in it must not take pods out.
fn dataplane_mode(metadata: &ObjectMeta, found: &mut Vec<Invalid>) {
    const MODE: &str = "istio.io/dataplane-mode";
    let mode = metadata.labels.as_ref().and_then(|all| all.get(MODE));
    if let Some(mode) = mode.filter(|mode| !["ambient", "none", ""].contains(&mode.as_str())) {
        let reason = format!("`{mode}` is neither ambient nor none");
        push(found, Field::of("metadata").key("labels").key(MODE), reason);
    }
}

/// ProxyConfig.
pub(crate) fn proxy_config(object: &ProxyConfig, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ProxyConfig, &object.metadata, found);
}

/// Namespace.
pub(crate) fn namespace(object: &Namespace, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Namespace, &object.metadata, found);
    dataplane_mode(&object.metadata, found);
}

/// Node.
pub(crate) fn node(object: &Node, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Node, &object.metadata, found);
}

/// ServiceAccount.
pub(crate) fn service_account(object: &ServiceAccount, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ServiceAccount, &object.metadata, found);
}

/// Pod, with its spec.
pub(crate) fn pod(object: &Pod, found: &mut Vec<Invalid>) {
    let field = Field::of("spec");
    match &object.spec {
        None => push(found, field, "a pod needs a spec"),
        Some(spec) => {
            if spec.containers.is_empty() {
                push(
                    found,
                    field.key("containers"),
                    "at least one container is required",
                );
            }
            containers(&field.key("containers"), &spec.containers, found);
            let init = spec.init_containers.as_deref().unwrap_or_default();
            containers(&field.key("initContainers"), init, found);
            for (name, value) in [
                ("nodeName", &spec.node_name),
                ("serviceAccountName", &spec.service_account_name),
            ] {
                if let Some(Err(reason)) = value
                    .as_deref()
                    .filter(|v| !v.is_empty())
                    .map(text::dns_subdomain)
                {
                    push(found, field.key(name), reason);
                }
            }
        }
    }
    pod_status(object, found);
}

fn containers(field: &Field, containers: &[Container], found: &mut Vec<Invalid>) {
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let field = field.index(index);
        if let Err(reason) = text::dns_label(&container.name) {
            push(found, field.key("name"), reason);
        } else if !names.insert(&container.name) {
            push(found, field.key("name"), "another container has this name");
        }
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let field = field.key("ports").index(index);
            if let Err(reason) = net::port(i64::from(port.container_port)) {
                push(found, field.key("containerPort"), reason);
            }
            if let Some(Err(reason)) = port.name.as_deref().map(text::port_name) {
                push(found, field.key("name"), reason);
            }
            protocol(&field, port.protocol.as_deref(), found);
        }
    }
}

fn protocol(field: &Field, protocol: Option<&str>, found: &mut Vec<Invalid>) {
    if !matches!(protocol, None | Some("TCP" | "UDP" | "SCTP")) {
        push(found, field.key("protocol"), "must be TCP, UDP or SCTP");
    }
}

/// The status of a pod.
pub(crate) fn pod_status(object: &Pod, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Pod, &object.metadata, found);
    dataplane_mode(&object.metadata, found);
    let Some(status) = &object.status else { return };
    let field = Field::of("status");
    if let Some(Err(reason)) = status
        .pod_ip
        .as_deref()
        .filter(|ip| !ip.is_empty())
        .map(net::address)
    {
        push(found, field.key("podIP"), reason);
    }
    for (index, ip) in status.pod_ips.iter().flatten().enumerate() {
        if let Err(reason) = net::address(&ip.ip) {
            push(found, field.key("podIPs").index(index).key("ip"), reason);
        }
    }
    let phases = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
    if status
        .phase
        .as_deref()
        .is_some_and(|phase| !phases.contains(&phase))
    {
        push(
            found,
            field.key("phase"),
            format!("must be one of {}", phases.join(", ")),
        );
    }
}

/// The status of a service, which a mesh does not use.
pub(crate) fn service_status(object: &Service, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Service, &object.metadata, found);
}

/// Service.
pub(crate) fn service(object: &Service, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Service, &object.metadata, found);
    let field = Field::of("spec");
    let Some(spec) = &object.spec else {
        return push(found, field, "a service needs a spec");
    };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        let reason = "must be ClusterIP, NodePort, LoadBalancer or ExternalName";
        push(found, field.key("type"), reason);
    }
    labels(&field.key("selector"), spec.selector.as_ref(), found);
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        push(found, field.key("ports"), "at least one port is required");
    }
    service_ports(&field.key("ports"), ports, found);
    cluster_ips(
        &field,
        spec.cluster_ip.as_deref(),
        spec.cluster_ips.as_deref(),
        found,
    );
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        if family != "IPv4" && family != "IPv6" {
            push(
                found,
                field.key("ipFamilies").index(index),
                "must be IPv4 or IPv6",
            );
        }
    }
    if !matches!(
        spec.internal_traffic_policy.as_deref(),
        None | Some("Cluster" | "Local")
    ) {
        push(
            found,
            field.key("internalTrafficPolicy"),
            "must be Cluster or Local",
        );
    }
}

fn service_ports(field: &Field, ports: &[ServicePort], found: &mut Vec<Invalid>) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = field.index(index);
        if let Err(reason) = net::port(i64::from(port.port)) {
            push(found, field.key("port"), reason);
        }
        match &port.target_port {
            None => {}
            // 0 stands for "the same as port", as an API server takes it.
            Some(IntOrString::Int(0)) => {}
            Some(IntOrString::Int(number)) => {
                if let Err(reason) = net::port(i64::from(*number)) {
                    push(found, field.key("targetPort"), reason);
                }
            }
            Some(IntOrString::String(name)) => {
                if let Err(reason) = text::port_name(name) {
                    push(found, field.key("targetPort"), reason);
                }
            }
        }
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                push(
                    found,
                    field.key("name"),
                    "every port needs a name when there are several",
                );
            }
        } else if let Err(reason) = text::dns_label(name) {
            push(found, field.key("name"), reason);
        } else if !names.insert(name) {
            push(found, field.key("name"), "another port has this name");
        }
        protocol(&field, port.protocol.as_deref(), found);
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            push(
                found,
                field.key("port"),
                "another port has this number and protocol",
            );
        }
    }
}

fn cluster_ips(field: &Field, one: Option<&str>, all: Option<&[String]>, found: &mut Vec<Invalid>) {
    let valid = |text: &str| text.is_empty() || text == "None" || text.parse::<IpAddr>().is_ok();
    if one.is_some_and(|ip| !valid(ip)) {
        push(
            found,
            field.key("clusterIP"),
            "must be an IP address or None",
        );
    }
    let all = all.unwrap_or_default();
    if all.len() > 2 {
        push(
            found,
            field.key("clusterIPs"),
            "at most one address of each family",
        );
    }
    for (index, ip) in all.iter().enumerate() {
        if !valid(ip) {
            push(
                found,
                field.key("clusterIPs").index(index),
                "must be an IP address or None",
            );
        }
    }
    if let (Some(one), Some(first)) = (one.filter(|ip| !ip.is_empty()), all.first())
        && one != first
    {
        push(
            found,
            field.key("clusterIPs").index(0),
            "must be the same as clusterIP",
        );
    }
}

/// EndpointSlice.
pub(crate) fn endpoint_slice(object: &EndpointSlice, found: &mut Vec<Invalid>) {
    metadata_of(Kind::EndpointSlice, &object.metadata, found);
    let of_family: fn(&str) -> bool = match object.address_type.as_str() {
        "IPv4" => |ip| ip.parse::<std::net::Ipv4Addr>().is_ok(),
        "IPv6" => |ip| ip.parse::<std::net::Ipv6Addr>().is_ok(),
        "FQDN" => |host| text::dns_subdomain(host).is_ok(),
        _ => {
            return push(
                found,
                Field::of("addressType"),
                "must be IPv4, IPv6 or FQDN",
            );
        }
    };
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        let field = Field::of("endpoints").index(index).key("addresses");
        if endpoint.addresses.is_empty() {
            push(found, field.clone(), "at least one address is required");
        }
        for (index, address) in endpoint.addresses.iter().enumerate() {
            if !of_family(address) {
                let reason = format!("not an address of type {}", object.address_type);
                push(found, field.index(index), reason);
            }
        }
    }
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let field = Field::of("ports").index(index);
        if let Some(Err(reason)) = port.port.map(|port| net::port(i64::from(port))) {
            push(found, field.key("port"), reason);
        }
        protocol(&field, port.protocol.as_deref(), found);
    }
}

#[cfg(test)]
mod tests;
