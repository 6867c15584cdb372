//! The client against an independent control plane: grpcio with Envoy's own protos, in Python (`delta_server.py`).
//! The virtual environment is made once, under the target directory; this needs `python3` and PyPI.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use leyline_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use leyline_xds::{
    NodeInfo,
    client::{Config, Interest, Observed, run},
    node_id,
    session::{Rejection, Update},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tonic::{Request, transport::Endpoint};

const PATIENCE: Duration = Duration::from_secs(20);
/// Two wheels from PyPI, 10 MB.
const INSTALL: Duration = Duration::from_secs(240);
const PACKAGES: [&str; 2] = ["grpcio==1.85.1", "xds-protos==1.85.0"];

type Held = BTreeMap<String, String>;

struct Server {
    port: u16,
    commands: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
    // Killed when dropped.
    _child: Child,
}

impl Server {
    async fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/delta_server.py");
        let mut child = Command::new(python().await)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self {
            port: 0,
            commands,
            events,
            _child: child,
        };
        let port = server.event().await["port"].as_u64().unwrap();
        server.port = u16::try_from(port).unwrap();
        server
    }

    async fn event(&mut self) -> Value {
        let line = timeout(PATIENCE, self.events.next_line()).await.unwrap();
        serde_json::from_str(&line.unwrap().expect("the server has ended")).unwrap()
    }

    async fn command(&mut self, command: Value) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.unwrap();
    }

    async fn set(&mut self, type_url: &str, name: &str, version: &str) {
        self.command(json!({"set": [type_url, name, version]}))
            .await;
    }

    /// The next request, which must be an answer to this type, with its complaint.
    async fn answer(&mut self, type_url: &str) -> (i64, String) {
        let event = self.event().await;
        assert_eq!(event["request"], type_url, "{event}");
        assert!(event["nonce"].as_str().unwrap().starts_with("python-"));
        assert_eq!(event["held"], json!({}), "{event}");
        let message = event["message"].as_str().unwrap().to_owned();
        (event["code"].as_i64().unwrap(), message)
    }

    /// A new stream and its first requests with what they claim to hold, by type.
    async fn stream(&mut self) -> [Value; 2] {
        let stream = self.event().await;
        assert_eq!(stream["authorization"], "Bearer token", "{stream}");
        let mut held = [Value::Null, Value::Null];
        for (slot, type_url) in held.iter_mut().zip([ADDRESS_TYPE, AUTHORIZATION_TYPE]) {
            let event = self.event().await;
            assert_eq!(event["request"], type_url, "{event}");
            assert_eq!(event["nonce"], "");
            if type_url == ADDRESS_TYPE {
                assert_eq!(
                    event["node"],
                    "ztunnel~10.0.0.1~zt.istio-system~istio-system.svc.cluster.local"
                );
                assert_eq!(event["metadata"], json!({"NODE_NAME": "node-a"}));
            }
            *slot = event["held"].clone();
        }
        held
    }
}

/// The interpreter with grpcio and Envoy's protos; makes it when missing.
async fn python() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../venv-xds");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    if !ready.exists() {
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        succeed(make).await;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "-q"]).args(PACKAGES);
        succeed(install).await;
        std::fs::write(ready, PACKAGES.join(" ")).unwrap();
    }
    python
}

async fn succeed(mut command: Command) {
    let status = timeout(INSTALL, command.kill_on_drop(true).status()).await;
    let status = status.expect("took too long").expect("cannot start");
    assert!(status.success(), "{command:?}: {status}");
}

/// A client whose application takes everything that is not called bad.
fn start_client(
    port: u16,
    interest: Interest,
) -> (JoinSet<()>, watch::Receiver<Held>, mpsc::Receiver<String>) {
    let mut node = NodeInfo {
        id: node_id("ztunnel", "10.0.0.1", "zt", "istio-system"),
        ..NodeInfo::default()
    };
    node.metadata.insert("NODE_NAME".into(), "node-a".into());
    let mut cfg = Config::new(node, vec![ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    cfg.interest = interest;
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let channel = channel.connect_lazy();
    let (held_sender, held) = watch::channel(Held::new());
    let (ends, ended) = mpsc::channel(16);
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
            if let Observed::Disconnected { reason, .. } = event {
                ends.try_send(reason.as_str().to_owned()).unwrap();
            }
        },
        std::future::pending(),
    ));
    (tasks, held, ended)
}

fn apply(held: &watch::Sender<Held>, update: Update) -> Vec<Rejection> {
    let mut rejections = Vec::new();
    held.send_modify(|held| {
        for name in &update.removed {
            if held.remove(name).is_none() {
                // Asked for, and not there.
                held.insert(name.clone(), format!("no {name}"));
            }
        }
        for resource in update.resources {
            let name = resource.name;
            if name.starts_with("bad") {
                let reason = "field action: unknown value 9".to_owned();
                rejections.push(Rejection { name, reason });
            } else {
                held.insert(name, String::from_utf8(resource.body).unwrap());
            }
        }
    });
    rejections
}

async fn wait_held(held: &mut watch::Receiver<Held>, expected: &[&str]) {
    let is_there = |held: &Held| {
        held.values()
            .map(String::as_str)
            .eq(expected.iter().copied())
    };
    let found = timeout(PATIENCE, held.wait_for(is_there)).await.is_ok();
    assert!(found, "{held:?}, expected {expected:?}");
}

#[tokio::test]
async fn follows_a_grpcio_control_plane() {
    let mut server = Server::start().await;
    let ack = (0, String::new());
    server.set(ADDRESS_TYPE, "c1//Pod/shop/web", "1").await;
    server.set(ADDRESS_TYPE, "shop/web.example", "1").await;
    let (_client, mut held, mut ended) = start_client(server.port, Interest::default());

    // First stream: everything, and an empty answer for the type without resources.
    assert_eq!(server.stream().await, [json!({}), json!({})]);
    assert_eq!(server.answer(ADDRESS_TYPE).await, ack);
    assert_eq!(server.answer(AUTHORIZATION_TYPE).await, ack);
    wait_held(&mut held, &["c1//Pod/shop/web@1", "shop/web.example@1"]).await;

    // A change, a removal, a good and a bad policy.
    server.set(ADDRESS_TYPE, "c1//Pod/shop/web", "2").await;
    server
        .command(json!({"delete": [ADDRESS_TYPE, "shop/web.example"]}))
        .await;
    server.set(AUTHORIZATION_TYPE, "shop/allow", "1").await;
    server.set(AUTHORIZATION_TYPE, "bad/policy", "1").await;
    server.command(json!({"push": true})).await;
    assert_eq!(server.answer(ADDRESS_TYPE).await, ack);
    let nack = (3, "bad/policy: field action: unknown value 9".to_owned());
    assert_eq!(server.answer(AUTHORIZATION_TYPE).await, nack);
    wait_held(&mut held, &["c1//Pod/shop/web@2", "shop/allow@1"]).await;

    // The stream ends; the world changes; the client says what it holds and hears the difference.
    server.command(json!({"end": true})).await;
    server
        .command(json!({"delete": [AUTHORIZATION_TYPE, "shop/allow"]}))
        .await;
    assert_eq!(
        timeout(PATIENCE, ended.recv()).await.unwrap().unwrap(),
        "Complete"
    );
    let [addresses, policies] = server.stream().await;
    assert_eq!(addresses, json!({"c1//Pod/shop/web": "2"}));
    assert_eq!(policies, json!({"shop/allow": "1"}));
    assert_eq!(server.answer(ADDRESS_TYPE).await, ack);
    assert_eq!(server.answer(AUTHORIZATION_TYPE).await, nack);
    wait_held(&mut held, &["c1//Pod/shop/web@2"]).await;
}

#[tokio::test]
async fn asks_a_grpcio_control_plane_for_single_names() {
    let mut server = Server::start().await;
    let ack = (0, String::new());
    let web = "c1//Pod/shop/web";
    server.set(ADDRESS_TYPE, web, "1").await;
    server.set(ADDRESS_TYPE, "c1//Pod/shop/other", "1").await;
    let alias = json!({"alias": ["net/10.0.0.1", web]});
    server.command(alias).await;
    let names = Arc::new(watch::Sender::new(BTreeSet::new()));
    let changed = Arc::new(Notify::new());
    let wanted = names.clone();
    let wanted = move |kind| (kind == ADDRESS_TYPE).then(|| wanted.borrow().clone());
    let interest = Interest::on_demand(ADDRESS_TYPE, Arc::new(wanted), changed.clone());
    let (_client, mut held, mut ended) = start_client(server.port, interest);

    // Not everything, and nothing yet.
    assert!(server.event().await["stream"].is_string());
    let first = server.event().await;
    assert_eq!(first["added"], json!(["*"]), "{first}");
    assert_eq!(first["dropped"], json!(["*"]), "{first}");
    assert_eq!(server.event().await["added"], json!([]));
    assert_eq!(server.answer(ADDRESS_TYPE).await, ack);
    assert_eq!(server.answer(AUTHORIZATION_TYPE).await, ack);

    // What is there comes under its own name, what is not is told so.
    for (name, expected) in [
        ("net/10.0.0.1", &["c1//Pod/shop/web@1"][..]),
        ("net/10.9.9.9", &["c1//Pod/shop/web@1", "no net/10.9.9.9"]),
    ] {
        names.send_modify(|names| {
            names.insert(name.to_owned());
        });
        changed.notify_one();
        let asked = server.event().await;
        assert_eq!(asked["added"], json!([name]), "{asked}");
        assert_eq!(asked["nonce"], "");
        assert_eq!(server.answer(ADDRESS_TYPE).await, ack);
        wait_held(&mut held, expected).await;
    }

    // A new stream asks for the same, and says what it has; what was not there has come to be.
    server.command(json!({"end": true})).await;
    let alias = json!({"alias": ["net/10.9.9.9", "c1//Pod/shop/late"]});
    server.command(alias).await;
    server.set(ADDRESS_TYPE, "c1//Pod/shop/late", "1").await;
    let end = timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
    assert_eq!(end, "Complete");
    assert!(server.event().await["stream"].is_string());
    let again = server.event().await;
    assert_eq!(again["added"], json!(["net/10.0.0.1", "net/10.9.9.9"]));
    assert_eq!(again["dropped"], json!([]));
    assert_eq!(again["held"], json!({web: "1"}));
    let all = [
        "c1//Pod/shop/late@1",
        "c1//Pod/shop/web@1",
        "no net/10.9.9.9",
    ];
    wait_held(&mut held, &all).await;
}
