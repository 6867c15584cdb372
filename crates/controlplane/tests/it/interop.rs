//! The server against an independent client: grpcio with Envoy's own protos, in Python (`delta_client.py`). The virtual
//! environment is that of `leyline-xds`, made by whichever test comes first; this needs `python3` and PyPI.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use leyline_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    discovery::{PODS, policy},
    harness::Fixture,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Two wheels from PyPI, 10 MB.
const INSTALL: Duration = Duration::from_secs(240);
/// The same as those of `crates/xds/tests/interop.rs`, whose environment this is.
const PACKAGES: [&str; 2] = ["grpcio==1.85.1", "xds-protos==1.85.0"];

/// The interpreter with grpcio and Envoy's protos; makes it when missing.
async fn python() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../venv-xds");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    // Of several processes that find nothing one makes it.
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("venv-xds.lock")).unwrap();
    let _held = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .unwrap()
        .unwrap();
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

struct Client {
    commands: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
    // Killed when dropped.
    _child: Child,
}

impl Client {
    async fn start(fixture: &Fixture) -> Self {
        let (server, _) = fixture.server.as_ref().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/delta_client.py");
        let mut child = Command::new(python().await)
            .arg(script)
            .arg(server.address().port().to_string())
            .arg(fixture.root())
            .arg(fixture.node_token("a"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            commands: child.stdin.take().unwrap(),
            events: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    async fn command(&mut self, command: Value) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.unwrap();
    }

    async fn event(&mut self) -> Value {
        let line = timeout(PATIENCE, self.events.next_line()).await;
        let line = line.expect("an event").unwrap();
        serde_json::from_str(&line.expect("the client has ended")).unwrap()
    }

    async fn is_quiet(&mut self) -> bool {
        let quiet = Duration::from_millis(300);
        timeout(quiet, self.events.next_line()).await.is_err()
    }

    /// Opens a stream and subscribes to both types with what is known.
    async fn subscribe(&mut self, stream: &str, known: &[&Value; 2]) {
        self.command(json!({"open": stream})).await;
        for (type_url, known) in [ADDRESS_TYPE, AUTHORIZATION_TYPE].iter().zip(known) {
            self.command(
                json!({"send": stream, "type": type_url, "known": known, "node": "python"}),
            )
            .await;
        }
    }

    async fn answer(&mut self, event: &Value, error: Option<&str>) {
        let mut answer =
            json!({"send": event["stream"], "type": event["type"], "nonce": event["nonce"]});
        if let Some(error) = error {
            answer["error"] = error.into();
        }
        self.command(answer).await;
    }

    /// The next response of a type, acknowledged.
    async fn next(&mut self, type_url: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event["type"], type_url, "{event}");
        self.answer(&event, None).await;
        event
    }
}

fn names(event: &Value) -> Vec<&str> {
    let resources = event["resources"].as_object().unwrap();
    resources.keys().map(String::as_str).collect()
}

const CLIENT: &str = "Kubernetes//Pod/shop/client";
const WEB: &str = "Kubernetes//Pod/shop/web";

#[tokio::test]
async fn a_client_of_others_makes_is_served_like_ours() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("p.yaml", &policy("80"))]).await;
    let mut client = Client::start(&fixture).await;
    client.subscribe("one", &[&json!({}), &json!({})]).await;
    // Either type may be asked for first.
    let (mut addresses, mut policies) = (Value::Null, Value::Null);
    while addresses.is_null() || policies.is_null() {
        let event = client.event().await;
        client.answer(&event, None).await;
        if event["type"] == ADDRESS_TYPE {
            addresses = event;
        } else {
            policies = event;
        }
    }
    assert_eq!(names(&addresses), [CLIENT, WEB]);
    assert_eq!(names(&policies), ["shop/p"]);
    assert!(client.is_quiet().await);

    // A rejection is shown, and its resources come again only once they change.
    fixture.write("p.yaml", &policy("81"));
    let event = client.event().await;
    assert_eq!(names(&event), ["shop/p"]);
    client.answer(&event, Some("shop/p: no")).await;
    assert!(client.is_quiet().await);
    let status = fixture.status().await;
    assert_eq!(
        status["proxies"][0]["types"]["authorization"]["rejections"],
        json!(["shop/p: no"])
    );
    assert_eq!(status["proxies"][0]["node_id"], "python");
    fixture.write("p.yaml", &policy("82"));
    policies = client.next(AUTHORIZATION_TYPE).await;
    assert_eq!(names(&policies), ["shop/p"]);

    // Broken off, and back with what is known: only what differs comes, and what is gone.
    client.command(json!({"close": "one"})).await;
    assert_eq!(client.event().await["code"], "CANCELLED");
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.3"));
    fixture
        .status_until(|status| status["generation"].as_u64() >= Some(4))
        .await;
    let mut known = addresses["resources"].clone();
    known["gone"] = "1".into();
    client
        .subscribe("two", &[&known, &policies["resources"]])
        .await;
    let (mut seen, mut empty) = (0, 0);
    for _ in 0..2 {
        let event = client.event().await;
        client.answer(&event, None).await;
        if event["type"] == ADDRESS_TYPE {
            assert_eq!(
                (names(&event), &event["removed"]),
                (vec![CLIENT], &json!(["gone"]))
            );
            seen += 1;
        } else {
            assert_eq!((names(&event).len(), &event["removed"]), (0, &json!([])));
            empty += 1;
        }
    }
    assert_eq!((seen, empty), (1, 1));
}

#[tokio::test]
async fn a_client_of_others_makes_leaves_and_talks_nonsense() {
    let fixture = Fixture::start(&[("pods.yaml", PODS), ("p.yaml", &policy("80"))]).await;
    let mut client = Client::start(&fixture).await;
    client.command(json!({"open": "one"})).await;
    let wildcard = json!({"send": "one", "type": ADDRESS_TYPE, "subscribe": ["*"]});
    client.command(wildcard.clone()).await;
    assert_eq!(names(&client.next(ADDRESS_TYPE).await).len(), 2);

    client
        .command(json!({"send": "one", "type": ADDRESS_TYPE, "unsubscribe": ["*"]}))
        .await;
    fixture
        .status_until(|status| status["proxies"][0]["types"]["address"].is_null())
        .await;
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.3"));
    assert!(client.is_quiet().await, "it has left");
    client.command(wildcard).await;
    assert_eq!(names(&client.next(ADDRESS_TYPE).await).len(), 2);

    // Nonsense that does no harm: nonces of nothing, types that are not served.
    for nonsense in [
        json!({"send": "one", "type": ADDRESS_TYPE, "nonce": "never sent"}),
        json!({"send": "one", "type": ADDRESS_TYPE, "nonce": "never sent", "error": "never sent"}),
        json!({"send": "one", "type": "type.googleapis.com/envoy.config.listener.v3.Listener"}),
        json!({"send": "one", "type": ""}),
    ] {
        client.command(nonsense).await;
    }
    assert!(client.is_quiet().await);
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.4"));
    assert_eq!(names(&client.next(ADDRESS_TYPE).await), [CLIENT]);

    // What is not a message ends its stream, and no other.
    client.command(json!({"open": "two"})).await;
    client
        .command(json!({"junk": "two", "bytes": "ffffffffff"}))
        .await;
    let end = client.event().await;
    assert_eq!(end["end"], "two", "{end}");
    assert_eq!(end["code"], "INVALID_ARGUMENT", "{end}");
    client.command(json!({"open": "three"})).await;
    client
        .command(json!({"send": "three", "type": AUTHORIZATION_TYPE, "subscribe": ["by/name"]}))
        .await;
    let end = client.event().await;
    assert_eq!(
        (&end["end"], &end["code"]),
        (&"three".into(), &"INVALID_ARGUMENT".into())
    );
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.5"));
    assert_eq!(names(&client.next(ADDRESS_TYPE).await), [CLIENT]);
}
