//! Instances that are no pods: WorkloadEntries, and the endpoints of ServiceEntries.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use leyline_proto::istio::workload::{
    Locality, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};
use leyline_types::NamespacedName;

use super::{
    MeshSettings,
    service_entries::EntryService,
    services::{MeshService, Target, address_bytes},
    workloads::{Context, NAME_LABELS, REVISION_LABELS, TUNNEL, trust_domain},
};
use crate::objects::{WorkloadEntry, WorkloadEntrySpec};

type Labels = BTreeMap<String, String>;

/// All of them. Of one uid there is one workload.
pub(super) fn workloads(context: &Context<'_>, hosts: &[EntryService]) -> Vec<Workload> {
    let entries = context.objects.workload_entries.iter();
    let entries = entries.map(|(name, entry)| of_entry(context, name, entry));
    let mut inline: BTreeMap<String, Workload> = BTreeMap::new();
    for host in hosts {
        let itself = WorkloadEntrySpec {
            address: host.host.clone(),
            ..WorkloadEntrySpec::default()
        };
        let endpoints = host.entry.spec.endpoints.iter();
        let itself = host.is_its_own_endpoint().then_some(&itself);
        for endpoint in endpoints.chain(itself) {
            let workload = of_endpoint(context, host, endpoint);
            // An endpoint belongs to all hosts of its ServiceEntry.
            let known = inline
                .entry(workload.uid.clone())
                .or_insert_with(|| workload.clone());
            known.services.extend(workload.services);
        }
    }
    entries.chain(inline.into_values()).collect()
}

fn of_entry(context: &Context<'_>, name: &NamespacedName, entry: &WorkloadEntry) -> Workload {
    let mut labels = entry.metadata.labels.clone().unwrap_or_default();
    labels.extend(entry.spec.labels.clone());
    let of_namespace = context.services.get(name.namespace.as_str()).into_iter();
    let services = of_namespace
        .flat_map(|all| all.matching(Some(&labels)))
        .map(|service| (service.key.clone(), ports(service, &entry.spec)))
        .collect();
    let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
    let mut policies = context.policies.selecting(namespace, Some(&labels));
    policies.extend(context.peers.attached(namespace, Some(&labels)));
    policies.sort();
    let uid = format!(
        "{}/networking.istio.io/WorkloadEntry/{namespace}/{name}",
        context.mesh.cluster_id
    );
    Workload {
        authorization_policies: policies,
        services,
        ..instance(context, &entry.spec, &labels, (namespace, name), uid)
    }
}

fn of_endpoint(
    context: &Context<'_>,
    host: &EntryService,
    endpoint: &WorkloadEntrySpec,
) -> Workload {
    let (namespace, name) = (host.name.namespace.as_str(), host.name.name.as_str());
    let uid = format!(
        "{}/networking.istio.io/ServiceEntry/{namespace}/{name}/{}",
        context.mesh.cluster_id,
        if endpoint.address.is_empty() {
            &endpoint.network
        } else {
            &endpoint.address
        }
    );
    Workload {
        services: HashMap::from([(host.service.key.clone(), ports(&host.service, endpoint))]),
        ..instance(context, endpoint, &endpoint.labels, (namespace, name), uid)
    }
}

fn instance(
    context: &Context<'_>,
    spec: &WorkloadEntrySpec,
    labels: &Labels,
    (namespace, name): (&str, &str),
    uid: String,
) -> Workload {
    let mesh: &MeshSettings = context.mesh;
    let canonical = |keys: &[&str], fallback: &str| {
        let found = keys.iter().find_map(|key| labels.get(*key));
        found.map_or(fallback, String::as_str).to_owned()
    };
    let network = if spec.network.is_empty() {
        context.networks.own()
    } else {
        &spec.network
    };
    let address = spec.address.parse::<IpAddr>().ok();
    let native = labels
        .get(TUNNEL)
        .is_some_and(|list| list.split(',').any(|part| part.trim() == "http"));
    Workload {
        uid,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: address.into_iter().map(address_bytes).collect(),
        hostname: match address {
            Some(_) => String::new(),
            None => spec.address.to_ascii_lowercase(),
        },
        network: network.to_owned(),
        network_gateway: context.networks.gateway_to(network),
        tunnel_protocol: match native {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::None,
        }
        .into(),
        native_tunnel: native,
        trust_domain: trust_domain(mesh),
        service_account: match spec.service_account.as_str() {
            "" => "default".to_owned(),
            account => account.to_owned(),
        },
        canonical_name: canonical(&NAME_LABELS, name),
        canonical_revision: canonical(&REVISION_LABELS, "latest"),
        workload_type: WorkloadType::Pod.into(),
        workload_name: name.to_owned(),
        status: WorkloadStatus::Healthy.into(),
        cluster_id: mesh.cluster_id.clone(),
        locality: locality(&spec.locality),
        capacity: spec.weight,
        ..Workload::default()
    }
}

/// The instance's own port of the service port's name; else the service's target, by number.
fn ports(service: &MeshService, spec: &WorkloadEntrySpec) -> PortList {
    let target = |name: &str| spec.ports.get(name).and_then(|p| u32::try_from(*p).ok());
    let resolved = service.ports.iter().filter_map(|port| {
        let of_service = match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => target(name),
        };
        let target = target(&port.name).or(of_service)?;
        Some(port.wire_port(target))
    });
    PortList {
        ports: resolved.collect(),
    }
}

/// `region/zone/subzone`, of which the last may be missing.
fn locality(text: &str) -> Option<Locality> {
    let mut parts = text.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    };
    (locality != Locality::default()).then_some(locality)
}
