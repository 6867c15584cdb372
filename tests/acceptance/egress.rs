//! Rows of `tests/integration/ambient` about a waypoint that lets connections out of the mesh to hosts that it finds itself.

use std::{ffi::OsString, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    certificates::{Authority, Credential},
    eventually::eventually,
    process::{Process, Program, output},
    session::{Answer, Session},
};

use crate::world::{SOON, World};

/// Under the domain of the wildcard: `other` proves another name.
const EXTERNAL: &str = "external.wild.example";
const OTHER: &str = "other.wild.example";

fn documents(root: &Path) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: external-wildcard, namespace: apps, labels: {{istio.io/use-waypoint: waypoint}}}}
spec:
  hosts: ['*.wild.example']
  ports:
  - {{name: http, number: 80, protocol: HTTP, targetPort: 8080}}
  - {{name: http-for-tls, number: 8080, protocol: HTTP, targetPort: 8443}}
  - {{name: tls, number: 443, protocol: TLS, targetPort: 8443}}
  location: MESH_EXTERNAL
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: wildcard-tls-origination, namespace: apps}}
spec:
  host: '*.wild.example'
  trafficPolicy:
    portLevelSettings:
    - {{port: {{number: 8080}}, tls: {{mode: SIMPLE, caCertificates: {}}}}}
",
        root.display()
    )
}

/// What the world outside of the mesh has: names, and a server that speaks TLS.
struct Outside {
    names: Process,
    server: Process,
}

impl Outside {
    async fn start(world: &World, credential: &Credential, root: &Path) -> Result<Self> {
        let cluster = world.mesh.cluster();
        let (run, pod) = (cluster.run(), cluster.pod("outside/stranger")?);
        let address = pod.addresses().v4;
        fs::write(
            run.state_dir().join("resolv.conf"),
            format!("nameserver {address}\n"),
        )?;
        let record = |name| format!("--host-record={name},{address}");
        let options = [
            "--local=/example/".to_owned(),
            record(EXTERNAL),
            record(OTHER),
        ];
        let program = Program::dnsmasq(pod.namespace(), options);
        let names = Process::start(run, &program)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/tls_server.py");
        let command: [OsString; 6] = [
            "python3".into(),
            script.into(),
            "8443".into(),
            credential.certificate.clone().into(),
            credential.key.clone().into(),
            root.into(),
        ];
        let program = Program::of_machine("tls-server", command, pod.namespace());
        let mut server = Process::start(run, &program)?;
        server.wait_for_line("ready", SOON).await?;
        Ok(Self { names, server })
    }

    async fn stop(mut self) -> Result<()> {
        self.names.kill().await?;
        self.server.kill().await
    }
}

/// A request for `host` on a connection to wherever the client was told that `dialled` is.
async fn ask(world: &World, (dialled, port): (&str, u16), host: &str) -> Result<Answer> {
    let target = SocketAddr::new(world.resolve(dialled).await?, port);
    let mut session = Session::open(&world.client()?, target, SOON).await?;
    session.get("/", &[("host", host)]).await
}

async fn is_external(world: &World, dialled: &str, host: &str) -> Result<()> {
    let answer = ask(world, (dialled, 80), host).await?;
    ensure!(answer.status == 200, "{}", answer.status);
    ensure!(answer.version()? == "outside");
    let seen = answer.description()?.headers;
    ensure!(
        seen.iter().any(|(name, _)| name == "x-request-id"),
        "{seen:?}"
    );
    Ok(())
}

/// Hosts under a domain, found when they are asked for.
pub(crate) async fn waypoint_as_egress_gateway_for_wildcard_entries(world: &World) -> Result<()> {
    let run = world.mesh.cluster().run();
    let root = run.state_dir().join("root-cert.pem");
    let authority = Authority::of_mesh(&run.state_dir())?;
    let credential = authority.issue_to_host(&run.secrets_dir(), "external", EXTERNAL)?;
    let outside = Outside::start(world, &credential, &root).await?;
    world.apply(&documents(&root))?;
    eventually("the host is found", SOON, || {
        is_external(world, EXTERNAL, EXTERNAL)
    })
    .await?;
    is_external(world, EXTERNAL, &format!("{EXTERNAL}:80")).await?;
    // The host of the request counts, and not the one that was looked up before.
    is_external(world, "no-such.wild.example", EXTERNAL).await?;
    for (host, expected) in [
        ("external.elsewhere.example", 404),
        ("wild.example", 404),
        ("no-such.wild.example", 503),
    ] {
        let answer = ask(world, (EXTERNAL, 80), host).await?;
        ensure!(answer.status == expected, "{host}: {}", answer.status);
    }

    // TLS is originated for the host of each request, which must prove its name.
    let answer = ask(world, (EXTERNAL, 8080), &format!("{EXTERNAL}:8080")).await?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 200, "{} {body}", answer.status);
    let sni = format!(r#""sni": "{EXTERNAL}""#);
    ensure!(
        body.contains(&sni) && body.contains(r#""alpn": "http/1.1""#),
        "{body}"
    );
    let answer = ask(world, (EXTERNAL, 8080), OTHER).await?;
    ensure!(answer.status == 503, "{}", answer.status);

    passed_through(world, &root).await?;
    let unsupported = world.mesh.waypoint("apps/waypoint")?.admin("/unsupported");
    let unsupported = unsupported.await?;
    ensure!(unsupported == serde_json::json!({}), "{unsupported}");
    outside.stop().await
}

/// The client's own TLS says where it goes.
async fn passed_through(world: &World, root: &Path) -> Result<()> {
    let address = world.resolve(EXTERNAL).await?;
    let client = world.mesh.cluster().pod("apps/client")?.namespace();
    let call = async |host: &str| {
        let resolve = format!("{host}:443:{address}");
        let url = format!("https://{host}/");
        let root = root.display().to_string();
        let args = [
            "curl",
            "-sS",
            "-m",
            "5",
            "--cacert",
            &root,
            "--resolve",
            &resolve,
            &url,
        ];
        output(&Program::of_machine("curl", args, client), SOON).await
    };
    let body = call(EXTERNAL).await.context("TLS passed through")?;
    let sni = format!(r#""sni": "{EXTERNAL}""#);
    ensure!(body.contains(&sni), "{body}");
    let elsewhere = call("external.elsewhere.example").await;
    ensure!(elsewhere.is_err(), "{elsewhere:?}");
    Ok(())
}
