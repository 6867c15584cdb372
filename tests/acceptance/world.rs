//! The mesh that all rows share: it is started once, and each row brings documents of its own and takes them away again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    client::Client,
    cluster::{Binaries, Family},
    eventually::eventually,
    mesh::{Limits, Mesh, Options, uid},
    peers::Peers,
    preflight,
    process::{Process, Program, output},
    run::{self, Run},
    session::Session,
};

use crate::case::Case;

/// For what happens at once, however busy the machine is.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// The documents of the row that runs.
const ROW: &str = "row.yaml";
const ENROLLED: [&str; 4] = [
    "apps/client",
    "apps/echo-v1",
    "apps/echo-v2",
    "apps/addressed",
];

/// Nodes, pods, proxies, waypoints.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) peers: Peers,
    /// gRPC and WebSocket servers in the pods of `echo`, by version.
    pub(crate) servers: BTreeMap<&'static str, Process>,
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        preflight::check_machine()?;
        run::remove_abandoned()?;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let options = Options {
            run: Run::unique()?,
            binaries: Binaries::beside_this_test()?,
            manifests: vec![here.join("acceptance/manifests")],
            limits: Limits::TEST,
            peers: here.join("../target/peers-venv"),
        };
        let peers = Peers::install_with(&options.peers, Peers::L7).await?;
        let mesh = Box::pin(Mesh::start(options, |_step| {})).await?;
        eventually("the pods are enrolled", mesh.limits().edit, || async {
            for (_, dump) in mesh.dumps().await? {
                for pod in ENROLLED {
                    dump.check_enrolled(&uid(pod))?;
                }
            }
            Ok(())
        })
        .await?;
        let mut servers = BTreeMap::new();
        for (version, pod) in [("v1", "apps/echo-v1"), ("v2", "apps/echo-v2")] {
            let args = ["--name", version, "--grpc", "7070", "--websocket", "7071"];
            let namespace = mesh.cluster().pod(pod)?.namespace();
            let server = peers.start_script(mesh.cluster().run(), namespace, "l7_server.py", &args);
            servers.insert(version, server.await?);
        }
        Ok(Self {
            mesh,
            peers,
            servers,
        })
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        for server in self.servers.values_mut() {
            server.kill().await?;
        }
        self.mesh.stop().await
    }

    /// Puts these documents in the place of those of the row.
    pub(crate) fn apply(&self, documents: &str) -> Result<()> {
        self.mesh.cluster().config().write(ROW, documents)
    }

    /// Takes what a row has left.
    pub(crate) fn clear(&self) -> Result<()> {
        self.mesh.cluster().config().remove(ROW)
    }

    /// Waits until all of these hold at once.
    pub(crate) async fn expect(&self, cases: &[Case]) -> Result<()> {
        eventually("the cases hold", SOON, || async {
            for case in cases {
                case.check(self).await?;
            }
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// The same after these documents have come.
    pub(crate) async fn applied(&self, documents: &str, cases: &[Case]) -> Result<()> {
        self.apply(documents)?;
        self.expect(cases).await
    }

    /// Where a name such as `echo:80`, `apps/echo-v1:8080` (a pod) or an address leads to.
    pub(crate) fn target(&self, name: &str) -> Result<SocketAddr> {
        if let Ok(addr) = name.parse() {
            return Ok(addr);
        }
        let (name, port) = name.rsplit_once(':').context("a target has a port")?;
        let port = port.parse()?;
        let cluster = self.mesh.cluster();
        if name.contains('/') {
            return cluster.pod_addr(name, Family::V4, port);
        }
        for namespace in ["apps", "outside"] {
            if let Ok(vip) = cluster.vip(&format!("{namespace}/{name}"), Family::V4, port) {
                return Ok(vip);
            }
        }
        anyhow::bail!("no service {name}")
    }

    pub(crate) fn client(&self) -> Result<Client> {
        self.mesh.cluster().client("apps/client")
    }

    /// How the answers of so many requests to `to` are spread over versions.
    pub(crate) async fn shares(&self, to: &str, requests: u32) -> Result<BTreeMap<String, u32>> {
        let mut session = Session::open(&self.client()?, self.target(to)?, SOON).await?;
        let mut versions = BTreeMap::new();
        for _ in 0..requests {
            let version = session.get("/", &[]).await?.version()?;
            *versions.entry(version).or_default() += 1;
        }
        Ok(versions)
    }

    /// Whether TCP goes through, and to whom.
    pub(crate) async fn echoes(&self, from: &str, to: &str) -> Result<()> {
        let client = self.mesh.cluster().client(from)?;
        let mut connection = client.connect(self.target(to)?, SOON).await?;
        connection.echo(b"hello").await
    }

    /// Who speaks first at a port whose server does so.
    pub(crate) async fn greeting(&self, from: &str, to: &str) -> Result<String> {
        let client = self.mesh.cluster().client(from)?;
        let mut connection = client.connect(self.target(to)?, SOON).await?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(connection.read(1).await?);
            ensure!(line.len() < 256, "no end of the greeting");
        }
        Ok(String::from_utf8(line)?)
    }

    /// What `apps/client` is told when it asks for a name. Whichever server it asks, its node proxy answers.
    pub(crate) async fn resolve(&self, name: &str) -> Result<IpAddr> {
        let resolver = self.target("outside/stranger:53")?.ip();
        let resolver = format!("@{resolver}");
        let args = ["dig", &resolver, "+short", "+tries=1", "+time=5", name, "A"];
        let client = self.mesh.cluster().pod("apps/client")?.namespace();
        let program = Program::of_machine("dig", args, client);
        let answer = output(&program, SOON).await?;
        let line = answer.lines().next().context("no answer")?;
        Ok(line.parse()?)
    }

    /// Calls these methods of the gRPC server one after the other; who answered each.
    pub(crate) async fn grpc(&self, to: &str, methods: &[&str]) -> Result<Vec<String>> {
        let target = self.target(to)?.to_string();
        let args = [&["--target", target.as_str()][..], methods].concat();
        let namespace = self.mesh.cluster().pod("apps/client")?.namespace();
        let printed = self.peers.run_script(namespace, "grpc_call.py", &args);
        Ok(printed.await?.lines().map(str::to_owned).collect())
    }
}
