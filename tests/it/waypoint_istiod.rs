//! The waypoint under a control plane that is not ours: Python's grpc with Envoy's own protos, which serves like a stock
//! istiod (endpoints only by name, routes inline). Certificates and the mesh around are ours.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use leyline_tests::{
    certificates::Authority,
    eventually::eventually,
    mesh::Mesh,
    peers,
    process::{Process, Program},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    support::{SOON, root},
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_session::Session,
};

const PORT: &str = "15011";
/// Of the server, as the waypoint sees it.
pub(crate) const ADDRESS: &str = "https://127.0.0.1:15011";
const ONE: &str = "inbound-vip|80|http|canary.shop";
const TWO: &str = "inbound-vip|80|http/v2|canary.shop";

/// Starts a control plane of `tests/peers` in the waypoint's pod.
pub(crate) async fn start_server(
    mesh: &Mesh,
    vip: SocketAddr,
    script: &str,
    further: &[&str],
) -> Process {
    let python = peers::grpc_python(&root().join("target/venv-xds"))
        .await
        .unwrap();
    let legacy = mesh.cluster().pod("legacy/legacy").unwrap().addresses().v4;
    let run = mesh.cluster().run();
    let authority = Authority::of_mesh(&run.state_dir()).unwrap();
    let shown = authority
        .issue_to_host(&run.secrets_dir(), "ads", "istiod.example")
        .unwrap();
    let program = Program {
        name: "ads".to_owned(),
        path: python,
        args: [
            root().join("tests/peers").join(script).into(),
            PORT.into(),
            vip.ip().to_string().into(),
            format!("{legacy}:8080").into(),
            shown.certificate.into(),
            shown.key.into(),
        ]
        .into_iter()
        .chain(further.iter().map(Into::into))
        .collect(),
        env: std::collections::BTreeMap::new(),
        namespace: mesh
            .cluster()
            .pod("shop/waypoint")
            .unwrap()
            .namespace()
            .clone(),
    };
    let mut server = Process::start(run, &program).unwrap();
    server.wait_for_line("ready", SOON).await.unwrap();
    server
}

/// What the server was asked, of one type: names that were added, names that were dropped, complaints.
fn asked(server: &Process, kind: &str) -> Vec<Value> {
    let lines = server.log().lines().unwrap();
    let events = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["request"] == kind).collect()
}

async fn is_served(mesh: &Mesh, vip: SocketAddr) -> Result<()> {
    let mut session = Session::open(mesh, vip).await?;
    for _ in 0..10 {
        let answer = session.get("/", &[]).await?;
        ensure!(answer.description()?.pod == "legacy", "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_serves_endpoints_only_by_name() {
    let (mut mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let server = start_server(&mesh, vip, "ads_server.py", &[]).await;
    let env = [
        ("XDS_ADDRESS", ADDRESS),
        ("ALT_XDS_HOSTNAME", "istiod.example"),
    ];
    mesh.restart_waypoint("shop/waypoint", &env).await.unwrap();
    eventually("the service is served", SOON, || is_served(&mesh, vip))
        .await
        .unwrap();
    let names = |event: &Value, of: &str| {
        let names = event[of].as_array().into_iter().flatten();
        Vec::from_iter(names.filter_map(Value::as_str).map(str::to_owned))
    };
    let endpoints = asked(&server, "ClusterLoadAssignment");
    assert_eq!(names(&endpoints[0], "added"), [ONE]);
    assert!(
        asked(&server, "RouteConfiguration").is_empty(),
        "routes are inline"
    );

    // A second cluster: only its name is asked for.
    server.signal(Signal::SIGUSR1).unwrap();
    eventually("the second name is asked for", SOON, || async {
        let endpoints = asked(&server, "ClusterLoadAssignment");
        let added: Vec<String> = endpoints
            .iter()
            .flat_map(|one| names(one, "added"))
            .collect();
        ensure!(added == [ONE, TWO], "{added:?}");
        is_served(&mesh, vip).await
    })
    .await
    .unwrap();

    // One service is of no use, and its reason is told; the other is served as before. The first cluster goes.
    server.signal(Signal::SIGUSR1).unwrap();
    eventually("the bad service is refused alone", SOON, || async {
        let listeners = asked(&server, "Listener");
        let complaints = listeners.iter().filter_map(|one| one["message"].as_str());
        let complaints: Vec<&str> = complaints.filter(|text| !text.is_empty()).collect();
        ensure!(
            complaints.iter().any(|text| text.contains("bad: ")),
            "{complaints:?}"
        );
        let endpoints = asked(&server, "ClusterLoadAssignment");
        let dropped: Vec<String> = endpoints
            .iter()
            .flat_map(|one| names(one, "dropped"))
            .collect();
        ensure!(dropped == [ONE], "{dropped:?}");
        is_served(&mesh, vip).await
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}
