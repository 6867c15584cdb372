use std::{fs, path::PathBuf};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: a
  containers: [{name: web, image: web, resources: {limits: {cpu: 1}}}]
";
const STATUS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.9.0.1
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

struct Fixture {
    directory: TempDir,
    loader: Loader,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let loader = Loader::new(vec![directory.path().to_owned()]);
        Self { directory, loader }
    }

    fn write(&self, name: &str, documents: &[&str]) {
        fs::write(self.directory.path().join(name), documents.join("---")).unwrap();
    }

    fn load(&mut self) -> Loaded {
        self.loader.load().unwrap()
    }

    /// Issues as an operator reads them, files without their directory.
    fn issues(&self, loaded: &Loaded) -> String {
        let short = |issue: &Issue| {
            let file = issue
                .file
                .strip_prefix(self.directory.path())
                .map_or(PathBuf::new(), PathBuf::from);
            format!(
                "{:?} {} document {} line {:?} {} {}: {}\n",
                issue.severity,
                file.display(),
                issue.document,
                issue.line,
                issue.object.as_deref().unwrap_or("-"),
                issue.field.as_deref().unwrap_or("-"),
                issue.reason
            )
        };
        loaded.issues.iter().map(short).collect()
    }
}

fn ports(loaded: &Loaded) -> Vec<i32> {
    let services = loaded.objects.services.values();
    services
        .flat_map(|s| s.spec.as_ref().unwrap().ports.iter().flatten())
        .map(|p| p.port)
        .collect()
}

fn addresses(loaded: &Loaded) -> Vec<String> {
    let statuses = loaded
        .objects
        .pods
        .values()
        .filter_map(|pod| pod.status.as_ref());
    statuses
        .flat_map(|s| s.pod_ips.iter().flatten())
        .map(|ip| ip.ip.clone())
        .collect()
}

#[test]
fn a_status_patch_is_merged_whichever_comes_first() {
    for files in [["a.yaml", "b.yml"], ["b.yml", "a.yaml"]] {
        let mut fixture = Fixture::new();
        fixture.write(files[0], &[POD]);
        fixture.write(files[1], &[STATUS]);
        let loaded = fixture.load();
        assert_eq!(addresses(&loaded), ["10.0.0.1"]);
        assert_eq!(
            loaded
                .objects
                .pods
                .values()
                .next()
                .unwrap()
                .metadata
                .labels
                .as_ref()
                .unwrap()
                .len(),
            1
        );
        assert!(loaded.issues.is_empty(), "{:?}", loaded.issues);

        fs::remove_file(fixture.directory.path().join(files[1])).unwrap();
        assert!(addresses(&fixture.load()).is_empty());
    }
}

#[test]
fn a_status_of_nothing_is_reported() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &[STATUS]);
    let loaded = fixture.load();
    assert!(loaded.objects.pods.is_empty());
    assert_eq!(loaded.issues.len(), 1);
}

#[test]
fn a_broken_document_keeps_its_last_good_version_and_harms_nothing_else() {
    let broken = [
        ("not yaml", SERVICE.replace("ports: [", "ports: [[")),
        ("wrong port", SERVICE.replace("port: 80,", "port: 70000,")),
        ("zero port", SERVICE.replace("port: 80,", "port: 0,")),
        (
            "bad target",
            SERVICE.replace("targetPort: 8080", "targetPort: Not_A_Port"),
        ),
        ("unknown field", SERVICE.replace("targetPort", "tragetPort")),
        ("wrong type", SERVICE.replace("port: 80,", "port: eighty,")),
        ("bad label", SERVICE.replace("{app: web}", "{app: '-web-'}")),
        (
            "version",
            SERVICE.replace("apiVersion: v1", "apiVersion: v2"),
        ),
        ("no kind", SERVICE.replace("kind: Service", "")),
    ];
    for (what, text) in broken {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &[POD, SERVICE]);
        assert!(fixture.load().issues.is_empty());
        let moved = POD.replace("nodeName: a", "nodeName: b");
        fixture.write("a.yaml", &[&moved, &text]);
        let loaded = fixture.load();
        assert_eq!(ports(&loaded), [80], "{what}");
        let pod = loaded.objects.pods.values().next().unwrap();
        assert_eq!(
            pod.spec.as_ref().unwrap().node_name.as_deref(),
            Some("b"),
            "{what}"
        );
        assert_eq!(loaded.issues.len(), 1, "{what}: {:?}", loaded.issues);
        assert_eq!(loaded.issues[0].document, 2, "{what}");
        assert!(loaded.issues[0].line.is_some(), "{what}");

        fixture.write("a.yaml", &[&moved]);
        let loaded = fixture.load();
        assert!(
            ports(&loaded).is_empty() && loaded.issues.is_empty(),
            "{what}: deleting a document deletes"
        );
    }
}

#[test]
fn a_broken_document_that_never_was_good_does_not_exist() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &[POD, &SERVICE.replace("port: 80,", "port: 0,")]);
    let loaded = fixture.load();
    assert!(loaded.objects.services.is_empty());
    assert_eq!(loaded.objects.pods.len(), 1);
}

#[test]
fn the_first_of_two_equal_objects_stays_even_when_another_file_sorts_before_it() {
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &[SERVICE]);
    fixture.load();
    fixture.write("a.yaml", &[&SERVICE.replace("port: 80,", "port: 81,")]);
    let loaded = fixture.load();
    assert_eq!(ports(&loaded), [80]);
    assert_eq!(loaded.issues.len(), 1);
    fs::remove_file(fixture.directory.path().join("b.yaml")).unwrap();
    let loaded = fixture.load();
    assert_eq!(ports(&loaded), [81]);
    assert!(loaded.issues.is_empty());
}

#[test]
fn files_that_cannot_be_used_keep_what_they_said() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &[SERVICE]);
    fixture.load();
    let path = fixture.directory.path().join("a.yaml");
    fs::write(&path, [0xff, 0xfe, 0xfd]).unwrap();
    let loaded = fixture.load();
    assert_eq!(ports(&loaded), [80]);
    assert!(loaded.issues[0].reason.contains("UTF-8"));
    fs::write(&path, vec![b'#'; 17 * 1024 * 1024]).unwrap();
    let loaded = fixture.load();
    assert_eq!(ports(&loaded), [80]);
    assert!(loaded.issues[0].reason.contains("larger than"));
}

#[test]
fn other_files_are_not_read_and_unchanged_ones_are_not_reported() {
    let mut fixture = Fixture::new();
    fixture.write("a.txt", &[SERVICE]);
    fixture.write(".a.yaml", &[SERVICE]);
    fs::create_dir(fixture.directory.path().join("d.yaml")).unwrap();
    assert!(fixture.load().objects.services.is_empty());
    assert!(fixture.loader.reload(Depth::Contents).unwrap().is_none());
    assert!(fixture.loader.reload(Depth::Stat).unwrap().is_none());
    fixture.write("b.yaml", &[SERVICE]);
    assert!(fixture.loader.reload(Depth::Stat).unwrap().is_some());
    assert!(fixture.loader.reload(Depth::Stat).unwrap().is_none());
}

#[test]
fn a_link_that_leads_nowhere_hides_no_other_file() {
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &[SERVICE]);
    let link = fixture.directory.path().join("a.yaml");
    std::os::unix::fs::symlink("target", &link).unwrap();
    assert_eq!(ports(&fixture.load()), [80]);
    fs::write(fixture.directory.path().join("target"), POD).unwrap();
    assert_eq!(fixture.load().objects.pods.len(), 1);
    // What it led to may be on a mount that is away; deleting the link deletes.
    fs::remove_file(fixture.directory.path().join("target")).unwrap();
    let loaded = fixture.load();
    assert_eq!(loaded.objects.pods.len(), 1);
    assert!(loaded.issues[0].reason.contains("leads nowhere"));
    fs::remove_file(&link).unwrap();
    assert!(fixture.load().objects.pods.is_empty());
}

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}
";

/// Whether the policy is still there, and whether somebody is told that something is wrong.
fn is_enforced(loaded: &Loaded) -> (bool, bool) {
    let policies = &loaded.objects.authorization_policies;
    (
        policies.keys().any(|name| name.name == *"deny"),
        !loaded.issues.is_empty(),
    )
}

#[test]
fn no_slip_of_the_hand_takes_a_policy_away() {
    let slips = [
        // The marker between two documents is lost, and both run together.
        ("marker", [DENY, SERVICE].concat()),
        (
            "kind",
            DENY.replace("AuthorizationPolicy", "AuthorizationPolcy"),
        ),
        (
            "case",
            DENY.replace("AuthorizationPolicy", "authorizationPolicy"),
        ),
        ("other kind", DENY.replace("AuthorizationPolicy", "Policy")),
        (
            "group",
            DENY.replace("security.istio.io", "securty.istio.io"),
        ),
        ("version", DENY.replace("/v1", "/v2")),
        ("name", DENY.replace("name: deny", "name: Deny_All")),
        (
            "renamed and broken",
            DENY.replace("name: deny", "name: other")
                .replace("DENY", "DNY"),
        ),
        (
            "namespace",
            DENY.replace("namespace: shop", "namespace: Shop"),
        ),
        ("no name", DENY.replace("name: deny, ", "")),
        ("indentation", DENY.replace("spec:", "  spec:")),
        ("action", DENY.replace("DENY", "DENIED")),
        ("field", DENY.replace("notNamespaces", "notNamespace")),
        ("tab", DENY.replace("spec: {", "spec:\t{\t[")),
    ];
    for (what, text) in slips {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &[DENY, SERVICE]);
        assert_eq!(is_enforced(&fixture.load()), (true, false));
        let others: &[&str] = if what == "marker" { &[] } else { &[SERVICE] };
        fixture.write("a.yaml", &[&[text.as_str()], others].concat());
        assert_eq!(is_enforced(&fixture.load()), (true, true), "{what}");
        fixture.write("a.yaml", &[SERVICE]);
        assert_eq!(
            is_enforced(&fixture.load()),
            (false, false),
            "{what}: deleted"
        );
    }
}

#[test]
fn kinds_that_exist_and_are_not_read_hold_nothing() {
    for (api_version, kind) in [
        ("batch/v1", "Job"),
        ("v1", "ConfigMap"),
        ("v1", "Endpoints"),
        ("apps/v1", "Deployment"),
        ("networking.istio.io/v1", "Sidecar"),
    ] {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &[DENY]);
        fixture.load();
        let other = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\n");
        fixture.write("a.yaml", &[&other]);
        assert_eq!(is_enforced(&fixture.load()), (false, true), "{kind}");
    }
}

#[test]
fn a_forgotten_copy_does_not_take_the_place_of_a_broken_document() {
    let allow = DENY.replace("DENY", "ALLOW");
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &[DENY]);
    fixture.load();
    fixture.write("a.yaml", &[&allow]);
    let action = |loaded: &Loaded| {
        let policy = loaded
            .objects
            .authorization_policies
            .values()
            .next()
            .unwrap();
        policy.spec.action.clone().unwrap()
    };
    assert_eq!(action(&fixture.load()), "DENY");
    for broken in [DENY.replace("rules", "rulez"), "kind: [".to_owned()] {
        fixture.write("b.yaml", &[&broken]);
        assert_eq!(action(&fixture.load()), "DENY");
    }
    fixture.write("b.yaml", &[SERVICE]);
    assert_eq!(action(&fixture.load()), "ALLOW");
}

#[test]
fn a_typo_in_the_mode_takes_no_pod_out_of_the_mesh() {
    let label = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio.io/dataplane-mode: {mode}}}}}\n"
        )
    };
    let mode = |loaded: &Loaded| {
        let label = loaded
            .objects
            .namespace_label("shop", "istio.io/dataplane-mode");
        label.map(ToOwned::to_owned)
    };
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &[&label("ambient")]);
    assert_eq!(mode(&fixture.load()).as_deref(), Some("ambient"));
    fixture.write("a.yaml", &[&label("ambeint")]);
    let loaded = fixture.load();
    assert_eq!(mode(&loaded).as_deref(), Some("ambient"));
    assert!(loaded.issues[0].reason.contains("neither ambient nor none"));
    fixture.write("a.yaml", &[&label("none")]);
    assert_eq!(mode(&fixture.load()).as_deref(), Some("none"));
    fixture.write(
        "a.yaml",
        &[&POD.replace("app: web", "istio.io/dataplane-mode: sidecar")],
    );
    assert_eq!(fixture.load().issues.len(), 1);
}

#[test]
fn an_empty_directory_in_the_place_of_another_deletes_nothing() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("config");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("a.yaml"), DENY).unwrap();
    let mut loader = Loader::new(vec![config.clone()]);
    let documents = loader.load().unwrap().documents;
    // As when a mount goes away.
    fs::rename(&config, directory.path().join("away")).unwrap();
    fs::create_dir(&config).unwrap();
    let error = loader.reload(Depth::Stat).unwrap_err().to_string();
    assert!(error.contains("replaced by an empty directory"), "{error}");

    let mut restarted = Loader::new(vec![config.clone()]);
    restarted.remember(documents.to_vec());
    let error = restarted.load().unwrap_err().to_string();
    assert!(error.contains("last-good.json"), "{error}");

    // Another directory with files is a new configuration, and emptying it file by file is meant.
    fs::write(config.join("b.yaml"), SERVICE).unwrap();
    let loaded = loader.reload(Depth::Stat).unwrap().unwrap();
    assert_eq!(is_enforced(&loaded), (false, false));
    fs::remove_file(config.join("b.yaml")).unwrap();
    let loaded = loader.reload(Depth::Stat).unwrap().unwrap();
    assert!(loaded.objects.services.is_empty());
}

#[test]
fn two_writes_in_one_tick_of_the_clock_are_both_seen() {
    let mut fixture = Fixture::new();
    for port in 10..60 {
        fixture.write(
            "a.yaml",
            &[&SERVICE.replace("port: 80,", &format!("port: {port},"))],
        );
        assert_eq!(ports(&fixture.load()), [port]);
    }
}

#[test]
fn a_list_is_its_items() {
    let mut fixture = Fixture::new();
    let item = |text: &str| {
        let mut lines = text.trim().lines();
        let first = format!("- {}\n", lines.next().unwrap());
        lines.fold(first, |all, line| format!("{all}  {line}\n"))
    };
    let bad = SERVICE
        .replace("name: web", "name: other")
        .replace("port: 80,", "port: 0,");
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}{}{}",
        item(POD),
        item(SERVICE),
        item(&bad)
    );
    fixture.write("a.yaml", &[&list]);
    let loaded = fixture.load();
    assert_eq!((loaded.objects.pods.len(), ports(&loaded)), (1, vec![80]));
    check(
        &fixture,
        &loaded,
        expect![[r#"
            Rejected a.yaml document 1 line Some(23) Service shop/other spec.ports[0].port: 0 is not a port, which is between 1 and 65535
        "#]],
    );
}

fn check(fixture: &Fixture, loaded: &Loaded, expected: Expect) {
    expected.assert_eq(&fixture.issues(loaded));
}

#[test]
fn every_kind_of_mistake_is_reported_with_its_place() {
    let mut fixture = Fixture::new();
    fixture.write(
        "a.yaml",
        &[
            "\n# only a comment\n",
            "\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
            "\napiVersion: v1\nkind: Service\nmetadata: {name: Web_1}\nspec:\n  ports:\n  - port: 80\n    name: a\n  \
             - port: 70000\n    nome: b\n",
            "\nkind: Pod\n",
            "\n- 1\n",
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers: 5\n",
            "\na: b: c\n",
            "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: \
             BLOCK\n  rules:\n  - from:\n    - source:\n        ipBlocks: [10.0.0.0/8, 10.0.0.0/99]\n    to:\n    - \
             operation:\n        ports: ['http']\n    when: [{key: source.shoe, values: [x]}]\n",
            "\napiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mtls: \
             {mode: STRIKT}\n  portLevelMtls: {'0': {mode: STRICT}}\n",
            "\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: \
             IPv4\nendpoints: [{addresses: ['::1']}]\n",
        ],
    );
    let loaded = fixture.load();
    check(
        &fixture,
        &loaded,
        expect![[r#"
        Warning a.yaml document 1 line Some(5) - kind: Deployment (apps/v1) is not supported, the document has no effect
        Rejected a.yaml document 2 line Some(10) Service default/Web_1 metadata.name: `Web_1` must be at most 63 lower case letters, digits and hyphens, starting and ending with a letter or digit
        Rejected a.yaml document 2 line Some(15) Service default/Web_1 spec.ports[1].name: every port needs a name when there are several
        Rejected a.yaml document 2 line Some(15) Service default/Web_1 spec.ports[1].port: 70000 is not a port, which is between 1 and 65535
        Rejected a.yaml document 2 line Some(16) Service default/Web_1 spec.ports[1].nome: unknown field
        Rejected a.yaml document 3 line Some(18) - -: apiVersion and kind must both be set
        Rejected a.yaml document 4 line Some(20) - -: not a Kubernetes object: no apiVersion and kind
        Rejected a.yaml document 5 line Some(26) Pod default/x spec.containers: invalid type: integer `5`, expected a sequence
        Rejected a.yaml document 6 line Some(28) - -: not valid YAML: mapping values are not allowed in this context
        Rejected a.yaml document 7 line Some(34) AuthorizationPolicy default/p spec.action: `BLOCK` is not ALLOW, DENY, AUDIT or CUSTOM
        Rejected a.yaml document 7 line Some(38) AuthorizationPolicy default/p spec.rules[0].from[0].source.ipBlocks[1]: `10.0.0.0/99` is not an address block, such as 10.0.0.0/8 or 2001:db8::/32
        Rejected a.yaml document 7 line Some(41) AuthorizationPolicy default/p spec.rules[0].to[0].operation.ports[0]: `http` is not a port number
        Rejected a.yaml document 7 line Some(42) AuthorizationPolicy default/p spec.rules[0].when[0].key: `source.shoe` is not an attribute that a condition can name
        Rejected a.yaml document 8 line Some(48) PeerAuthentication default/p spec.mtls.mode: `STRIKT` is not UNSET, DISABLE, PERMISSIVE or STRICT
        Rejected a.yaml document 8 line Some(49) PeerAuthentication default/p spec.portLevelMtls: needs a selector: ports are those of chosen workloads
        Rejected a.yaml document 8 line Some(49) PeerAuthentication default/p spec.portLevelMtls.0: 0 is not a port, which is between 1 and 65535
        Rejected a.yaml document 9 line Some(55) EndpointSlice default/s endpoints[0].addresses[0]: not an address of type IPv4
    "#]],
    );
}

#[test]
fn a_warning_about_a_field_finds_its_line() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &[POD, SERVICE]);
    let loaded = fixture.load();
    let origin = &loaded.origins[&ObjectKey::new(Kind::Service, Some("shop"), "web")];
    let issue = origin.warning("spec.ports[0].targetPort", "why".to_owned());
    assert_eq!((issue.document, issue.line), (2, Some(15)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Cuts, doubles and overwrites parts of good YAML: nothing panics, and the untouched file is never affected.
    #[test]
    fn mutated_yaml_harms_nothing_else(
        edits in prop::collection::vec((0usize..2000, 0usize..40, ".{0,8}|[-:{}\\[\\]&*!|>'\"%@` \n]{1,6}"), 1..8),
    ) {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &[POD, SERVICE]);
        let good = [POD, STATUS, SERVICE, include_str!("tests/policy.yaml")].join("---");
        let mut text: Vec<char> = good.chars().collect();
        for (at, length, insert) in edits {
            let at = at % (text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        fs::write(fixture.directory.path().join("b.yaml"), &text).unwrap();
        let loaded = fixture.load();
        prop_assert!(ports(&loaded).contains(&80));
        let origins = loaded.origins.get(&ObjectKey::new(Kind::Pod, Some("shop"), "web"));
        prop_assert!(origins.is_some_and(|origin| origin.file.ends_with("a.yaml")));
        let mesh = crate::translate::MeshSettings::default();
        crate::translate::translate(&loaded.objects, &Default::default(), &mesh, &Default::default(), &Default::default());
    }

    #[test]
    fn any_text_is_read_without_panic(text in "\\PC{0,200}|[ -~\n]{0,400}") {
        for document in crate::objects::document::split(&text) {
            decode_document(&document);
        }
    }
}
