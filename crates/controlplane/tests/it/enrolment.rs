//! Enrolment follows labels, and reachability over HBONE follows enrolment.

use std::time::Duration;

use leyline_proto::{
    envoy::service::discovery::v3::DeltaDiscoveryResponse,
    istio::workload::{
        Address, TunnelProtocol, address,
        zds::{WorkloadRequest, workload_request::Payload},
    },
    leyline::enrolment::v1::{
        Hello, Outcome, Report, State, enrolment_service_client::EnrolmentServiceClient, report,
    },
};
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{
    discovery::PODS,
    harness::{Fixture, Service, Subscriber},
};

const AMBIENT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
";
const PLAIN: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";
const WEB: &str = "Kubernetes//Pod/shop/web";

struct Follower {
    reports: mpsc::Sender<Report>,
    commands: Streaming<WorkloadRequest>,
}

impl Follower {
    async fn connect(service: Service, node: &str) -> Result<Self, Status> {
        let (reports, receiver) = mpsc::channel(8);
        let hello = Report {
            kind: Some(report::Kind::Hello(Hello {
                node: node.to_owned(),
            })),
        };
        reports.send(hello).await.unwrap();
        let mut client = EnrolmentServiceClient::new(service);
        let commands = client
            .follow(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { reports, commands })
    }

    async fn start(fixture: &Fixture, node: &str) -> Self {
        Self::connect(fixture.service(Some(fixture.node_token(node))), node)
            .await
            .unwrap()
    }

    /// `add uid`, `del uid` or `snapshot`.
    async fn next(&mut self) -> String {
        let command = timeout(Duration::from_secs(10), self.commands.message())
            .await
            .expect("a command");
        match command.unwrap().unwrap().payload.unwrap() {
            Payload::Add(add) => {
                let info = add.workload_info.unwrap();
                format!(
                    "add {} as {}/{}/{}",
                    add.uid, info.namespace, info.name, info.service_account
                )
            }
            Payload::Del(del) => format!("del {}", del.uid),
            Payload::SnapshotSent(_) => "snapshot".to_owned(),
            Payload::Keep(_) => "keep".to_owned(),
        }
    }

    async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.commands.message())
            .await
            .is_err()
    }

    async fn report(&self, uid: &str, state: State, error: &str) {
        let outcome = Outcome {
            uid: uid.to_owned(),
            error: error.to_owned(),
            state: state.into(),
        };
        let kind = Some(report::Kind::Outcome(outcome));
        self.reports.send(Report { kind }).await.unwrap();
    }
}

fn tunnels(response: &DeltaDiscoveryResponse) -> Vec<(String, TunnelProtocol)> {
    let workload = |name: &String, body: &[u8]| match Address::decode(body).unwrap().r#type.unwrap()
    {
        address::Type::Workload(w) => Some((
            name.clone(),
            TunnelProtocol::try_from(w.tunnel_protocol).unwrap(),
        )),
        address::Type::Service(_) => None,
    };
    let resources = response.resources.iter();
    resources
        .filter_map(|r| workload(&r.name, &r.resource.as_ref().unwrap().value))
        .collect()
}

/// Which workloads are told to be captured soon.
fn pending(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let is_pending = |body: &[u8]| match Address::decode(body).unwrap().r#type.unwrap() {
        address::Type::Workload(workload) => workload
            .extensions
            .iter()
            .any(|extension| extension.name == "leyline.io/enrolment-pending"),
        address::Type::Service(_) => false,
    };
    let resources = response.resources.iter();
    resources
        .filter(|r| is_pending(&r.resource.as_ref().unwrap().value))
        .map(|r| r.name.as_str())
        .collect()
}

const CLIENT: &str = "Kubernetes//Pod/shop/client";
const ADD: &str = "add Kubernetes//Pod/shop/web as shop/web/web";

#[tokio::test]
async fn a_label_enrols_and_hbone_follows_the_report() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", PLAIN)]).await;
    let mut proxy = fixture.subscriber("b").await;
    proxy.synchronise().await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(node.next().await, "snapshot");

    fixture.write("ns.yaml", AMBIENT);
    assert_eq!(node.next().await, ADD);
    // Wanted is not captured, and nobody may send it plaintext until it is.
    let response = proxy.next().await;
    assert_eq!(
        tunnels(&response),
        [CLIENT, WEB].map(|uid| (uid.to_owned(), TunnelProtocol::None))
    );
    assert_eq!(pending(&response), [CLIENT, WEB]);
    proxy.ack(&response).await;
    node.report(WEB, State::Enrolled, "port taken").await;
    let status = fixture
        .status_until(|s| !s["enrolment"]["failures"].as_object().unwrap().is_empty())
        .await;
    assert_eq!(status["enrolment"]["failures"][WEB], "port taken");
    assert!(
        proxy.is_quiet(Duration::from_millis(100)).await,
        "a failure is not captured"
    );

    node.report(WEB, State::Enrolled, "").await;
    let response = proxy.next().await;
    assert_eq!(
        tunnels(&response),
        [(WEB.to_owned(), TunnelProtocol::Hbone)]
    );
    assert_eq!(pending(&response), [""; 0]);
    proxy.ack(&response).await;

    // The other way round: first everyone knows, then the node releases.
    fixture.write("ns.yaml", PLAIN);
    let response = proxy.next().await;
    assert_eq!(
        tunnels(&response),
        [CLIENT, WEB].map(|uid| (uid.to_owned(), TunnelProtocol::None))
    );
    assert_eq!(pending(&response), [""; 0]);
    assert!(
        node.is_quiet().await,
        "released before the proxy has acknowledged"
    );
    proxy.ack(&response).await;
    assert_eq!(node.next().await, format!("del {WEB}"));
    node.report(WEB, State::Released, "").await;
    fixture
        .status_until(|s| s["enrolment"]["captured"].as_object().unwrap().is_empty())
        .await;
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_delays_a_release_by_a_second_at_most() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(node.next().await, ADD);
    assert_eq!(node.next().await, "snapshot");
    node.report(WEB, State::Enrolled, "").await;
    fixture
        .status_until(|s| !s["enrolment"]["captured"][WEB].is_null())
        .await;
    let mut stuck = fixture.subscriber("b").await;
    stuck.synchronise().await;
    let start = Instant::now();
    fixture.write("ns.yaml", PLAIN);
    assert_eq!(node.next().await, format!("del {WEB}"));
    assert!(
        start.elapsed() > Duration::from_millis(900) && start.elapsed() < Duration::from_secs(2)
    );
}

#[tokio::test]
async fn a_label_that_comes_back_in_time_keeps_the_pod() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(
        (node.next().await.as_str(), node.next().await.as_str()),
        (ADD, "snapshot")
    );
    node.report(WEB, State::Enrolled, "").await;
    fixture
        .status_until(|s| !s["enrolment"]["captured"][WEB].is_null())
        .await;
    let mut proxy = fixture.subscriber("b").await;
    proxy.synchronise().await;
    fixture.write("ns.yaml", PLAIN);
    let response = proxy.next().await;
    fixture.write("ns.yaml", AMBIENT);
    fixture
        .status_until(|s| s["enrolment"]["wanted"].as_array().unwrap().len() == 2)
        .await;
    proxy.ack(&response).await;
    let response = proxy.next().await;
    assert_eq!(
        tunnels(&response),
        [
            (CLIENT.to_owned(), TunnelProtocol::None),
            (WEB.to_owned(), TunnelProtocol::Hbone)
        ]
    );
    assert_eq!(pending(&response), [CLIENT]);
    assert!(
        timeout(Duration::from_millis(1200), node.commands.message())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn what_is_captured_stays_so_when_the_node_or_the_control_plane_goes_away() {
    let mut fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(
        (node.next().await.as_str(), node.next().await.as_str()),
        (ADD, "snapshot")
    );
    node.report(WEB, State::Enrolled, "").await;
    fixture
        .status_until(|s| !s["enrolment"]["captured"][WEB].is_null())
        .await;
    drop(node);
    let mut proxy = fixture.subscriber("b").await;
    let hbone = |responses: &[DeltaDiscoveryResponse]| {
        let all: Vec<_> = responses.iter().flat_map(tunnels).collect();
        all.contains(&(WEB.to_owned(), TunnelProtocol::Hbone))
    };
    assert!(hbone(&proxy.synchronise().await));
    fixture.restart().await;
    let mut proxy = fixture.subscriber("b").await;
    assert!(hbone(&proxy.synchronise().await));
    // The node comes back and is told the same again.
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(
        (node.next().await.as_str(), node.next().await.as_str()),
        (ADD, "snapshot")
    );
}

#[tokio::test]
async fn only_a_node_proxy_may_follow_and_only_for_its_own_node() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let refused = |token: Option<String>, node: &'static str| {
        let service = fixture.service(token);
        async move {
            match Follower::connect(service, node).await {
                Err(status) => status,
                Ok(mut follower) => follower.commands.message().await.unwrap_err(),
            }
        }
    };
    assert_eq!(refused(None, "a").await.code(), Code::Unauthenticated);
    let workload = fixture.token("shop", "web", Some("a"));
    assert_eq!(
        refused(Some(workload), "a").await.code(),
        Code::PermissionDenied
    );
    let unbound = fixture.token("istio-system", "ztunnel", None);
    assert_eq!(
        refused(Some(unbound), "a").await.code(),
        Code::PermissionDenied
    );
    assert_eq!(
        refused(Some(fixture.node_token("b")), "a").await.code(),
        Code::PermissionDenied
    );
    // Nor may a node speak for the pods of another.
    let other = Follower::start(&fixture, "b").await;
    other.report(WEB, State::Enrolled, "").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        fixture.status().await["enrolment"]["captured"]
            .as_object()
            .unwrap()
            .is_empty()
    );
}

/// Starts enrolled: the namespace is labelled and the node has captured its pod.
async fn captured(fixture: &Fixture, node: &str) -> Follower {
    let mut follower = Follower::start(fixture, node).await;
    assert_eq!(follower.next().await, ADD);
    assert_eq!(follower.next().await, "snapshot");
    follower.report(WEB, State::Enrolled, "").await;
    fixture
        .status_until(|s| !s["enrolment"]["captured"][WEB].is_null())
        .await;
    follower
}

async fn tunnel_of_web(proxy: &mut Subscriber) -> TunnelProtocol {
    loop {
        let response = proxy.next().await;
        proxy.ack(&response).await;
        let all = tunnels(&response);
        if let Some((_, tunnel)) = all.iter().find(|(name, _)| name == WEB) {
            return *tunnel;
        }
    }
}

#[tokio::test]
async fn a_pod_made_anew_is_captured_anew() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = captured(&fixture, "a").await;
    let mut proxy = fixture.subscriber("b").await;
    proxy.synchronise().await;
    fixture.write("pods.yaml", &PODS.replace("10.0.0.1", "10.0.0.7"));
    assert_eq!(tunnel_of_web(&mut proxy).await, TunnelProtocol::None);
    assert_eq!(
        node.next().await,
        ADD,
        "told again, and not released before"
    );
    node.report(WEB, State::Enrolled, "").await;
    assert_eq!(tunnel_of_web(&mut proxy).await, TunnelProtocol::Hbone);
    assert!(node.is_quiet().await);
}

#[tokio::test]
async fn a_pod_that_moves_stays_captured_where_it_is_now() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut old = captured(&fixture, "a").await;
    let mut new = Follower::start(&fixture, "b").await;
    while new.next().await != "snapshot" {}
    // It never answers, so that the old node waits its second while the new one has captured already.
    fixture.subscriber("c").await.synchronise().await;
    let mut stuck = fixture.subscriber("d").await;
    stuck.synchronise().await;
    fixture.write("pods.yaml", &PODS.replace("nodeName: a", "nodeName: b"));
    assert_eq!(new.next().await, ADD);
    new.report(WEB, State::Enrolled, "").await;
    assert_eq!(old.next().await, format!("del {WEB}"));
    old.report(WEB, State::Released, "").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut proxy = fixture.subscriber("b").await;
    let all: Vec<_> = proxy.synchronise().await.iter().flat_map(tunnels).collect();
    assert!(
        all.contains(&(WEB.to_owned(), TunnelProtocol::Hbone)),
        "{all:?}"
    );
}

#[tokio::test]
async fn a_flapping_label_ends_as_it_was_left() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", PLAIN)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(node.next().await, "snapshot");
    let mut proxy = fixture.subscriber("b").await;
    proxy.synchronise().await;
    let uid = WEB;
    // The node does as told; the proxy acknowledges.
    let (stop, mut stopped) = tokio::sync::watch::channel(());
    let mut obeying = tokio::task::JoinSet::from_iter([async move {
        let mut held = false;
        loop {
            let command = tokio::select! {
                command = node.commands.message() => command.unwrap().unwrap(),
                _ = stopped.changed() => return (node, held),
            };
            let state = match command.payload.unwrap() {
                Payload::Add(_) => State::Enrolled,
                Payload::Del(_) => State::Released,
                Payload::Keep(_) | Payload::SnapshotSent(_) => continue,
            };
            held = state == State::Enrolled;
            node.report(uid, state, "").await;
        }
    }]);
    for round in 0..50_u64 {
        fixture.write("ns.yaml", if round % 2 == 0 { AMBIENT } else { PLAIN });
        tokio::time::sleep(Duration::from_millis(round * 7 % 60)).await;
    }
    fixture.write("ns.yaml", AMBIENT);
    let mut last = TunnelProtocol::None;
    let settle = async {
        loop {
            let response = proxy.next().await;
            proxy.ack(&response).await;
            if let Some((_, tunnel)) = tunnels(&response).iter().find(|(name, _)| name == WEB) {
                last = *tunnel;
            }
        }
    };
    // Until nothing has come for longer than any wait of the control plane.
    assert!(timeout(Duration::from_secs(3), settle).await.is_err());
    assert_eq!(last, TunnelProtocol::Hbone);
    stop.send(()).unwrap();
    let (mut node, held) = obeying.join_next().await.unwrap().unwrap();
    assert!(held, "the node holds what is published as HBONE");
    // And off again.
    fixture.write("ns.yaml", PLAIN);
    assert_eq!(tunnel_of_web(&mut proxy).await, TunnelProtocol::None);
    assert_eq!(node.next().await, format!("del {WEB}"));
}

#[tokio::test]
async fn of_two_streams_the_newest_counts_and_the_other_takes_over() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", PLAIN)]).await;
    let mut old = Follower::start(&fixture, "a").await;
    assert_eq!(old.next().await, "snapshot");
    let mut new = Follower::start(&fixture, "a").await;
    assert_eq!(new.next().await, "snapshot");
    fixture.write("ns.yaml", AMBIENT);
    assert_eq!(new.next().await, ADD);
    assert!(old.is_quiet().await, "new pods are the newest proxy's");
    old.report(WEB, State::Enrolled, "").await;
    drop(new);
    assert_eq!(old.next().await, ADD, "the other takes over");
    let status = fixture.status().await;
    assert!(status["enrolment"]["captured"][WEB].is_null(), "{status:#}");
    old.report(WEB, State::Enrolled, "").await;
    fixture
        .status_until(|s| !s["enrolment"]["captured"][WEB].is_null())
        .await;
}

#[tokio::test]
async fn an_outcome_that_was_lost_is_asked_for_again() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(node.next().await, ADD);
    drop(node);
    captured(&fixture, "a").await;
}

#[tokio::test]
async fn a_pod_deleted_while_it_is_enrolled_leaves_nothing() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("ns.yaml", AMBIENT)]).await;
    let mut node = Follower::start(&fixture, "a").await;
    assert_eq!(
        (node.next().await.as_str(), node.next().await.as_str()),
        (ADD, "snapshot")
    );
    let client_only = PODS.rsplit_once("---").unwrap().1;
    fixture.write("pods.yaml", client_only);
    assert_eq!(node.next().await, format!("del {WEB}"));
    // Crossed on the way.
    node.report(WEB, State::Enrolled, "").await;
    node.report(WEB, State::Released, "").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = fixture.status().await;
    assert_eq!(
        status["enrolment"]["captured"],
        serde_json::json!({}),
        "{status:#}"
    );
    // The next of that name starts as not captured.
    fixture.write("pods.yaml", PODS);
    let mut proxy = fixture.subscriber("b").await;
    assert_eq!(node.next().await, ADD);
    let all: Vec<_> = proxy.synchronise().await.iter().flat_map(tunnels).collect();
    assert!(
        all.contains(&(WEB.to_owned(), TunnelProtocol::None)),
        "{all:?}"
    );
}

#[tokio::test]
async fn a_node_cannot_hold_many_streams() {
    let fixture = Fixture::start(&[]).await;
    let mut followers = Vec::new();
    for _ in 0..8 {
        let mut follower = Follower::start(&fixture, "a").await;
        assert_eq!(follower.next().await, "snapshot");
        followers.push(follower);
    }
    let mut over = Follower::start(&fixture, "a").await;
    let status = over.commands.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    // Another node is not concerned, and room comes back.
    assert_eq!(
        Follower::start(&fixture, "b").await.next().await,
        "snapshot"
    );
    followers.pop();
    let start = Instant::now();
    loop {
        let mut again = Follower::start(&fixture, "a").await;
        if matches!(again.commands.message().await, Ok(Some(_))) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
