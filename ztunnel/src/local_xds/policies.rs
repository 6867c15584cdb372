//! Authorization policies.

use leyline_proto::istio::security as wire;
use serde::Deserialize;

use super::block;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    name: String,
    namespace: String,
    scope: Scope,
    action: Action,
    #[serde(default)]
    dry_run: bool,
    /// Rules, each of clauses, each of matches.
    rules: Vec<Vec<Vec<Match>>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Scope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Match {
    namespaces: Vec<StringMatch>,
    not_namespaces: Vec<StringMatch>,
    service_accounts: Vec<ServiceAccount>,
    not_service_accounts: Vec<ServiceAccount>,
    principals: Vec<StringMatch>,
    not_principals: Vec<StringMatch>,
    source_ips: Vec<String>,
    not_source_ips: Vec<String>,
    destination_ips: Vec<String>,
    not_destination_ips: Vec<String>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

/// `!Exact text`, `!Presence []`.
#[derive(Debug, Deserialize)]
enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(#[expect(dead_code, reason = "as Istio writes it, a list of nothing")] Vec<()>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceAccount {
    namespace: String,
    service_account: String,
}

impl Policy {
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) fn into_wire(self) -> Result<wire::Authorization, String> {
        let mut groups = Vec::with_capacity(self.rules.len());
        for rule in self.rules {
            let mut rules = Vec::with_capacity(rule.len());
            for clause in rule {
                let matches: Result<_, _> = clause.into_iter().map(Match::into_wire).collect();
                rules.push(wire::Rules { matches: matches? });
            }
            groups.push(wire::Group { rules });
        }
        Ok(wire::Authorization {
            name: self.name,
            namespace: self.namespace,
            scope: match self.scope {
                Scope::Global => wire::Scope::Global,
                Scope::Namespace => wire::Scope::Namespace,
                Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
            }
            .into(),
            action: match self.action {
                Action::Allow => wire::Action::Allow,
                Action::Deny => wire::Action::Deny,
            }
            .into(),
            groups,
            dry_run: self.dry_run,
            ..wire::Authorization::default()
        })
    }
}

impl Match {
    fn into_wire(self) -> Result<wire::Match, String> {
        Ok(wire::Match {
            namespaces: strings(self.namespaces),
            not_namespaces: strings(self.not_namespaces),
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            principals: strings(self.principals),
            not_principals: strings(self.not_principals),
            source_ips: blocks(&self.source_ips)?,
            not_source_ips: blocks(&self.not_source_ips)?,
            destination_ips: blocks(&self.destination_ips)?,
            not_destination_ips: blocks(&self.not_destination_ips)?,
            destination_ports: ports(self.destination_ports),
            not_destination_ports: ports(self.not_destination_ports),
        })
    }
}

fn strings(matches: Vec<StringMatch>) -> Vec<wire::StringMatch> {
    use wire::string_match::MatchType;
    let wire = |one| wire::StringMatch {
        match_type: Some(match one {
            StringMatch::Exact(text) => MatchType::Exact(text),
            StringMatch::Prefix(text) => MatchType::Prefix(text),
            StringMatch::Suffix(text) => MatchType::Suffix(text),
            StringMatch::Presence(_) => MatchType::Presence(()),
        }),
    };
    matches.into_iter().map(wire).collect()
}

fn accounts(accounts: Vec<ServiceAccount>) -> Vec<wire::ServiceAccountMatch> {
    let wire = |one: ServiceAccount| wire::ServiceAccountMatch {
        namespace: one.namespace,
        service_account: one.service_account,
    };
    accounts.into_iter().map(wire).collect()
}

fn blocks(texts: &[String]) -> Result<Vec<wire::Address>, String> {
    let wire = |text: &String| {
        let (address, length) = block(text)?;
        Ok(wire::Address { address, length })
    };
    texts.iter().map(wire).collect()
}

fn ports(ports: Vec<u16>) -> Vec<u32> {
    ports.into_iter().map(u32::from).collect()
}
