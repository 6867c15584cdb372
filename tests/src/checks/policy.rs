//! Check 5: AuthorizationPolicy by principal, namespace, port and address block, DENY over ALLOW, deny by an empty spec; a live
//! connection is cut when the policy changes.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    calls::{
        Call,
        Expected::{self, Answer, Refusal},
        settle,
    },
    names::{CLIENT, HTTP, LEGACY, SERVER_V1, SERVER_V2, SHOP, TCP, WORKER},
};
use crate::{
    cluster::Family,
    mesh::{Enrolment, Mesh},
};

/// The name of the file that each rule replaces.
const FILE: &str = "policy";

/// One policy and what becomes of calls under it.
struct Rule {
    what: &'static str,
    yaml: String,
    calls: Vec<(Call, Expected)>,
}

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let mut slowest = Duration::ZERO;
    let mut rules = rules_by_source(mesh)?;
    rules.extend(rules_by_address(mesh)?);
    for rule in &rules {
        mesh.write_check_file(FILE, &rule.yaml)?;
        let after = settle(mesh, rule.what, &rule.calls)
            .await
            .with_context(|| rule.what.to_owned())?;
        slowest = slowest.max(after);
    }
    mesh.remove_check_file(FILE)?;
    let cut = live_connections(mesh).await?;
    Ok(format!(
        "{} policies, each in force within {} ms; live connections cut after {} ms",
        rules.len(),
        slowest.as_millis(),
        cut.as_millis()
    ))
}

/// An app's connection over HBONE and one in plain text are cut by a policy that came later.
async fn live_connections(mesh: &Mesh) -> Result<Duration> {
    let limits = mesh.limits();
    let to = mesh.cluster().pod_addr(SERVER_V1, Family::V4, TCP)?;
    let everybody: Vec<(Call, Expected)> = [CLIENT, WORKER, LEGACY]
        .map(|from| (Call { from, to }, Answer))
        .into();
    settle(mesh, "no policy, no refusal", &everybody).await?;
    let mut connections = Vec::new();
    for from in [CLIENT, LEGACY] {
        let mut connection = mesh
            .cluster()
            .client(from)?
            .connect(to, limits.call)
            .await?;
        connection.echo(b"allowed").await?;
        connections.push((from, connection));
    }
    mesh.write_check_file(FILE, &deny_all())?;
    let start = tokio::time::Instant::now();
    for (from, connection) in &mut connections {
        connection
            .ended(limits.edit)
            .await
            .with_context(|| format!("the live connection of {from}"))?;
    }
    Ok(start.elapsed())
}

/// Calls of this check: version 1 by IPv4, version 2 by IPv6.
fn call(mesh: &Mesh, from: &'static str, to: &str, port: u16) -> Result<Call> {
    let family = if to == SERVER_V1 {
        Family::V4
    } else {
        Family::V6
    };
    let to = mesh.cluster().pod_addr(to, family, port)?;
    Ok(Call { from, to })
}

/// Rules by who calls.
fn rules_by_source(mesh: &Mesh) -> Result<Vec<Rule>> {
    let v1 = |from| call(mesh, from, SERVER_V1, HTTP);
    let v2 = |from| call(mesh, from, SERVER_V2, HTTP);
    Ok(vec![
        Rule {
            what: "an empty spec denies all",
            yaml: deny_all(),
            calls: vec![
                (v1(CLIENT)?, Refusal),
                (v2(CLIENT)?, Refusal),
                (v1(WORKER)?, Refusal),
                (v1(LEGACY)?, Refusal),
            ],
        },
        Rule {
            what: "ALLOW by principal",
            yaml: allow("- from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]"),
            calls: vec![
                (v1(CLIENT)?, Answer),
                (v2(CLIENT)?, Answer),
                (v1(WORKER)?, Refusal),
                (v1(LEGACY)?, Refusal),
            ],
        },
        Rule {
            what: "ALLOW by namespace",
            yaml: allow("- from: [{source: {namespaces: [office]}}]"),
            calls: vec![
                (v1(WORKER)?, Answer),
                (v2(WORKER)?, Answer),
                (v1(CLIENT)?, Refusal),
                (v2(LEGACY)?, Refusal),
            ],
        },
    ])
}

/// Rules by port and address, and two policies at once.
fn rules_by_address(mesh: &Mesh) -> Result<Vec<Rule>> {
    let v1 = |from| call(mesh, from, SERVER_V1, HTTP);
    let v2 = |from| call(mesh, from, SERVER_V2, HTTP);
    let worker = mesh.cluster().pod(WORKER)?.addresses().v4;
    let everybody = policy(
        "everybody",
        "ALLOW",
        "- from: [{source: {principals: [\"*\"]}}]",
    );
    let not_the_client = policy(
        "not-the-client",
        "DENY",
        "- from: [{source: {principals: [\"*/sa/client\"]}}]",
    );
    Ok(vec![
        Rule {
            what: "ALLOW by port",
            yaml: allow("- to: [{operation: {ports: [\"8080\"]}}]"),
            calls: vec![
                (v1(CLIENT)?, Answer),
                (v2(WORKER)?, Answer),
                (v1(LEGACY)?, Answer),
                (call(mesh, CLIENT, SERVER_V1, TCP)?, Refusal),
                (call(mesh, LEGACY, SERVER_V2, TCP)?, Refusal),
            ],
        },
        Rule {
            what: "ALLOW by address block",
            yaml: allow(&format!(
                "- from: [{{source: {{ipBlocks: [{worker}/32]}}}}]"
            )),
            calls: vec![
                (v1(WORKER)?, Answer),
                (v2(WORKER)?, Refusal),
                (v1(CLIENT)?, Refusal),
                (v1(LEGACY)?, Refusal),
            ],
        },
        Rule {
            what: "DENY over ALLOW",
            yaml: format!("{everybody}---\n{not_the_client}"),
            calls: vec![
                (v1(WORKER)?, Answer),
                (v2(WORKER)?, Answer),
                (v1(CLIENT)?, Refusal),
                (v2(CLIENT)?, Refusal),
                (v1(LEGACY)?, Refusal),
            ],
        },
    ])
}

pub(super) fn deny_all() -> String {
    "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: nobody
  namespace: shop
spec: {}
"
    .to_owned()
}

fn allow(rule: &str) -> String {
    policy("some", "ALLOW", rule)
}

/// A policy for the servers with one rule.
pub(super) fn policy(name: &str, action: &str, rule: &str) -> String {
    format!(
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
  namespace: shop
spec:
  selector:
    matchLabels:
      app: server
  action: {action}
  rules:
  {rule}
"
    )
}
