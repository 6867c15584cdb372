//! The real node proxy of one node, in the node's namespace.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use leyline_net::NetNs;

use crate::{controlplane::ControlPlane, daemon::Daemon, process::Program, run::Run};

/// The proxy of `node`, not started yet.
pub fn prepare(run: &Run, node: &str, namespace: &NetNs, binary: &Path, token: &Path) -> Daemon {
    let root = run.state_dir().join("root-cert.pem");
    let env = [
        ("NODE_NAME", node.into()),
        ("XDS_ADDRESS", ControlPlane::url().into()),
        ("CA_ADDRESS", ControlPlane::url().into()),
        ("XDS_ROOT_CA", root.clone().into()),
        ("CA_ROOT_CA", root.into()),
        ("AUTH_TOKEN", token.into()),
        ("CLUSTER_ID", "Kubernetes".into()),
        ("RUST_LOG", "info".into()),
        // Short, so that the check of a peer that never speaks is short too.
        ("LEYLINE_HANDSHAKE_DEADLINE", "2s".into()),
        ("LEYLINE_POD_NETNS_DIR", run.pods_dir().into()),
        ("LEYLINE_INSTANCE", format!("{}-{node}", run.id()).into()),
        ("LEYLINE_BPFFS", run.bpffs().into()),
    ];
    let program = Program {
        name: format!("ztunnel-{node}"),
        path: binary.to_owned(),
        args: vec!["proxy".into()],
        env: env
            .into_iter()
            .map(|(name, value): (&str, OsString)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
        namespace: namespace.clone(),
    };
    Daemon::new(program)
}
