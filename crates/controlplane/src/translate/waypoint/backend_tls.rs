//! BackendTLSPolicies (GEP-1897): TLS from a waypoint to the applications of a Service, as a DestinationRule of mode SIMPLE
//! says it. A policy for a port goes before one for all ports, an older one before a younger one. Where the roots that it
//! names are not there, nothing is sent: a secret is asked for that nobody has.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leyline_types::NamespacedName;

use super::{clusters::CONFIG_MAP, index::key, view::ServiceView};
use crate::objects::l7::{
    backend_tls_policy::{BackendTlsPolicy, BackendTlsPolicySpec, PortTarget},
    destination_rule::ClientTls,
};

const ISTIO_GROUP: &str = "networking.istio.io";

/// A policy and one of its targets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached<'a> {
    pub(super) name: &'a NamespacedName,
    pub(super) policy: &'a BackendTlsPolicy,
    pub(super) target: &'a PortTarget,
}

/// By namespace and name of what they are attached to; those that go before others come first.
pub(super) struct BackendTls<'a>(HashMap<String, Vec<Attached<'a>>>);

impl<'a> BackendTls<'a> {
    pub(super) fn new(objects: &'a BTreeMap<NamespacedName, Arc<BackendTlsPolicy>>) -> Self {
        let mut by_target: HashMap<_, Vec<Attached<'a>>> = HashMap::new();
        for (name, policy) in objects {
            for target in policy.spec.target_refs.iter().filter(|one| is_service(one)) {
                let key = key(name.namespace.as_str(), &target.name);
                by_target.entry(key).or_default().push(Attached {
                    name,
                    policy,
                    target,
                });
            }
        }
        for attached in by_target.values_mut() {
            attached.sort_by_key(|one| {
                let created = one.policy.metadata.creation_timestamp.as_ref();
                let for_port = one.target.section_name.is_some();
                // Unknown ages come last among equals.
                let age = created.map_or((1, None), |time| (0, Some(time.0)));
                (Reverse(for_port), age, one.name)
            });
        }
        Self(by_target)
    }

    /// The one that counts for a port, by its name.
    pub(super) fn of(
        &self,
        (namespace, name): (&str, &str),
        port: Option<&str>,
    ) -> Option<&Attached<'a>> {
        let mut attached = self.0.get(&key(namespace, name))?.iter();
        attached.find(move |one| {
            let section = one.target.section_name.as_deref();
            section.is_none() || section == port
        })
    }

    /// The one that counts for a port of a service.
    pub(super) fn of_port(&self, service: &ServiceView<'_>, port: u16) -> Option<&Attached<'a>> {
        let mut sections = service.sections.iter();
        let section = sections.find(|(_, number)| *number == u32::from(port));
        let service = (service.namespace, service.name);
        self.of(service, section.map(|(name, _)| *name))
    }
}

impl Attached<'_> {
    /// The TLS that it asks for.
    pub(super) fn tls(&self) -> ClientTls {
        client_tls(self.name.namespace.as_str(), &self.policy.spec)
    }

    /// Which was created first; `None` where that is not known of both, as in files.
    pub(super) fn compare_age(&self, other: &ObjectMeta) -> Option<Ordering> {
        let own = self.policy.metadata.creation_timestamp.as_ref()?;
        let other = other.creation_timestamp.as_ref()?;
        Some(own.0.cmp(&other.0))
    }
}

/// Whether it can be attached to at all.
pub(super) fn is_service(target: &PortTarget) -> bool {
    matches!(
        (target.group.as_str(), target.kind.as_str()),
        ("" | "core", "Service") | (ISTIO_GROUP, "ServiceEntry")
    )
}

fn client_tls(namespace: &str, policy: &BackendTlsPolicySpec) -> ClientTls {
    let validation = &policy.validation;
    let names = validation.subject_alt_names.iter();
    let names = names.filter_map(|name| name.name().map(str::to_owned));
    let roots = validation.ca_certificate_refs.first();
    ClientTls {
        mode: Some("SIMPLE".to_owned()),
        // Another kind is asked for all the same, and is not there.
        credential_name: roots.map(|one| match one.kind.as_str() {
            "ConfigMap" => format!("{CONFIG_MAP}{namespace}/{}", one.name),
            kind => format!("{}://{namespace}/{}", kind.to_ascii_lowercase(), one.name),
        }),
        sni: Some(validation.hostname.clone()),
        subject_alt_names: names.collect(),
        ..ClientTls::default()
    }
}
