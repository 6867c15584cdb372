//! The labels of a metric, in Istio's order, and where they come from: the proven identity and the workloads of WDS.

use std::{fmt::Write, net::IpAddr};

use leyline_state::{Snapshot, Workload};
use leyline_types::{Identity, Str};

use crate::{
    config::{cluster::ServiceRef, endpoints::EndpointAddress},
    listener::Client,
};

/// What is not known.
pub(crate) const UNKNOWN: &str = "unknown";
/// The revision of a source that does not say one.
const LATEST: &str = "latest";

/// Istio's labels, in its order.
const NAMES: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];
/// Those that are left out where they mean nothing.
const OPTIONAL: [&str; 2] = ["response_code", "grpc_response_status"];

/// Names and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels(Vec<(Str, Str)>);

impl Default for Labels {
    /// Nothing is known.
    fn default() -> Self {
        let names = NAMES.iter().filter(|name| !OPTIONAL.contains(name));
        let mut labels = Self(names.map(|name| ((*name).into(), UNKNOWN.into())).collect());
        labels.set("reporter", "waypoint");
        labels.set("response_flags", "-");
        labels
    }
}

impl Labels {
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Str>) {
        let value = value.into();
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.into(), value)),
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// As the text format has them.
    pub(super) fn rendered(&self) -> String {
        let mut text = String::with_capacity(1024);
        for (name, value) in &self.0 {
            if !text.is_empty() {
                text.push(',');
            }
            write!(text, "{name}=\"").ok();
            escape_into(&mut text, value.as_str());
            text.push('"');
        }
        text
    }

    pub(crate) fn of_source(&mut self, peer: &Peer) {
        self.set("source_workload", peer.workload.clone());
        self.set("source_canonical_service", peer.service.clone());
        self.set("source_canonical_revision", peer.revision.clone());
        self.set("source_workload_namespace", peer.namespace.clone());
        self.set("source_principal", peer.principal.clone());
        self.set("source_app", peer.service.clone());
        self.set("source_version", peer.revision.clone());
        self.set("source_cluster", peer.cluster.clone());
    }

    pub(crate) fn of_destination(&mut self, peer: &Peer) {
        self.set("destination_workload", peer.workload.clone());
        self.set("destination_canonical_service", peer.service.clone());
        self.set("destination_canonical_revision", peer.revision.clone());
        self.set("destination_workload_namespace", peer.namespace.clone());
        self.set("destination_principal", peer.principal.clone());
        self.set("destination_app", peer.service.clone());
        self.set("destination_version", peer.revision.clone());
        self.set("destination_cluster", peer.cluster.clone());
    }

    pub(crate) fn of_service(&mut self, service: &ServiceRef) {
        self.set("destination_service", known(&service.host));
        self.set("destination_service_name", known(&service.name));
        self.set("destination_service_namespace", known(&service.namespace));
    }

    /// Mutual TLS, if both ends have proven who they are.
    pub(crate) fn secure(&mut self, source: &Peer, destination: &Peer) {
        let both = source.principal != UNKNOWN && destination.principal != UNKNOWN;
        let policy = if both { "mutual_tls" } else { UNKNOWN };
        self.set("connection_security_policy", policy);
    }
}

fn escape_into(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            plain => text.push(plain),
        }
    }
}

/// One end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Name of the pod or instance.
    pub(crate) name: Str,
    pub(crate) workload: Str,
    pub(crate) namespace: Str,
    pub(crate) principal: Str,
    /// Canonical.
    pub(crate) service: Str,
    pub(crate) revision: Str,
    pub(crate) cluster: Str,
}

impl Default for Peer {
    fn default() -> Self {
        let unknown = || Str::from(UNKNOWN);
        Self {
            name: unknown(),
            workload: unknown(),
            namespace: unknown(),
            principal: unknown(),
            service: unknown(),
            revision: unknown(),
            cluster: unknown(),
        }
    }
}

impl Peer {
    /// The client: its identity is proven, what else is known comes from the workload at its address with that identity.
    pub(crate) fn source(mesh: &Snapshot, client: &Client) -> Self {
        let workload = mesh.source_workload(client.addr.ip(), Some(&client.identity));
        let mut peer = workload.map_or_else(Self::default, |workload| Self::of(workload));
        peer.principal = (&*client.principal).into();
        peer.namespace = client.identity.namespace().clone();
        if peer.revision == UNKNOWN {
            peer.revision = LATEST.into();
        }
        peer
    }

    /// The endpoint. Its identity was checked where a tunnel goes to it, and is unknown elsewhere.
    pub(crate) fn destination(mesh: &Snapshot, endpoint: EndpointAddress) -> Self {
        let Some(workload) = at(mesh, endpoint.addr().ip()) else {
            return Self::default();
        };
        let mut peer = Self::of(workload);
        if matches!(endpoint, EndpointAddress::Hbone(_)) {
            peer.principal = spiffe(&workload.identity);
        }
        peer
    }

    fn of(workload: &Workload) -> Self {
        Self {
            name: known(&workload.name.name),
            workload: known(&workload.workload_name),
            namespace: known(&workload.name.namespace),
            principal: UNKNOWN.into(),
            service: known(&workload.canonical_name),
            revision: known(&workload.canonical_revision),
            cluster: known(&workload.cluster_id),
        }
    }
}

fn at(mesh: &Snapshot, ip: IpAddr) -> Option<&Workload> {
    mesh.workloads_at(ip).next().map(AsRef::as_ref)
}

fn spiffe(identity: &Identity) -> Str {
    identity.to_string().into()
}

fn known(text: &Str) -> Str {
    if text.as_str().is_empty() {
        UNKNOWN.into()
    } else {
        text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_istios_order_and_cannot_break_out() {
        let mut labels = Labels::default();
        labels.set("source_app", "a\"} 1\n\\");
        labels.set("custom", "x");
        labels.remove("source_principal");
        let text = labels.rendered();
        assert!(text.starts_with("reporter=\"waypoint\",source_workload=\"unknown\","));
        assert!(text.contains(r#"source_app="a\"} 1\n\\","#), "{text}");
        assert!(text.ends_with(",custom=\"x\""), "{text}");
        assert!(!text.contains("source_principal"));
    }

    #[test]
    fn mutual_tls_needs_two_principals() {
        let known = Peer {
            principal: "spiffe://a/ns/b/sa/c".into(),
            ..Peer::default()
        };
        for (destination, expected) in [(&known, "mutual_tls"), (&Peer::default(), UNKNOWN)] {
            let mut labels = Labels::default();
            labels.secure(&known, destination);
            let expected = format!("connection_security_policy=\"{expected}\"");
            assert!(labels.rendered().contains(&expected));
        }
    }
}
