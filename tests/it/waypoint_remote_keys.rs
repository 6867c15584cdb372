//! Keys of a token issuer that the waypoint fetches itself (`remote_jwks`), under a control plane in Python that has it do so.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use leyline_tests::{
    eventually::eventually,
    fabric::CONTROL_PLANE,
    mesh::Mesh,
    process::{Process, Program},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    support::SOON,
    waypoint::{CANARY, mesh_with_waypoint},
    waypoint_istiod::{ADDRESS, start_server},
    waypoint_jwt::{call, token, vectors},
};

/// Of the server of keys, beside the control plane of the mesh.
const PORT: u16 = 18_081;

/// The issuer, who answers as long as it runs.
struct Issuer {
    directory: PathBuf,
}

impl Issuer {
    fn new(mesh: &Mesh) -> Self {
        let directory = mesh.cluster().run().dir().join("issuer");
        fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    /// Has these keys from now on, and no others.
    fn has(&self, ids: &[&str]) {
        let keys = vectors()["jwks"]["keys"].as_array().unwrap().clone();
        let is_one = |key: &Value| ids.iter().any(|id| key["kid"] == *id);
        let keys: Vec<Value> = keys.into_iter().filter(is_one).collect();
        assert_eq!(keys.len(), ids.len());
        let next = self.directory.join("next");
        fs::write(&next, json!({ "keys": keys }).to_string()).unwrap();
        fs::rename(next, self.directory.join("keys.json")).unwrap();
    }

    async fn start(&self, mesh: &Mesh) -> Process {
        let address = CONTROL_PLANE[0].to_string();
        let port = PORT.to_string();
        let args = ["-u", "-m", "http.server", "--bind", &address, "--directory"];
        let args = args.iter().map(Into::into);
        let program = Program {
            name: "issuer".to_owned(),
            path: "/usr/bin/python3".into(),
            args: args
                .chain([self.directory.clone().into(), port.into()])
                .collect(),
            env: BTreeMap::new(),
            namespace: mesh.cluster().fabric().infra().clone(),
        };
        let mut process = Process::start(mesh.cluster().run(), &program).unwrap();
        process.wait_for_line("Serving HTTP", SOON).await.unwrap();
        process
    }
}

async fn expect(mesh: &Mesh, vip: SocketAddr, name: &str, expected: &str) -> Result<()> {
    let reply = call(mesh, vip, Some(&token(name))).await?;
    ensure!(
        reply.starts_with(&format!("HTTP/1.1 {}", &expected[..3])),
        "{name}: {reply}"
    );
    ensure!(reply.ends_with(&expected[3..]), "{name}: {reply}");
    Ok(())
}

const NOT_FETCHED: &str = "401Jwks remote fetch is failed";
const NO_SUCH_KEY: &str = "401Jwks doesn't have key to match kid or alg from Jwt";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_waypoint_fetches() {
    let (mut mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let issuer = Issuer::new(&mesh);
    issuer.has(&["rsa", "p521"]);
    let at = format!("{}:{PORT}", CONTROL_PLANE[0]);
    let server = start_server(&mesh, vip, "ads_jwt.py", &[&at]).await;
    let env = [
        ("XDS_ADDRESS", ADDRESS),
        ("ALT_XDS_HOSTNAME", "istiod.example"),
    ];
    mesh.restart_waypoint("shop/waypoint", &env).await.unwrap();

    // Nobody has the keys yet: tokens are good for nothing, and who has none is served.
    eventually("tokens are refused", SOON, || async {
        expect(&mesh, vip, "RS256", NOT_FETCHED).await
    })
    .await
    .unwrap();
    let reply = call(&mesh, vip, None).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");

    let mut serving = issuer.start(&mesh).await;
    eventually("the keys are fetched", SOON, || async {
        expect(&mesh, vip, "RS256", "200").await
    })
    .await
    .unwrap();
    expect(&mesh, vip, "ES512", "200").await.unwrap();
    expect(&mesh, vip, "ES256", NO_SUCH_KEY).await.unwrap();

    // Another configuration with the same issuer has the same keys.
    server.signal(Signal::SIGUSR1).unwrap();
    for _ in 0..20 {
        expect(&mesh, vip, "RS256", "200").await.unwrap();
    }

    // The issuer takes another key: a token by it has the waypoint ask, long before the old ones expire.
    issuer.has(&["p256"]);
    eventually("the new key is fetched", SOON, || async {
        expect(&mesh, vip, "ES256", "200").await
    })
    .await
    .unwrap();
    expect(&mesh, vip, "RS256", NO_SUCH_KEY).await.unwrap();

    // Keys that are known stay for their life when their issuer is gone.
    serving.kill().await.unwrap();
    expect(&mesh, vip, "ES256", "200").await.unwrap();
    mesh.stop().await.unwrap();
}
