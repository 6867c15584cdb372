//! What a node proxy says that it knows, out of its `/config_dump`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The part of a dump that tells whether an edit has arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// By uid.
    pub workloads: BTreeMap<String, Workload>,
    /// Uids of the pods that the proxy serves.
    pub up: BTreeSet<String>,
    /// `namespace/name` of every policy.
    pub policies: BTreeSet<String>,
    /// `namespace/hostname` of every service.
    pub services: BTreeSet<String>,
}

/// A workload of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `HBONE` or `TCP`.
    pub protocol: String,
    /// Policies that select it by name.
    pub policies: Vec<String>,
}

impl Dump {
    /// Reads the JSON of `/config_dump`.
    pub fn read(dump: &Value) -> Result<Self> {
        let mut workloads = BTreeMap::new();
        for workload in items(&dump["workloads"]) {
            let policies = items(&workload["authorizationPolicies"])
                .into_iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect();
            let protocol = text(workload, "protocol")?;
            workloads.insert(text(workload, "uid")?, Workload { protocol, policies });
        }
        let states = dump["workloadState"].as_object();
        let up = states
            .into_iter()
            .flatten()
            .filter(|(_, state)| state["state"] == "Up")
            .map(|(uid, _)| uid.clone())
            .collect();
        Ok(Self {
            workloads,
            up,
            policies: names(&dump["policies"], "name")?,
            services: names(&dump["services"], "hostname")?,
        })
    }

    /// Whether the proxy takes `uid` for a member of the mesh.
    pub fn check_enrolled(&self, uid: &str) -> Result<()> {
        let workload = self.workload(uid)?;
        ensure!(
            workload.protocol == "HBONE",
            "{uid} is reached over {}",
            workload.protocol
        );
        Ok(())
    }

    /// Whether it does not.
    pub fn check_not_enrolled(&self, uid: &str) -> Result<()> {
        let workload = self.workload(uid)?;
        ensure!(
            workload.protocol == "TCP",
            "{uid} is reached over {}",
            workload.protocol
        );
        if self.up.contains(uid) {
            bail!("{uid} is still served");
        }
        Ok(())
    }

    fn workload(&self, uid: &str) -> Result<&Workload> {
        self.workloads
            .get(uid)
            .with_context(|| format!("{uid} is not known"))
    }
}

/// A list, or the values of a map: readers of dumps accept both.
fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn text(item: &Value, key: &str) -> Result<String> {
    let text = item[key].as_str();
    Ok(text
        .with_context(|| format!("no `{key}` in {item}"))?
        .to_owned())
}

fn names(list: &Value, key: &str) -> Result<BTreeSet<String>> {
    items(list)
        .into_iter()
        .map(|item| Ok(format!("{}/{}", text(item, "namespace")?, text(item, key)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_tells_enrolment() {
        let dump = Dump::read(&json!({
            "workloads": [
                {"uid": "a", "protocol": "HBONE", "authorizationPolicies": ["shop/p"]},
                {"uid": "b", "protocol": "TCP"},
            ],
            "workloadState": {"a": {"state": "Up"}, "c": {"state": "Pending"}},
            "policies": {"shop/p": {"namespace": "shop", "name": "p"}},
            "services": [{"namespace": "shop", "hostname": "web.shop.svc.cluster.local"}],
        }))
        .unwrap();
        dump.check_enrolled("a").unwrap();
        dump.check_not_enrolled("b").unwrap();
        assert!(dump.check_not_enrolled("a").is_err());
        assert!(dump.check_enrolled("c").is_err());
        assert!(dump.policies.contains("shop/p"));
        assert_eq!(dump.up.len(), 1);
    }
}
