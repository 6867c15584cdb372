//! A pod as a SPIRE agent is told of it: by selectors, of the names that its Kubernetes attestor gives them.

use leyline_types::{Identity, WorkloadName};
use spire_api::pb::spire::api::types::Selector;

/// The attestor whose selectors these are.
const KUBERNETES: &str = "k8s";

/// A pod for which certificates are asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelegatedPod {
    /// Its name, namespace and service account.
    pub name: WorkloadName,
    /// Its uid in Kubernetes, where that is known.
    pub uid: Option<String>,
}

impl DelegatedPod {
    /// Whether the pod is one of those that the identity is for. In any trust domain: which one it is, the agent says.
    pub(super) fn is_of(&self, identity: &Identity) -> bool {
        self.name.namespace == *identity.namespace()
            && self.name.service_account == *identity.service_account()
    }

    /// All that is known of it. An entry of the agent matches if each of the entry's selectors is among these, so that
    /// more of them match more entries: by service account, by name, and those that spire-controller-manager makes for
    /// one pod by its uid.
    pub(super) fn selectors(&self, node: &str) -> Vec<Selector> {
        let WorkloadName {
            name,
            namespace,
            service_account,
        } = &self.name;
        let known = [
            ("ns", namespace.as_str()),
            ("sa", service_account.as_str()),
            ("pod-name", name.as_str()),
            ("pod-uid", self.uid.as_deref().unwrap_or_default()),
            ("node-name", node),
        ];
        let known = known.into_iter().filter(|(_, value)| !value.is_empty());
        let selectors = known.map(|(kind, value)| Selector {
            r#type: KUBERNETES.to_owned(),
            value: format!("{kind}:{value}"),
        });
        selectors.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: Option<&str>) -> DelegatedPod {
        DelegatedPod {
            name: WorkloadName {
                name: "web-0".into(),
                namespace: "shop".into(),
                service_account: "web".into(),
            },
            uid: uid.map(str::to_owned),
        }
    }

    #[test]
    fn all_that_is_known_of_a_pod_is_told() {
        let check = |uid: Option<&str>, node: &str, expected: &str| {
            let selectors = pod(uid).selectors(node);
            let told = selectors
                .iter()
                .map(|one| format!("{}:{}", one.r#type, one.value));
            assert_eq!(told.collect::<Vec<_>>().join(" "), expected);
        };
        let names = "k8s:ns:shop k8s:sa:web k8s:pod-name:web-0";
        check(None, "", names);
        check(None, "node-a", &format!("{names} k8s:node-name:node-a"));
        let whole = format!("{names} k8s:pod-uid:0a-1b k8s:node-name:node-a");
        check(Some("0a-1b"), "node-a", &whole);
    }

    #[test]
    fn a_pod_is_of_its_service_account_in_any_trust_domain() {
        for (identity, expected) in [
            ("spiffe://cluster.local/ns/shop/sa/web", true),
            ("spiffe://example.org/ns/shop/sa/web", true),
            ("spiffe://cluster.local/ns/shop/sa/db", false),
            ("spiffe://cluster.local/ns/web/sa/shop", false),
        ] {
            let is_of = pod(None).is_of(&identity.parse().unwrap());
            assert_eq!(is_of, expected, "{identity}");
        }
    }
}
