//! The driver against a scripted control plane, over real sockets.

use std::{collections::BTreeMap, sync::Arc};

use leyline_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::{Request, transport::Endpoint};

use super::*;
use peer::{Peer, PeerStream, response};

mod peer;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the application under test holds: name to content.
type Held = BTreeMap<String, String>;

/// A running client; ends with the test.
struct Subject {
    held: watch::Receiver<Held>,
    /// What was observed, one line each.
    events: Arc<Mutex<Vec<String>>>,
    changed: watch::Receiver<usize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

impl Subject {
    fn start(addr: std::net::SocketAddr) -> Self {
        Self::start_with(addr, |_| {})
    }

    fn start_with(addr: std::net::SocketAddr, adjust: impl FnOnce(&mut Config)) -> Self {
        let node = NodeInfo {
            id: "ztunnel~test".to_owned(),
            ..NodeInfo::default()
        };
        let mut cfg = Config::new(node, vec![ADDRESS_TYPE, AUTHORIZATION_TYPE]);
        adjust(&mut cfg);
        let (held_sender, held) = watch::channel(Held::new());
        let (count, changed) = watch::channel(0);
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = channel.connect_lazy();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(
            cfg,
            move || std::future::ready(Ok(channel.clone())),
            |mut request: Request<()>| {
                let metadata = request.metadata_mut();
                metadata.insert("authorization", "Bearer token".parse().unwrap());
                Ok(request)
            },
            move |update| apply(&held_sender, update),
            move |event| {
                log.lock().push(line(&event));
                count.send_modify(|count| *count += 1);
            },
            async move {
                // A dropped sender stops the client, too.
                stopped.await.unwrap_or(());
            },
        ));
        Self {
            held,
            events,
            changed,
            stop: Some(stop),
            tasks,
        }
    }

    async fn wait_held(&mut self, expected: &[(&str, &str)]) {
        let expected: Held = expected
            .iter()
            .map(|(name, content)| (name.to_string(), content.to_string()))
            .collect();
        let found = self.held.wait_for(|held| *held == expected);
        let in_time = timeout(PATIENCE, found).await.is_ok();
        assert!(in_time, "{:?} {:?}", self.held, self.events.lock());
    }

    async fn wait_event(&mut self, start: &str) {
        let events = self.events.clone();
        let found = self
            .changed
            .wait_for(|_| events.lock().iter().any(|event| event.starts_with(start)));
        let in_time = timeout(PATIENCE, found).await.is_ok();
        assert!(in_time, "no {start} in {:?}", self.events.lock());
    }

    fn count(&self, start: &str) -> usize {
        let events = self.events.lock();
        events.iter().filter(|e| e.starts_with(start)).count()
    }
}

/// Takes every resource whose name does not start with `bad`.
fn apply(held: &watch::Sender<Held>, update: Update) -> Vec<Rejection> {
    let mut rejections = Vec::new();
    held.send_modify(|held| {
        for name in &update.removed {
            held.remove(name);
        }
        for resource in update.resources {
            if resource.name.starts_with("bad") {
                rejections.push(Rejection {
                    name: resource.name,
                    reason: "scope: unknown value 7".to_owned(),
                });
            } else {
                let content = String::from_utf8(resource.body).unwrap();
                held.insert(resource.name, content);
            }
        }
    });
    rejections
}

fn line(event: &Observed<'_>) -> String {
    match event {
        Observed::Connected => "connected".to_owned(),
        Observed::Message { type_url, bytes } => format!("message {type_url} {bytes}"),
        Observed::NotSubscribed { type_url } => format!("not subscribed {type_url}"),
        Observed::Nack { rejections, .. } => format!("nack {}", rejections.len()),
        Observed::Synced => "synced".to_owned(),
        Observed::Disconnected { reason, error, .. } => {
            let error = error.map_or_else(String::new, ToString::to_string);
            format!("disconnected {} {error}", reason.as_str())
        }
    }
}

/// The two first requests of a stream, by type.
async fn first_requests(stream: &mut PeerStream) -> [DeltaDiscoveryRequest; 2] {
    let addresses = stream.request().await;
    let policies = stream.request().await;
    assert_eq!(addresses.type_url, ADDRESS_TYPE);
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    assert_eq!(addresses.node.as_ref().unwrap().id, "ztunnel~test");
    for request in [&addresses, &policies] {
        assert!(request.response_nonce.is_empty());
        assert!(request.resource_names_subscribe.is_empty());
    }
    [addresses, policies]
}

#[track_caller]
fn assert_ack(request: &DeltaDiscoveryRequest, type_url: &str, nonce: &str) {
    assert_eq!(request.type_url, type_url);
    assert_eq!(request.response_nonce, nonce);
    assert_eq!(request.error_detail, None);
}

/// A client that holds `a@1` and no policy, over a stream that is open.
async fn synced() -> (Peer, PeerStream, Subject) {
    let mut peer = Peer::start().await;
    let mut subject = Subject::start(peer.addr);
    let mut stream = peer.accept().await;
    first_requests(&mut stream).await;
    let addresses = response(ADDRESS_TYPE, "1", &[("a", "1")], &[]);
    stream.respond(addresses).await;
    assert_ack(&stream.request().await, ADDRESS_TYPE, "1");
    assert_eq!(subject.count("synced"), 0);
    let policies = response(AUTHORIZATION_TYPE, "2", &[], &[]);
    stream.respond(policies).await;
    assert_ack(&stream.request().await, AUTHORIZATION_TYPE, "2");
    subject.wait_event("synced").await;
    subject.wait_held(&[("a", "a@1")]).await;
    (peer, stream, subject)
}

#[tokio::test]
async fn syncs_and_follows_changes() {
    let (_peer, mut stream, mut subject) = synced().await;
    assert_eq!(
        stream.metadata.get("authorization").unwrap(),
        "Bearer token"
    );
    let change = response(ADDRESS_TYPE, "3", &[("b", "1"), ("c", "1")], &["a"]);
    stream.respond(change).await;
    assert_ack(&stream.request().await, ADDRESS_TYPE, "3");
    subject.wait_held(&[("b", "b@1"), ("c", "c@1")]).await;
    assert_eq!(subject.count("synced"), 1);
    assert_eq!(subject.count("message"), 3);
    assert_eq!(subject.count("disconnected"), 0);
}

#[tokio::test]
async fn rejections_are_told_and_leave_the_good_resources_applied() {
    let (mut peer, mut stream, mut subject) = synced().await;
    let mut change = response(
        ADDRESS_TYPE,
        "3",
        &[("b", "1"), ("bad", "1"), ("c", "1")],
        &[],
    );
    change.resources.push(Default::default());
    stream.respond(change).await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "3");
    let detail = nack.error_detail.unwrap();
    assert_eq!(detail.code, 3);
    assert_eq!(
        detail.message,
        ": resource has no name; bad: scope: unknown value 7"
    );
    subject
        .wait_held(&[("a", "a@1"), ("b", "b@1"), ("c", "c@1")])
        .await;
    subject.wait_event("nack 2").await;

    // After a reconnect the rejected resource is not claimed.
    stream.fail(Status::unavailable("restart")).await;
    let [addresses, _] = first_requests(&mut peer.accept().await).await;
    let held: BTreeMap<_, _> = addresses.initial_resource_versions.iter().collect();
    let names: Vec<&str> = held.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn reconnects_with_what_it_holds_and_keeps_it() {
    let (mut peer, stream, mut subject) = synced().await;
    // The server ends the stream in order.
    drop(stream);
    let mut stream = peer.accept().await;
    subject.wait_event("disconnected Complete").await;
    let [addresses, policies] = first_requests(&mut stream).await;
    assert_eq!(
        addresses.initial_resource_versions,
        [("a".to_owned(), "1".to_owned())].into()
    );
    assert!(policies.initial_resource_versions.is_empty());
    assert_eq!(subject.held.borrow().len(), 1);

    // It says what has changed meanwhile, removals included.
    let change = response(ADDRESS_TYPE, "x", &[("b", "7")], &["a"]);
    stream.respond(change).await;
    assert_ack(&stream.request().await, ADDRESS_TYPE, "x");
    subject.wait_held(&[("b", "b@7")]).await;
    assert_eq!(subject.count("synced"), 1);
}

#[tokio::test]
async fn finds_a_restarted_control_plane_and_serves_meanwhile() {
    let (peer, stream, mut subject) = synced().await;
    let addr = peer.addr;
    drop(stream);
    peer.kill().await;
    subject.wait_event("disconnected ConnectionError").await;
    assert_eq!(subject.held.borrow().len(), 1);

    let mut peer = Peer::start_at(addr).await;
    let mut stream = peer.accept().await;
    let [addresses, _] = first_requests(&mut stream).await;
    assert_eq!(addresses.initial_resource_versions.len(), 1);
    let change = response(ADDRESS_TYPE, "1", &[("b", "1")], &[]);
    stream.respond(change).await;
    subject.wait_held(&[("a", "a@1"), ("b", "b@1")]).await;
}

#[tokio::test]
async fn ends_are_counted_by_class() {
    let (mut peer, stream, mut subject) = synced().await;
    stream.fail(Status::permission_denied("who are you")).await;
    subject
        .wait_event("disconnected Error the control plane ended the stream: who are you")
        .await;
    let stream = peer.accept().await;
    stream.fail(Status::cancelled("moving on")).await;
    subject.wait_event("disconnected Reconnect").await;
    let stream = peer.accept().await;
    let goaway = Status::unavailable("closing: received prior goaway: code: NO_ERROR");
    stream.fail(goaway).await;
    peer.accept().await;
    assert_eq!(subject.count("disconnected Reconnect"), 2);
}

#[tokio::test]
async fn type_that_was_not_asked_for_is_ignored() {
    let (_peer, mut stream, mut subject) = synced().await;
    stream
        .respond(response("type.test/Plum", "3", &[("p", "1")], &[]))
        .await;
    subject.wait_event("not subscribed type.test/Plum").await;
    // The next answer is for the next response.
    stream
        .respond(response(ADDRESS_TYPE, "4", &[("b", "1")], &[]))
        .await;
    assert_ack(&stream.request().await, ADDRESS_TYPE, "4");
    subject.wait_held(&[("a", "a@1"), ("b", "b@1")]).await;
}

#[tokio::test]
async fn too_large_message_ends_the_stream_only() {
    let mut peer = Peer::start().await;
    let mut subject = Subject::start_with(peer.addr, |cfg| cfg.max_message_bytes = 1000);
    let mut stream = peer.accept().await;
    first_requests(&mut stream).await;
    let long = "x".repeat(2000);
    stream
        .respond(response(ADDRESS_TYPE, "1", &[("a", &long)], &[]))
        .await;
    subject.wait_event("disconnected Error").await;
    let mut stream = peer.accept().await;
    first_requests(&mut stream).await;
    stream
        .respond(response(ADDRESS_TYPE, "1", &[("a", "1")], &[]))
        .await;
    subject.wait_held(&[("a", "a@1")]).await;
}

#[tokio::test]
async fn control_plane_that_never_answers_is_given_up() {
    let mut peer = Peer::start().await;
    let mut subject = Subject::start_with(peer.addr, |cfg| {
        cfg.answer_deadline = Duration::from_millis(100);
    });
    let mut silent = peer.accept().await;
    first_requests(&mut silent).await;
    subject
        .wait_event("disconnected Error the control plane did not answer")
        .await;
    assert!(silent.is_closed().await);

    // One that answers is followed without deadline once all types are there.
    let mut stream = peer.accept().await;
    first_requests(&mut stream).await;
    for (type_url, nonce) in [(ADDRESS_TYPE, "1"), (AUTHORIZATION_TYPE, "2")] {
        stream.respond(response(type_url, nonce, &[], &[])).await;
        assert_ack(&stream.request().await, type_url, nonce);
    }
    subject.wait_event("synced").await;
    let idle = timeout(Duration::from_millis(300), stream.request()).await;
    assert!(idle.is_err());
    assert_eq!(subject.count("disconnected"), 1);
}

#[tokio::test]
async fn listener_without_a_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut subject = Subject::start_with(listener.local_addr().unwrap(), |cfg| {
        cfg.answer_deadline = Duration::from_millis(100);
    });
    subject.wait_event("disconnected Error").await;
}

#[tokio::test]
async fn application_error_of_connect_is_a_connection_error() {
    let (sender, mut reasons) = mpsc::channel(4);
    let node = NodeInfo::default();
    let stuck = std::cell::Cell::new(false);
    let mut cfg = Config::new(node, vec![ADDRESS_TYPE]);
    cfg.connect_deadline = Duration::from_millis(50);
    let client = run(
        cfg,
        || {
            let is_stuck = stuck.replace(true);
            async move {
                if is_stuck {
                    std::future::pending::<()>().await;
                }
                Err(BoxError::from("no such file"))
            }
        },
        |request: Request<()>| Ok(request),
        |_| Vec::new(),
        |event| sender.try_send(line(&event)).unwrap(),
        async {
            let mut got = Vec::new();
            while got.len() < 2 {
                got.push(reasons.recv().await.unwrap());
            }
            assert_eq!(
                got,
                [
                    "disconnected ConnectionError cannot connect to the control plane",
                    "disconnected ConnectionError the control plane did not accept a connection within 50ms",
                ]
            );
        },
    );
    timeout(PATIENCE, Box::pin(client)).await.unwrap();
}

#[tokio::test]
async fn ends_on_stop_and_closes_the_stream() {
    let (_peer, mut stream, mut subject) = synced().await;
    subject.stop.take().unwrap().send(()).unwrap();
    let end = timeout(PATIENCE, subject.tasks.join_next()).await.unwrap();
    end.unwrap().unwrap();
    assert!(stream.is_closed().await);
}

#[test]
fn statuses_are_classified_as_ztunnel_does() {
    let check = |status: Status, expected| assert_eq!(classify(&status), expected, "{status:?}");
    check(Status::unknown(""), Termination::Reconnect);
    check(Status::cancelled(""), Termination::Reconnect);
    check(Status::deadline_exceeded(""), Termination::Reconnect);
    check(
        Status::unavailable("transport is closing"),
        Termination::Reconnect,
    );
    check(Status::unavailable(""), Termination::Error);
    check(Status::unauthenticated(""), Termination::Error);
    check(Status::internal(""), Termination::Error);
}

#[test]
fn runs_on_any_thread_and_stays_small() {
    fn size(future: impl Future<Output = ()> + Send) -> usize {
        size_of_val(&future)
    }
    let client = run(
        Config::new(NodeInfo::default(), vec![ADDRESS_TYPE]),
        || std::future::ready(Err(BoxError::from("never"))),
        |request: Request<()>| Ok(request),
        |_| Vec::new(),
        |_| {},
        std::future::pending(),
    );
    // One per process: the bound only tells when a big value slips across an await.
    let size = size(client);
    assert!(size < 8192, "{size}");
}
