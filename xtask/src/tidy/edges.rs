//! Rules on dependencies: which of our crates may use which, which external crates belong where, what must not be
//! in the build at all. The picture is in ARCHITECTURE.md.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

use super::Finding;

/// Our crates by layer; a crate may use lower layers only.
const LAYERS: [(&str, u8); 16] = [
    ("leyline-types", 0),
    ("leyline-ebpf-abi", 0),
    ("leyline-net", 1),
    ("leyline-authz", 1),
    ("leyline-envoy-json", 1),
    ("leyline-proto", 1),
    ("leyline-tls", 2),
    ("leyline-xds", 2),
    ("leyline-telemetry", 2),
    ("leyline-runtime", 2),
    ("leyline-hbone", 3),
    ("leyline-state", 3),
    ("leyline-capture", 3),
    ("leyline-controlplane", 3),
    ("leyline-waypoint", 4),
    ("leyline-ztunnel", 4),
];

/// Crates that may use everything.
const FREE: [&str; 4] = [
    "leyline-codegen",
    "leyline-devtools",
    "leyline-tests",
    "xtask",
];

/// Edges that the layers would allow.
const FORBIDDEN_EDGES: [(&str, &str, &str); 2] = [
    (
        "leyline-ztunnel",
        "leyline-controlplane",
        "the data plane never links the control plane",
    ),
    (
        "leyline-waypoint",
        "leyline-controlplane",
        "the data plane never links the control plane",
    ),
];

/// External crates that belong in a few of ours.
const OWNED: [(&str, &[&str]); 14] = [
    ("aya", &["leyline-capture", "leyline-ebpf-abi"]),
    ("rtnetlink", &["leyline-capture"]),
    ("netlink-packet-route", &["leyline-capture"]),
    (
        "rustls",
        &["leyline-tls", "leyline-controlplane", "leyline-ztunnel"],
    ),
    ("tokio-rustls", &["leyline-tls", "leyline-controlplane"]),
    ("rcgen", &["leyline-tls", "leyline-controlplane"]),
    ("x509-parser", &["leyline-tls", "leyline-controlplane"]),
    ("h2", &["leyline-hbone"]),
    (
        "envoy-types",
        &[
            "leyline-waypoint",
            "leyline-controlplane",
            "leyline-envoy-json",
        ],
    ),
    ("k8s-openapi", &["leyline-controlplane"]),
    ("kube", &["leyline-controlplane", "leyline-ztunnel"]),
    ("metrics-exporter-prometheus", &["leyline-telemetry"]),
    ("tracing-subscriber", &["leyline-telemetry"]),
    (
        "anyhow",
        &[
            "leyline-controlplane",
            "leyline-waypoint",
            "leyline-ztunnel",
        ],
    ),
];

/// Crates that do no I/O, read no clock and spawn nothing, and what they can therefore not need.
const PURE: [&str; 3] = ["leyline-types", "leyline-authz", "leyline-state"];
const IMPURE: [&str; 7] = [
    "tokio",
    "tonic",
    "hyper",
    "mio",
    "nix",
    "socket2",
    "tokio-util",
];

/// Not in the build: one crypto provider (aws-lc-rs), no C TLS library.
const BANNED: [&str; 6] = [
    "native-tls",
    "openssl",
    "openssl-sys",
    "boring",
    "ring",
    "rustls-openssl",
];

/// What we ship for.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// One line of a manifest's dependencies.
#[derive(Clone, Copy, Debug)]
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    /// Only for tests of the crate.
    for_tests: bool,
}

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = manifests(root)?;
    findings.extend(lock_file(root)?);
    for target in TARGETS {
        findings.extend(build_graph(root, target)?);
    }
    Ok(findings)
}

fn manifests(root: &Path) -> Result<Vec<Finding>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let manifest = package.manifest_path.as_std_path();
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let mut report = |what: String| findings.push(finding(manifest, "edge", what));
        if layer(&package.name).is_none() && !FREE.contains(&package.name.as_str()) {
            report(format!("{} has no layer yet", package.name));
        }
        for dependency in &package.dependencies {
            let edge = Edge {
                from: &package.name,
                to: &dependency.name,
                for_tests: dependency.kind == DependencyKind::Development,
            };
            if let Some(why) = broken(edge) {
                report(format!("{} -> {}: {why}", edge.from, edge.to));
            }
        }
    }
    Ok(findings)
}

/// Why an edge must not be, if so.
fn broken(edge: Edge<'_>) -> Option<String> {
    if FREE.contains(&edge.from) {
        return None;
    }
    let forbidden = FORBIDDEN_EDGES
        .iter()
        .find(|(from, to, _)| (*from, *to) == (edge.from, edge.to));
    if let Some((_, _, why)) = forbidden {
        return Some((*why).to_owned());
    }
    if FREE.contains(&edge.to) {
        return Some("nothing depends on tests or tools".to_owned());
    }
    if edge.for_tests {
        return None;
    }
    if let Some((from, to)) = layer(edge.from).zip(layer(edge.to))
        && to >= from
    {
        return Some(format!("layer {from} may not use layer {to}"));
    }
    if PURE.contains(&edge.from) && IMPURE.contains(&edge.to) {
        return Some("a crate without I/O".to_owned());
    }
    let owners = OWNED.iter().find(|(name, _)| *name == edge.to)?.1;
    let allowed = owners.contains(&edge.from);
    (!allowed).then(|| format!("only for {}", owners.join(", ")))
}

fn layer(name: &str) -> Option<u8> {
    let found = LAYERS.iter().find(|(known, _)| *known == name)?;
    Some(found.1)
}

/// Every package comes from the registry.
fn lock_file(root: &Path) -> Result<Vec<Finding>> {
    let path = Path::new("Cargo.lock");
    let text = fs::read_to_string(root.join(path)).context("reading Cargo.lock")?;
    let foreign = text.lines().enumerate().filter(|(_, line)| {
        line.starts_with("source = ") && !line.contains("\"registry+https://github.com/rust-lang/")
    });
    Ok(foreign
        .map(|(number, line)| Finding {
            path: path.to_path_buf(),
            line: number + 1,
            rule: "source",
            what: format!("only crates.io is allowed: {line}"),
        })
        .collect())
}

/// What cargo would build. Its metadata lists more than that: optional dependencies of features that are off.
fn build_graph(root: &Path, target: &str) -> Result<Vec<Finding>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["tree", "--workspace", "--locked", "--target", target])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .context("cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8_lossy(&output.stdout);
    let banned: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| BANNED.contains(name))
        .collect();
    Ok(banned
        .into_iter()
        .map(|name| {
            let what = format!("`{name}` is in the build for {target}; see `cargo tree -i {name}`");
            finding(Path::new("Cargo.lock"), "banned", what)
        })
        .collect())
}

fn finding(path: &Path, rule: &'static str, what: String) -> Finding {
    Finding {
        path: PathBuf::from(path),
        line: 1,
        rule,
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(from: &str, to: &str) -> bool {
        let for_tests = false;
        broken(Edge {
            from,
            to,
            for_tests,
        })
        .is_none()
    }

    #[test]
    fn crates_use_lower_layers_only() {
        assert!(allows("leyline-hbone", "leyline-net"));
        assert!(allows("leyline-ztunnel", "leyline-state"));
        assert!(!allows("leyline-net", "leyline-hbone"));
        assert!(!allows("leyline-tls", "leyline-runtime"));
        assert!(!allows("leyline-ztunnel", "leyline-controlplane"));
        assert!(!allows("leyline-ztunnel", "leyline-tests"));
        assert!(allows("leyline-tests", "leyline-ztunnel"));
    }

    #[test]
    fn external_crates_stay_where_they_belong() {
        assert!(allows("leyline-capture", "aya"));
        assert!(!allows("leyline-net", "aya"));
        assert!(!allows("leyline-types", "rustls"));
        assert!(!allows("leyline-state", "tokio"));
        assert!(allows("leyline-state", "serde"));
        let for_tests = Edge {
            from: "leyline-hbone",
            to: "rustls",
            for_tests: true,
        };
        assert!(broken(for_tests).is_none());
    }
}
