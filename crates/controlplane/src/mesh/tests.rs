use std::path::Path;

use prost::Message;

use super::*;
use crate::objects::Loader;

const YAML: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {istio.io/dataplane-mode: ambient}}
spec: {nodeName: a, containers: [{name: web}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
";
const UID: &str = "Kubernetes//Pod/shop/web";
const INSTANCE: &str = "a default 10.0.0.1";

fn mesh(directory: &Path, yaml: &str) -> Mesh {
    let config = directory.join("config");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("a.yaml"), yaml).unwrap();
    let loaded = Loader::new(vec![config]).load().unwrap();
    let state = StateDir::open(&directory.join("state")).unwrap();
    Mesh::new(MeshSettings::default(), loaded, &state)
}

fn version(mesh: &Mesh) -> String {
    mesh.published().translation.addresses[UID].version.clone()
}

#[test]
fn enrolment_changes_the_workload_and_survives_a_restart() {
    let directory = tempfile::TempDir::new().unwrap();
    let first = mesh(directory.path(), YAML);
    let plain = version(&first);
    first.set_enrolment(UID, Enrolment::Captured(INSTANCE.to_owned()));
    first.publish();
    let captured = version(&first);
    assert_ne!(plain, captured);
    assert_eq!(first.published().generation, 2);
    first.store();

    let second = mesh(directory.path(), YAML);
    assert_eq!(version(&second), captured);
    second.set_enrolment(UID, Enrolment::Failed("busy".to_owned()));
    second.publish();
    assert_eq!(
        version(&second),
        captured,
        "a failure does not undo what was known"
    );
    second.set_enrolment(UID, Enrolment::Released(None));
    second.publish();
    assert_eq!(version(&second), plain);
    second.store();
    assert_eq!(version(&mesh(directory.path(), YAML)), plain);
}

#[test]
fn a_pod_that_is_gone_is_forgotten() {
    let directory = tempfile::TempDir::new().unwrap();
    let mesh_with_pod = mesh(directory.path(), YAML);
    mesh_with_pod.set_enrolment(UID, Enrolment::Captured(INSTANCE.to_owned()));
    mesh_with_pod.publish();
    mesh_with_pod.set_objects(Loaded::default());
    mesh_with_pod.publish();
    assert!(mesh_with_pod.enrolments().0.is_empty());
    assert!(mesh_with_pod.published().translation.addresses.is_empty());
}

#[test]
fn an_unreadable_list_of_enrolled_pods_counts_as_empty() {
    let directory = tempfile::TempDir::new().unwrap();
    mesh(directory.path(), YAML);
    std::fs::write(directory.path().join("state/enrolled.json"), "{").unwrap();
    assert!(mesh(directory.path(), YAML).enrolments().0.is_empty());
}

#[test]
fn identities_run_where_their_pods_run() {
    let directory = tempfile::TempDir::new().unwrap();
    let runs = |yaml: &str, node: &str, id: &str| {
        mesh(directory.path(), yaml)
            .published()
            .runs_on(node, &id.parse().unwrap())
    };
    let id = "spiffe://cluster.local/ns/shop/sa/default";
    assert!(runs(YAML, "a", id));
    assert!(!runs(YAML, "b", id));
    assert!(!runs(YAML, "a", "spiffe://cluster.local/ns/shop/sa/other"));
    assert!(!runs(
        YAML,
        "a",
        "spiffe://cluster.local/ns/other/sa/default"
    ));
    assert!(!runs(&YAML.replace("Running", "Failed"), "a", id));
}

#[test]
fn another_pod_under_the_same_name_is_not_captured() {
    let directory = tempfile::TempDir::new().unwrap();
    let first = mesh(directory.path(), YAML);
    let plain = |mesh: &Mesh| {
        let address = &mesh.published().translation.addresses[UID];
        let decoded = leyline_proto::istio::workload::Address::decode(address.body.clone());
        let Some(leyline_proto::istio::workload::address::Type::Workload(workload)) =
            decoded.unwrap().r#type
        else {
            panic!("a workload")
        };
        let plain = workload.tunnel_protocol == 0;
        // Nobody is to reach it in plaintext meanwhile.
        assert_eq!(plain, !workload.extensions.is_empty());
        plain
    };
    for (what, yaml) in [
        ("address", YAML.replace("10.0.0.1", "10.0.0.2")),
        ("node", YAML.replace("nodeName: a", "nodeName: b")),
        (
            "uid",
            YAML.replace("name: web, name", "uid: x, name: web, name"),
        ),
        (
            "account",
            YAML.replace("nodeName: a", "serviceAccountName: x, nodeName: a"),
        ),
    ] {
        first.set_objects(mesh(directory.path(), YAML).state.lock().loaded.clone());
        first.set_enrolment(UID, Enrolment::Captured(INSTANCE.to_owned()));
        first.publish();
        assert!(!plain(&first), "{what}");
        first.set_objects(mesh(directory.path(), &yaml).state.lock().loaded.clone());
        first.publish();
        assert!(plain(&first), "{what}");
    }
    // What one node says of an earlier pod does not touch the later one on another.
    let later = first.published().translation.wanted["a"][UID]
        .instance
        .clone();
    first.set_enrolment(UID, Enrolment::Captured(later));
    first.set_enrolment(UID, Enrolment::Released(Some(INSTANCE.to_owned())));
    first.publish();
    assert!(!plain(&first));
}

#[test]
fn what_did_not_change_stays_the_same_in_memory() {
    let directory = tempfile::TempDir::new().unwrap();
    let mesh = mesh(directory.path(), YAML);
    let before = mesh.published();
    mesh.publish();
    let after = mesh.published();
    let (before, after) = (&before.translation, &after.translation);
    assert!(Arc::ptr_eq(&before.addresses, &after.addresses));
    assert!(Arc::ptr_eq(&before.authorizations, &after.authorizations));
    mesh.set_enrolment(UID, Enrolment::Captured(INSTANCE.to_owned()));
    mesh.publish();
    let published = mesh.published();
    let changes = published.address_changes.as_ref().unwrap();
    assert!(Arc::ptr_eq(&changes.from, &after.addresses));
    assert_eq!(
        (&changes.changed[..], &changes.removed[..]),
        (&[UID.to_owned()][..], &[][..])
    );
}
