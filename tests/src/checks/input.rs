//! Check 8: malformed YAML, a Service with a wrong port, an unknown field, a policy with a bad address block: each is reported
//! with its file, and nothing else changes. A document that becomes bad stays in force as it was.

use anyhow::{Context, Result, bail, ensure};

use super::{
    calls::{Call, Expected, answered, settle},
    names::{CLIENT, HTTP, HTTP_SERVICE, SERVER, SERVER_V1, SHOP, WORKER},
    policy::policy,
};
use crate::{
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    process::Log,
};

/// A document with a fault, and a word that its report must have.
struct Fault {
    name: &'static str,
    yaml: &'static str,
    reported: &'static str,
}

const FAULTS: [Fault; 4] = [
    Fault {
        name: "malformed",
        yaml: "apiVersion: v1\nkind: Service\nmetadata: {name: broken\n  namespace: shop\n",
        reported: "check-malformed.yaml",
    },
    Fault {
        name: "port",
        yaml: "\
apiVersion: v1
kind: Service
metadata: {name: far-out, namespace: shop}
spec:
  clusterIPs: [10.96.0.99]
  selector: {app: server}
  ports: [{name: http, port: 99999, targetPort: http}]
",
        reported: "port",
    },
    Fault {
        name: "field",
        yaml: "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: misspelt, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rulez: [{from: [{source: {namespaces: [office]}}]}]
",
        reported: "rulez",
    },
    Fault {
        name: "block",
        yaml: "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-address, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {ipBlocks: [10.0.0.300/8]}}]}]
",
        reported: "10.0.0.300/8",
    },
];

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let before = mesh.dumps().await?;
    let vip = mesh.cluster().vip(SERVER, Family::V4, HTTP_SERVICE)?;
    for fault in &FAULTS {
        let log = mesh.controlplane().log()?.from_now()?;
        mesh.write_check_file(fault.name, fault.yaml)?;
        reported(mesh, &log, fault.name, fault.reported).await?;
        answered(mesh, CLIENT, vip).await?;
        ensure!(
            mesh.dumps().await? == before,
            "check-{}.yaml has changed what proxies know",
            fault.name
        );
        mesh.remove_check_file(fault.name)?;
    }
    last_good(mesh).await.context("a policy that becomes bad")?;
    Ok(format!(
        "{} faults reported by file and reason, the last good version kept",
        FAULTS.len()
    ))
}

/// A good policy is edited into a bad one: reported, and the good one stays in force.
async fn last_good(mesh: &Mesh) -> Result<()> {
    let to = mesh.cluster().pod_addr(SERVER_V1, Family::V4, HTTP)?;
    let calls = [
        (Call { from: WORKER, to }, Expected::Refusal),
        (Call { from: CLIENT, to }, Expected::Answer),
    ];
    let good = policy(
        "turned",
        "DENY",
        "- from: [{source: {namespaces: [office]}}]",
    );
    mesh.write_check_file("turned", &good)?;
    settle(mesh, "the good version", &calls).await?;
    let log = mesh.controlplane().log()?.from_now()?;
    let bad = policy(
        "turned",
        "DENY",
        "- from: [{source: {ipBlocks: [nowhere/8]}}]",
    );
    mesh.write_check_file("turned", &bad)?;
    reported(mesh, &log, "turned", "nowhere/8").await?;
    settle(mesh, "still the good version", &calls).await?;
    Ok(())
}

async fn reported(mesh: &Mesh, log: &Log, name: &str, word: &str) -> Result<()> {
    let file = format!("check-{name}.yaml");
    let what = format!("a report of {file} with `{word}`");
    eventually(what, mesh.limits().edit, || {
        let lines = log.lines();
        let tail = log.tail();
        let file = &file;
        async move {
            if lines?
                .iter()
                .any(|line| line.contains(file) && line.contains(word))
            {
                return Ok(());
            }
            bail!("{tail}")
        }
    })
    .await?;
    Ok(())
}
