//! The trust domains of the mesh: its own, and MeshConfig's `trustDomainAliases`. A service account is the same in all of
//! them, so that principals of policies that name one of them stand for all (facts E.5; istiod's
//! `pilot/pkg/security/trustdomain`).
//!
//! istiod does so for waypoints. To node proxies it sends principals as they are written, and those admit no peers of
//! other trust domains. Ours do, by what is told here of each workload, and so they are told the same principals as
//! waypoints: a DENY that names the one trust domain must not let the other pass.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use leyline_proto::istio::workload::Extension;
use leyline_types::{NamespacedName, TRUST_DOMAIN_ALIASES, TrustDomain};
use prost::Message;

use super::{MeshSettings, waypoint::Member};
use crate::objects::{AuthorizationPolicy, Condition, Rule, mesh_config::MeshConfig};

/// Policies by name.
pub(super) type AuthorizationPolicies = BTreeMap<NamespacedName, Arc<AuthorizationPolicy>>;

/// The condition that names principals.
const PRINCIPAL: &str = "source.principal";

/// The mesh's own first, each once.
#[derive(Debug)]
pub(super) struct TrustDomains(Vec<TrustDomain>);

impl TrustDomains {
    pub(super) fn new(mesh: &MeshSettings, config: &MeshConfig) -> Self {
        let mut all = vec![mesh.trust_domain.clone()];
        // What is no trust domain has been refused when it was read.
        let aliases = config.trust_domain_aliases.iter();
        for alias in aliases.filter_map(|alias| alias.parse().ok()) {
            if !all.contains(&alias) {
                all.push(alias);
            }
        }
        Self(all)
    }

    /// All of them, the mesh's own first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &TrustDomain> {
        self.0.iter()
    }

    /// The policies with their principals in all trust domains.
    pub(super) fn expand<'a>(
        &self,
        policies: &'a AuthorizationPolicies,
    ) -> Cow<'a, AuthorizationPolicies> {
        let mut expanded = Cow::Borrowed(policies);
        for (name, policy) in policies {
            if self.concerns(policy) {
                let policy = Arc::new(self.expand_policy(policy));
                expanded.to_mut().insert(name.clone(), policy);
            }
        }
        expanded
    }

    /// Whether something of the policy becomes another thing.
    fn concerns(&self, policy: &AuthorizationPolicy) -> bool {
        let rules = policy.spec.rules.iter().flatten();
        let mut principals = rules.flat_map(principals);
        principals.any(|principal| self.in_all(principal) != [principal.as_str()])
    }

    fn expand_policy(&self, policy: &AuthorizationPolicy) -> AuthorizationPolicy {
        let mut policy = policy.clone();
        for rule in policy.spec.rules.iter_mut().flatten() {
            let sources = rule.from.iter_mut().flatten();
            for source in sources.filter_map(|from| from.source.as_mut()) {
                self.expand_list(&mut source.principals);
                self.expand_list(&mut source.not_principals);
            }
            let conditions = rule.when.iter_mut().flatten();
            for condition in conditions.filter(|one| one.key == PRINCIPAL) {
                self.expand_list(&mut condition.values);
                self.expand_list(&mut condition.not_values);
            }
        }
        policy
    }

    fn expand_list(&self, principals: &mut Vec<String>) {
        let expanded = principals.iter().flat_map(|one| self.in_all(one));
        *principals = expanded.collect();
    }

    /// A principal in each trust domain of the mesh, where it names one of them, or `cluster.local`, which stands for
    /// whatever the mesh's own is called. All other principals stay as they are: those of foreign trust domains, and
    /// those that say nothing of trust domains (`*`, `*/ns/shop/sa/web`).
    fn in_all(&self, principal: &str) -> Vec<String> {
        let as_it_is = || vec![principal.to_owned()];
        let parts: Vec<&str> = principal.splitn(2, '/').collect();
        let &[named, account] = parts.as_slice() else {
            return as_it_is();
        };
        // `ns`, the namespace, `sa` and the account; what is shorter may end anywhere.
        if named == "*" || account.split('/').count() != 4 {
            return as_it_is();
        }
        let fits = |known: &TrustDomain| match named.strip_prefix('*') {
            Some(suffix) => known.as_str().ends_with(suffix),
            None => known.as_str() == named,
        };
        if named != TrustDomain::DEFAULT && !self.iter().any(fits) {
            return as_it_is();
        }
        let mut all = Vec::with_capacity(self.0.len());
        for known in self.iter() {
            let one = if fits(known) {
                principal.to_owned()
            } else {
                format!("{known}/{account}")
            };
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// Tells node proxies of the aliases: peers of a workload may be of them, and so may it be itself.
    pub(super) fn tell_all(&self, members: &mut [Member]) {
        let Some((_own, aliases @ [_, ..])) = self.0.split_first() else {
            return;
        };
        let values = aliases.iter().map(|alias| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(alias.to_string())),
        });
        let list = prost_types::ListValue {
            values: values.collect(),
        };
        let extension = Extension {
            name: TRUST_DOMAIN_ALIASES.to_owned(),
            config: Some(prost_types::Any {
                type_url: "type.googleapis.com/google.protobuf.ListValue".to_owned(),
                value: list.encode_to_vec(),
            }),
        };
        for member in members {
            member.workload.extensions.push(extension.clone());
        }
    }
}

/// All that a rule names.
fn principals(rule: &Rule) -> impl Iterator<Item = &String> {
    let sources = rule.from.iter().flatten();
    let sources = sources.filter_map(|from| from.source.as_ref());
    let sources = sources.flat_map(|source| source.principals.iter().chain(&source.not_principals));
    let conditions = rule.when.iter().flatten();
    let conditions = conditions.filter(|condition| condition.key == PRINCIPAL);
    let conditions = conditions.flat_map(
        |Condition {
             values, not_values, ..
         }| { values.iter().chain(not_values) },
    );
    sources.chain(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(own: &str, aliases: &[&str]) -> TrustDomains {
        let mesh = MeshSettings {
            trust_domain: own.parse().unwrap(),
            ..MeshSettings::default()
        };
        let config = MeshConfig {
            trust_domain_aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            ..MeshConfig::default()
        };
        TrustDomains::new(&mesh, &config)
    }

    #[test]
    fn principals_of_the_mesh_are_in_all_of_its_trust_domains() {
        let check = |own: &str, aliases: &[&str], principal: &str, expected: &[&str]| {
            let found = domains(own, aliases).in_all(principal);
            assert_eq!(found, expected, "{own} {aliases:?}");
        };
        let web = "/ns/shop/sa/web";
        let of = |names: &[&str]| names.iter().map(|name| format!("{name}{web}")).collect();
        let check_web = |own: &str, aliases: &[&str], named: &str, expected: &[&str]| {
            let expected: Vec<String> = of(expected);
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            check(own, aliases, &format!("{named}{web}"), &expected);
        };
        // Without aliases, the usual name is another word for the mesh's own.
        check_web("cluster.local", &[], "cluster.local", &["cluster.local"]);
        check_web("new.example", &[], "cluster.local", &["new.example"]);
        check_web("new.example", &[], "new.example", &["new.example"]);
        check_web("new.example", &[], "old.example", &["old.example"]);
        // By either of its names, or by the usual one.
        let both = ["new.example", "old.example"];
        for named in ["new.example", "old.example", "cluster.local"] {
            check_web("new.example", &["old.example"], named, &both);
        }
        let with_usual = ["new.example", "cluster.local"];
        check_web(
            "new.example",
            &["cluster.local"],
            "cluster.local",
            &with_usual,
        );
        // A third one is a stranger, and a part of a name is no name.
        check_web(
            "new.example",
            &["old.example"],
            "third.example",
            &["third.example"],
        );
        check_web("new.example", &["old.example"], "example", &["example"]);
        // Patterns stay for those that they fit.
        check_web("new.example", &["old.example"], "*.example", &["*.example"]);
        check_web(
            "new.example",
            &["old.other"],
            "*.other",
            &["new.example", "*.other"],
        );
        check_web("new.example", &["old.example"], "*", &["*"]);
        // Each once, whatever the user repeats.
        let twice = ["old.example", "new.example", "old.example"];
        check_web("new.example", &twice, "old.example", &both);
        let aliases = ["old.example"];
        for as_it_is in [
            "*",
            "*/sa/web",
            "old.example/*",
            "old.example/ns/shop/*",
            "spiffe://old.example/ns/shop/sa/web",
            "",
        ] {
            check("new.example", &aliases, as_it_is, &[as_it_is]);
        }
        let any_account = ["new.example/ns/shop/sa/*", "old.example/ns/shop/sa/*"];
        check(
            "new.example",
            &aliases,
            "old.example/ns/shop/sa/*",
            &any_account,
        );
    }

    #[test]
    fn policies_that_name_no_trust_domain_of_the_mesh_are_not_copied() {
        let policy = |rule: &str| {
            let rule: Rule = serde_json::from_str(rule).unwrap();
            let mut policy = AuthorizationPolicy::default();
            policy.spec.rules = Some(vec![rule]);
            let name = NamespacedName {
                namespace: "shop".into(),
                name: "p".into(),
            };
            AuthorizationPolicies::from([(name, Arc::new(policy))])
        };
        let domains = domains("new.example", &["old.example"]);
        let expands = |rule: &str| matches!(domains.expand(&policy(rule)), Cow::Owned(_));
        let principal = "old.example/ns/shop/sa/web";
        for (key, expected) in [
            ("source.principal", true),
            ("request.auth.principal", false),
        ] {
            for list in ["values", "notValues"] {
                let rule =
                    format!(r#"{{"when": [{{"key": "{key}", "{list}": ["{principal}"]}}]}}"#);
                assert_eq!(expands(&rule), expected, "{rule}");
            }
        }
        for (list, expected) in [
            ("principals", true),
            ("notPrincipals", true),
            ("requestPrincipals", false),
        ] {
            let rule = format!(r#"{{"from": [{{"source": {{"{list}": ["{principal}"]}}}}]}}"#);
            assert_eq!(expands(&rule), expected, "{rule}");
        }
        assert!(!expands("{}"));
    }
}
