mod describe;
mod fields;
mod findings;
mod inventory;
mod load_balancing;
mod policies;
mod routing;
mod service_entries;
mod trust_domains;
mod waypoint;
mod workloads;

use std::{fmt::Write, fs};

use expect_test::{Expect, expect};
use prost::Message;

use super::*;
use crate::objects::Loader;
use describe::describe;
use policies::policy;

fn objects(yaml: &str) -> Objects {
    let directory = tempfile::TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), yaml).unwrap();
    let loaded = Loader::new(vec![directory.path().to_owned()])
        .load()
        .unwrap();
    assert!(loaded.issues.is_empty(), "{:#?}", loaded.issues);
    Objects::clone(&loaded.objects)
}

fn translated(yaml: &str, enrolled: &[&str]) -> Translation {
    let (objects, settings) = (objects(yaml), MeshSettings::default());
    let wanted = translate(
        &objects,
        &Captured::new(),
        &settings,
        &KeySets::new(),
        &WaypointConfigs::new(),
    )
    .wanted;
    let pods = wanted.into_values().flatten();
    let captured = pods.filter(|(uid, _)| enrolled.contains(&uid.as_str()));
    let captured = captured.map(|(uid, pod)| (uid, pod.instance)).collect();
    translate(
        &objects,
        &captured,
        &settings,
        &KeySets::new(),
        &WaypointConfigs::new(),
    )
}

fn check(yaml: &str, enrolled: &[&str], expected: Expect) {
    expected.assert_eq(&describe(&translated(yaml, enrolled)));
}

fn pod(name: &str, address: &str, extra: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels: {{app: {name}}}
{extra}
spec:
  nodeName: a
  serviceAccountName: {name}-sa
  containers: [{{name: app, image: x, ports: [{{name: http, containerPort: 8080}}]}}]
status: {{phase: Running, podIPs: [{address}], conditions: [{{type: Ready, status: 'True'}}]}}
---
"
    )
}

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---";

#[test]
fn one_edit_changes_the_version_of_one_resource() {
    let yaml = |port: &str| {
        pod("web", "{ip: 10.0.0.1}", "")
            + &pod("other", "{ip: 10.0.0.2}", "")
            + &policy(
                "p",
                "shop",
                &format!("{{rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}"),
            )
    };
    let (before, after) = (translated(&yaml("80"), &[]), translated(&yaml("81"), &[]));
    assert_eq!(before.addresses, after.addresses);
    assert_ne!(before.authorizations, after.authorizations);
}
