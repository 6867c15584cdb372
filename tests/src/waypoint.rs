//! The real L7 proxy of one Gateway, in the namespace of its pod.

use std::{ffi::OsString, path::Path};

use crate::{controlplane::ControlPlane, daemon::Daemon, kubelet::Pod, process::Program, run::Run};

/// The waypoint of the Gateway whose pod this is, not started yet.
pub fn prepare(run: &Run, pod: &Pod, binary: &Path, token: &Path) -> Daemon {
    let spec = pod.spec();
    let root = run.state_dir().join("root-cert.pem");
    let env: [(&str, OsString); 11] = [
        ("POD_NAME", spec.name.as_str().into()),
        ("POD_NAMESPACE", spec.namespace.as_str().into()),
        ("SERVICE_ACCOUNT", spec.service_account.as_str().into()),
        ("INSTANCE_IP", pod.addresses().v4.to_string().into()),
        ("ISTIO_META_NODE_NAME", spec.node.as_str().into()),
        ("CA_ADDR", ControlPlane::url().into()),
        ("XDS_ROOT_CA", root.clone().into()),
        ("CA_ROOT_CA", root.into()),
        ("AUTH_TOKEN", token.into()),
        ("RUST_LOG", "info".into()),
        (
            "LEYLINE_RESOLV_CONF",
            run.state_dir().join("resolv.conf").into(),
        ),
    ];
    let program = Program {
        name: format!("waypoint-{}", spec.file()),
        path: binary.to_owned(),
        args: vec!["proxy".into(), "waypoint".into()],
        env: env
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        namespace: pod.namespace().clone(),
    };
    Daemon::new(program)
}
