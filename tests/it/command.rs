//! The command `ztunnel` itself.

use std::{collections::BTreeMap, ffi::OsString};

use anyhow::Result;
use leyline_net::NetNs;
use leyline_tests::{
    cluster::Binaries,
    process::{Program, output},
};

use crate::support::{SOON, mesh};

async fn said(args: &[&str]) -> Result<String> {
    let program = Program {
        name: "ztunnel".to_owned(),
        path: Binaries::beside_this_test()?.ztunnel,
        args: args.iter().map(Into::into).collect(),
        env: BTreeMap::new(),
        namespace: NetNs::current()?,
    };
    output(&program, SOON).await
}

#[tokio::test]
async fn commands_are_those_of_istio_and_two_more() {
    let version = said(&["version"]).await.unwrap();
    assert!(
        version.starts_with("version.BuildInfo{Version:\""),
        "{version}"
    );
    for key in [
        "GitRevision",
        "RustVersion",
        "BuildProfile",
        "BuildStatus",
        "IstioVersion",
        "CryptoProvider",
    ] {
        assert!(version.contains(&format!(", {key}:\"")), "{key}: {version}");
    }
    let help = said(&["help"]).await.unwrap();
    for word in ["proxy", "version", "explain", "cleanup", "KEEPALIVE_TIME"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let unknown = said(&["porxy"]).await.unwrap_err().to_string();
    let told = unknown.contains("exit status: 1") && unknown.contains("usage: ztunnel [proxy|");
    assert!(told, "{unknown}");
}

/// PRC-8: said at the start, not found out by the first pod.
#[tokio::test]
async fn without_its_capabilities_it_does_not_start() {
    let ztunnel = Binaries::beside_this_test().unwrap().ztunnel;
    let without = ["--bounding-set", "-sys_admin,-net_admin"];
    let mut args: Vec<OsString> = without.iter().map(Into::into).collect();
    args.extend([ztunnel.into(), "proxy".into()]);
    let program = Program {
        name: "ztunnel".to_owned(),
        path: "/usr/bin/setpriv".into(),
        args,
        env: BTreeMap::from([("XDS_ADDRESS".to_owned(), OsString::new())]),
        namespace: NetNs::current().unwrap(),
    };
    let told = output(&program, SOON).await.unwrap_err().to_string();
    assert!(
        told.contains("a capability is missing: NET_ADMIN"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_is_told_with_the_configuration() {
    let mesh = mesh().await;
    let lines = mesh.ztunnel("node-a").unwrap().log().unwrap().lines();
    let lines = lines.unwrap();
    let start = lines.iter().find(|line| line.contains("\tstarting\t"));
    let start = start.unwrap_or_else(|| panic!("{lines:#?}"));
    for part in [
        "version.BuildInfo{",
        "localNode",
        "node-a",
        "maxConnectionsPerPod",
    ] {
        assert!(start.contains(part), "{part}: {start}");
    }
    mesh.stop().await.unwrap();
}
