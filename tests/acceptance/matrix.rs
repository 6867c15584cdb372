//! TestServices: who reaches whom, in each protocol, by each name; whether a waypoint has seen it, and whether it went in
//! a tunnel, which it does exactly when both ends can.

use anyhow::{Context, Result, ensure};
use leyline_tests::{
    echo::Description,
    eventually::eventually,
    metrics::Metrics,
    process::{Program, output},
};
use serde_json::Value;

use crate::{
    case::get,
    world::{SOON, World},
};

/// How requests get to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// Proxies of nodes alone.
    L4,
    /// A waypoint between them.
    L7,
}

/// A client, a service or pod, and what is between them.
struct Way {
    from: &'static str,
    /// By name, without the port.
    to: &'static str,
    http: u16,
    /// The same application where no protocol is declared.
    auto: Option<u16>,
    grpc: Option<u16>,
    websocket: Option<u16>,
    tcp: Option<u16>,
    layer: Layer,
    /// `connection_security_policy` of the client's node proxy, where it is captured.
    sent: Option<&'static str>,
    /// Of the server's node proxy.
    taken: Option<&'static str>,
}

const TUNNEL: Option<&str> = Some("mutual_tls");
const PLAIN: Option<&str> = Some("unknown");

const WAYS: [Way; 8] = [
    Way {
        from: "apps/client",
        to: "captured",
        http: 80,
        auto: Some(8090),
        grpc: Some(7070),
        websocket: Some(7071),
        tcp: Some(9000),
        layer: Layer::L4,
        sent: TUNNEL,
        taken: TUNNEL,
    },
    Way {
        from: "apps/client",
        to: "echo",
        http: 80,
        auto: Some(8090),
        grpc: Some(7070),
        websocket: Some(7071),
        tcp: Some(9000),
        layer: Layer::L7,
        sent: TUNNEL,
        taken: TUNNEL,
    },
    Way {
        from: "apps/client",
        to: "stranger",
        http: 80,
        auto: Some(8090),
        grpc: None,
        websocket: None,
        tcp: Some(9000),
        layer: Layer::L4,
        sent: PLAIN,
        taken: None,
    },
    // The waypoint speaks for who is not in the mesh.
    Way {
        from: "apps/client",
        to: "uncaptured",
        http: 80,
        auto: Some(8090),
        grpc: None,
        websocket: None,
        tcp: Some(9000),
        layer: Layer::L7,
        sent: TUNNEL,
        taken: None,
    },
    // A waypoint of the pod itself.
    Way {
        from: "apps/client",
        to: "apps/addressed",
        http: 8080,
        auto: None,
        grpc: None,
        websocket: None,
        tcp: None,
        layer: Layer::L7,
        sent: TUNNEL,
        taken: TUNNEL,
    },
    // An application calls the service that it is part of.
    Way {
        from: "apps/echo-v1",
        to: "echo",
        http: 80,
        auto: Some(8090),
        grpc: Some(7070),
        websocket: Some(7071),
        tcp: Some(9000),
        layer: Layer::L7,
        sent: TUNNEL,
        taken: TUNNEL,
    },
    // Nothing serves the address of a service for who is not in the mesh: pods alone.
    Way {
        from: "outside/stranger",
        to: "apps/echo-v1",
        http: 8080,
        auto: None,
        grpc: Some(7070),
        websocket: Some(7071),
        tcp: Some(9000),
        layer: Layer::L4,
        sent: None,
        taken: PLAIN,
    },
    Way {
        from: "outside/stranger",
        to: "apps/client",
        http: 8080,
        auto: None,
        grpc: None,
        websocket: None,
        tcp: None,
        layer: Layer::L4,
        sent: None,
        taken: PLAIN,
    },
];

/// Versions of HTTP, as curl is told and as applications are.
pub(crate) const PROTOCOLS: [(&str, &str); 2] = [
    ("--http1.1", "HTTP/1.1"),
    ("--http2-prior-knowledge", "HTTP/2.0"),
];

/// Every way in every protocol that its application speaks.
pub(crate) async fn services(world: &World) -> Result<()> {
    for way in &WAYS {
        let what = format!("{} to {}", way.from, way.to);
        http(world, way).await.context(what.clone())?;
        scripted(world, way).await.context(what.clone())?;
        if let Some(port) = way.tcp {
            let to = format!("{}:{port}", way.to);
            world.echoes(way.from, &to).await.context(what.clone())?;
            // Who speaks first at the port after it.
            let to = format!("{}:{}", way.to, port + 1);
            let greeting = world.greeting(way.from, &to).await.context(what.clone())?;
            ensure!(greeting.starts_with("220 "), "{what}: {greeting}");
        }
    }
    Ok(())
}

/// HTTP/1.1 and HTTP/2, by curl.
async fn http(world: &World, way: &Way) -> Result<()> {
    for port in [Some(way.http), way.auto].into_iter().flatten() {
        let target = world.target(&format!("{}:{port}", way.to))?;
        for (option, protocol) in PROTOCOLS {
            let (seen, _) = eventually("curl is answered", SOON, || async {
                curl(world, way.from, &[option, &format!("http://{target}/")]).await
            })
            .await?;
            // A waypoint speaks to the application in the protocol of the port, where a service declares one.
            let is_declared = port == way.http && !way.to.contains('/');
            let expected = match way.layer {
                Layer::L7 if is_declared => "HTTP/1.1",
                Layer::L4 | Layer::L7 => protocol,
            };
            ensure!(seen.protocol == expected, "{option} {port}: {seen:?}");
            ensure!(is_layer(&seen, way.layer), "{option} {port}: {seen:?}");
        }
    }
    Ok(())
}

/// The application's word on one request of curl's.
pub(crate) async fn curl(world: &World, from: &str, args: &[&str]) -> Result<Description> {
    let namespace = world.mesh.cluster().pod(from)?.namespace();
    let args = [&["curl", "-sS", "-f", "-m", "8"], args].concat();
    let program = Program::of_machine("curl", args, namespace);
    let printed = output(&program, SOON).await?;
    serde_json::from_str(&printed).with_context(|| printed.clone())
}

/// A waypoint gives each request an id, and nobody else does.
fn is_layer(seen: &Description, layer: Layer) -> bool {
    let has_id = seen.headers.iter().any(|(name, _)| name == "x-request-id");
    has_id == (layer == Layer::L7)
}

/// gRPC and WebSocket, by Python's libraries.
async fn scripted(world: &World, way: &Way) -> Result<()> {
    let calls = [("grpc", way.grpc), ("websocket", way.websocket)];
    let mut args = Vec::new();
    for (protocol, port) in calls {
        if let Some(port) = port {
            let target = world.target(&format!("{}:{port}", way.to))?;
            args.extend([protocol.to_owned(), target.to_string()]);
        }
    }
    if args.is_empty() {
        return Ok(());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let namespace = world.mesh.cluster().pod(way.from)?.namespace();
    let printed = world
        .peers
        .run_script(namespace, "services_client.py", &args);
    let printed = printed.await?;
    let said: Vec<Value> = printed
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let [grpc, websocket] = said.as_slice() else {
        anyhow::bail!("{printed}");
    };
    ensure!(websocket == "hello", "{websocket}");
    for call in grpc.as_array().context("no calls")? {
        let has_id = call["x-request-id"].is_string();
        ensure!(has_id == (way.layer == Layer::L7), "{call}");
    }
    Ok(())
}

/// Names lead to addresses, and whatever name of a service a request bears, it is for this service.
pub(crate) async fn names(world: &World) -> Result<()> {
    for name in [
        "echo.apps",
        "captured.apps",
        "stranger.outside",
        "uncaptured.outside",
    ] {
        let service = name.split('.').next().unwrap_or_default();
        let expected = world.target(&format!("{service}:80"))?.ip();
        let full = format!("{name}.svc.cluster.local");
        let found = world.resolve(&full).await?;
        ensure!(found == expected, "{full} is {found}");
    }
    let forms = [
        "echo",
        "echo:80",
        "echo.apps",
        "echo.apps.svc",
        "echo.apps.svc.cluster.local",
        "echo.apps.svc.cluster.local:80",
        "10.96.2.10",
        "elsewhere.example",
    ];
    let cases = forms.map(|form| {
        let case = get("echo:80", "/").with("host", form).status(200);
        case.sent("host", form).through_waypoint()
    });
    world.expect(&cases).await
}

/// Each way once more, looking at what the proxies of both nodes count.
pub(crate) async fn hbone(world: &World) -> Result<()> {
    for way in &WAYS {
        let what = format!("{} to {}", way.from, way.to);
        let before = counted(world).await?;
        let target = world.target(&format!("{}:{}", way.to, way.http))?;
        let url = format!("http://{target}/");
        curl(world, way.from, &[&url]).await.context(what.clone())?;
        eventually(&what, SOON, || async {
            let after = counted(world).await?;
            let rise = |reporter: &str, security: &str| {
                let (place, pod) = match reporter {
                    "source" => ("source_workload", way.from),
                    _ => ("destination_workload", way.to),
                };
                let name = pod.rsplit('/').next().unwrap_or_default();
                let mut labels = vec![
                    ("reporter", reporter),
                    ("connection_security_policy", security),
                ];
                // A service has several workloads.
                if pod.contains('/') {
                    labels.push((place, name));
                }
                let metric = "istio_tcp_connections_opened_total";
                let of = |all: &[Metrics]| all.iter().map(|one| one.sum(metric, &labels)).sum();
                let (before, after): (f64, f64) = (of(&before), of(&after));
                after - before
            };
            for (reporter, expected) in [("source", way.sent), ("destination", way.taken)] {
                let Some(expected) = expected else { continue };
                for security in ["mutual_tls", "unknown"] {
                    // A waypoint's connections to applications outlive requests: there may be no new one.
                    if reporter == "destination" && way.layer == Layer::L7 && security == expected {
                        continue;
                    }
                    let rise = rise(reporter, security);
                    let wanted = if security == expected { 1.0 } else { 0.0 };
                    ensure!(rise == wanted, "{reporter} {security}: {rise}");
                }
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn counted(world: &World) -> Result<[Metrics; 2]> {
    let a = world.mesh.ztunnel("node-a")?.metrics().await?;
    let b = world.mesh.ztunnel("node-b")?.metrics().await?;
    Ok([a, b])
}
