//! TLS from waypoints to applications: what BackendTLSPolicies and DestinationRules name and what is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leyline_types::NamespacedName;

use super::{Known, key};
use crate::{
    objects::{
        Kind, ObjectKey,
        l7::{
            backend_tls_policy::{BackendTlsPolicy, CaReference, PortTarget},
            destination_rule::{ClientTls, DestinationRule, TrafficPolicy},
        },
    },
    translate::{
        services::MeshService,
        waypoint::{
            backend_tls::{BackendTls, is_service},
            clusters::{originates, secrets_of},
            names::full_host,
            secrets,
        },
    },
};

impl Known<'_> {
    pub(super) fn backend_tls(&mut self) {
        let objects = self.inputs.objects;
        let all = BackendTls::new(&objects.backend_tls_policies);
        for (name, policy) in &objects.backend_tls_policies {
            let object = key(Kind::BackendTlsPolicy, name);
            for (index, target) in policy.spec.target_refs.iter().enumerate() {
                let field = format!("spec.targetRefs[{index}]");
                self.tls_target(&object, name, field, target, &all);
            }
            self.roots(&object, name, policy);
        }
    }

    fn tls_target(
        &mut self,
        object: &ObjectKey,
        name: &NamespacedName,
        field: String,
        target: &PortTarget,
        all: &BackendTls<'_>,
    ) {
        let namespace = name.namespace.as_str();
        let what = format!("{} {namespace}/{}", target.kind, target.name);
        if !is_service(target) {
            let message = format!(
                "a target of kind {} is not served: Services and ServiceEntries are",
                target.kind
            );
            return self.add(object, ("Accepted", "Invalid"), field, message);
        }
        let is_it = |service: &&&MeshService| {
            service.wire.namespace == namespace && service.wire.name == target.name
        };
        let Some(service) = self.inputs.services.iter().find(is_it) else {
            let message = format!("there is no {what}: it has no effect there");
            return self.add(object, ("Accepted", "TargetNotFound"), field, message);
        };
        let section = target.section_name.as_deref();
        if let Some(section) = section
            && service.ports.iter().all(|port| port.name != section)
        {
            let message = format!("{what} has no port `{section}`: it has no effect there");
            let field = format!("{field}.sectionName");
            return self.add(object, ("Accepted", "TargetNotFound"), field, message);
        }
        if service.waypoints.is_empty() {
            let message = format!(
                "{what} has no waypoint (label istio.io/use-waypoint): nobody speaks TLS to it"
            );
            let why = ("ResolvedWaypoints", "MissingUseWaypointLabel");
            return self.add(object, why, field, message);
        }
        let counts = all.of((namespace, &target.name), section);
        if let Some(other) = counts.filter(|one| one.name != name)
            && other.target.section_name.as_deref() == section
        {
            let message = format!("BackendTLSPolicy {} is about {what} and counts", other.name);
            return self.add(object, ("Accepted", "Conflicted"), field, message);
        }
        if let Some(message) = self.rule_that_counts(&service.wire.hostname, name) {
            self.add(object, ("Accepted", "Conflicted"), field, message);
        }
    }

    /// A rule for the host in place of which the policy has nothing to say: one that is older, or says by itself how TLS is
    /// spoken.
    fn rule_that_counts(&self, host: &str, name: &NamespacedName) -> Option<String> {
        let domain = &self.inputs.mesh.cluster_domain;
        let policy = self.inputs.objects.backend_tls_policies.get(name)?;
        let created = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|time| time.0);
        let mut rules = self.inputs.objects.destination_rules.iter();
        rules.find_map(|(known, rule)| {
            if full_host(&rule.spec.host, known.namespace.as_str(), domain) != host {
                return None;
            }
            let ages = created(&policy.metadata).zip(created(&rule.metadata));
            match ages.filter(|_| known.namespace == name.namespace) {
                Some((own, of_rule)) if rule.spec.traffic_policy.is_some() => {
                    let why = "is older: its traffic policy counts there alone";
                    (of_rule < own).then(|| format!("DestinationRule {known} {why}"))
                }
                Some(_) => None,
                None => every_tls(rule)
                    .iter()
                    .any(|(_, tls)| originates(tls))
                    .then(|| {
                        format!("DestinationRule {known} says how TLS is spoken there and counts")
                    }),
            }
        })
    }

    fn roots(&mut self, object: &ObjectKey, name: &NamespacedName, policy: &BackendTlsPolicy) {
        // Further ones are not looked at, which the inventory tells.
        let Some(of) = policy.spec.validation.ca_certificate_refs.first() else {
            return;
        };
        let field = "spec.validation.caCertificateRefs[0]";
        let CaReference {
            group,
            kind,
            name: map,
        } = of;
        let place = NamespacedName {
            namespace: name.namespace.clone(),
            name: map.as_str().into(),
        };
        let (reason, message) = match (group.as_str(), kind.as_str()) {
            ("" | "core", "ConfigMap") => {
                let bundle = self.inputs.objects.ca_bundles.get(&place);
                if bundle.is_some_and(|bundle| bundle.roots.is_some()) {
                    return;
                }
                let message = format!("there is no ConfigMap {place} with ca.crt");
                ("InvalidCACertificateRef", message)
            }
            _ => (
                "InvalidKind",
                format!("{kind} is no kind of roots; ConfigMap is"),
            ),
        };
        let effect = format!("{message}: requests are refused");
        self.add(object, ("ResolvedRefs", reason), field.to_owned(), message);
        let why = ("Accepted", "NoValidCACertificate");
        self.add(object, why, field.to_owned(), effect);
    }

    /// Secrets that DestinationRules name, in the namespaces of the waypoints that would use them.
    pub(super) fn credentials(&mut self) {
        let domain = &self.inputs.mesh.cluster_domain;
        for (name, rule) in &self.inputs.objects.destination_rules {
            let all = every_tls(rule);
            let all = all.iter().filter(|(_, tls)| originates(tls));
            let mut named = all.filter_map(|one| Some((one, one.1.credential_name.as_deref()?)));
            let Some(first) = named.next() else { continue };
            let host = full_host(&rule.spec.host, name.namespace.as_str(), domain);
            let mut services = self.inputs.services.iter();
            let Some(service) = services.find(|service| service.wire.hostname == host) else {
                continue;
            };
            let object = key(Kind::DestinationRule, name);
            for ((field, tls), credential) in std::iter::once(first).chain(named) {
                for waypoint in &service.waypoints {
                    let namespace = waypoint.namespace.as_str();
                    let mut names = secrets_of(tls);
                    let lacks = |name: &String| {
                        secrets::find(self.inputs.objects, namespace, name).is_none()
                    };
                    let Some(lacking) = names.find(lacks) else {
                        continue;
                    };
                    let part = if lacking.ends_with("-cacert") {
                        "roots"
                    } else {
                        "a certificate and its key"
                    };
                    let message = format!(
                        "there is no Secret {namespace}/{credential} with {part}, for the waypoint {waypoint}: requests are refused"
                    );
                    let field = format!("{field}.credentialName");
                    let why = ("ResolvedRefs", "ReferencedResourceNotFound");
                    self.add(&object, why, field, message);
                }
            }
        }
    }
}

/// Every TLS setting of a rule with its field.
fn every_tls(rule: &DestinationRule) -> Vec<(String, &ClientTls)> {
    let mut all = Vec::new();
    if let Some(policy) = &rule.spec.traffic_policy {
        of_policy("spec.trafficPolicy", policy, &mut all);
    }
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            let field = format!("spec.subsets[{index}].trafficPolicy");
            of_policy(&field, policy, &mut all);
        }
    }
    all
}

fn of_policy<'a>(field: &str, policy: &'a TrafficPolicy, all: &mut Vec<(String, &'a ClientTls)>) {
    all.extend(policy.tls.iter().map(|tls| (format!("{field}.tls"), tls)));
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}].tls");
        all.extend(port.tls.iter().map(|tls| (field.clone(), tls)));
    }
}
