//! What makes a ServiceEntry or a WorkloadEntry useless to a mesh.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Invalid, labels, metadata_of, net, push, text};
use crate::objects::{
    field::Field,
    key::Kind,
    service_entry::{EntryPort, ServiceEntry, ServiceEntrySpec, WorkloadEntry, WorkloadEntrySpec},
};

/// ServiceEntry.
pub(crate) fn service_entry(object: &ServiceEntry, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ServiceEntry, &object.metadata, found);
    let (field, spec) = (Field::of("spec"), &object.spec);
    if spec.hosts.is_empty() {
        push(found, field.key("hosts"), "at least one host is required");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let name = host.strip_prefix("*.").unwrap_or(host);
        if let Err(reason) = text::dns_subdomain(&name.to_ascii_lowercase()) {
            push(found, field.key("hosts").index(index), reason);
        }
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        if let Err(reason) = net::parse_block(address) {
            push(found, field.key("addresses").index(index), reason);
        }
    }
    ports(&field.key("ports"), &spec.ports, found);
    let resolution = spec.resolution.as_deref().unwrap_or("NONE");
    if !["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"].contains(&resolution) {
        let reason = "must be NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS";
        push(found, field.key("resolution"), reason);
    }
    if resolution == "DYNAMIC_DNS" {
        dynamic(&field, spec, found);
    }
    if !matches!(
        spec.location.as_deref(),
        None | Some("MESH_EXTERNAL" | "MESH_INTERNAL")
    ) {
        let reason = "must be MESH_EXTERNAL or MESH_INTERNAL";
        push(found, field.key("location"), reason);
    }
    if let Some(selector) = &spec.workload_selector {
        let field = field.key("workloadSelector");
        labels(&field.key("labels"), Some(&selector.labels), found);
        if !spec.endpoints.is_empty() {
            push(found, field, "only one of workloadSelector and endpoints");
        }
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = field.key("endpoints").index(index);
        if resolution == "NONE" {
            let reason = "resolution NONE has no endpoints: connections go where the client wants";
            push(found, field.clone(), reason);
        }
        instance(&field, endpoint, found);
        if resolution == "STATIC" && endpoint.address.parse::<IpAddr>().is_err() {
            let reason = "resolution STATIC needs an IP address";
            push(found, field.key("address"), reason);
        }
    }
}

/// Requests say which host under a domain they are for.
fn dynamic(field: &Field, spec: &ServiceEntrySpec, found: &mut Vec<Invalid>) {
    for (index, host) in spec.hosts.iter().enumerate() {
        if !host.starts_with("*.") {
            let reason = "resolution DYNAMIC_DNS is for hosts such as *.example.com";
            push(found, field.key("hosts").index(index), reason);
        }
    }
    if !spec.endpoints.is_empty() {
        let reason = "resolution DYNAMIC_DNS has no endpoints: each host is its own";
        push(found, field.key("endpoints"), reason);
    }
    if spec.workload_selector.is_some() {
        let reason = "resolution DYNAMIC_DNS selects no workloads: each host is its own endpoint";
        push(found, field.key("workloadSelector"), reason);
    }
}

/// WorkloadEntry.
pub(crate) fn workload_entry(object: &WorkloadEntry, found: &mut Vec<Invalid>) {
    metadata_of(Kind::WorkloadEntry, &object.metadata, found);
    instance(&Field::of("spec"), &object.spec, found);
}

fn ports(field: &Field, ports: &[EntryPort], found: &mut Vec<Invalid>) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = field.index(index);
        if let Err(reason) = net::port(port.number) {
            push(found, field.key("number"), reason);
        } else if !numbers.insert(port.number) {
            push(found, field.key("number"), "another port has this number");
        }
        if let Some(Err(reason)) = port.target_port.map(net::port) {
            push(found, field.key("targetPort"), reason);
        }
        if port.name.is_empty() {
            push(found, field.key("name"), "a port needs a name");
        } else if !names.insert(&port.name) {
            push(found, field.key("name"), "another port has this name");
        }
    }
}

/// The address may be left out: a network's gateway leads to such an instance.
fn instance(field: &Field, spec: &WorkloadEntrySpec, found: &mut Vec<Invalid>) {
    if spec.address.is_empty() {
        if spec.network.is_empty() {
            let reason = "an IP address or a host name is required";
            push(found, field.key("address"), reason);
        }
    } else if spec.address.parse::<IpAddr>().is_err()
        && let Err(reason) = text::dns_subdomain(&spec.address.to_ascii_lowercase())
    {
        push(found, field.key("address"), reason);
    }
    for (name, port) in &spec.ports {
        if let Err(reason) = net::port(*port) {
            push(found, field.key("ports").key(name), reason);
        }
    }
    labels(&field.key("labels"), Some(&spec.labels), found);
    if !spec.service_account.is_empty()
        && let Err(reason) = text::dns_subdomain(&spec.service_account)
    {
        push(found, field.key("serviceAccount"), reason);
    }
}
