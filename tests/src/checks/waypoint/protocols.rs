//! gRPC and WebSocket, between programs that share no code with us.

use anyhow::{Context, Result, ensure};

use super::{FRONTEND, service};
use crate::{mesh::Mesh, peers::Peers};

/// Of the service and of the script in its pod.
const GRPC: u16 = 7070;
const WEBSOCKET: u16 = 7071;
const SERVERS: [&str; 2] = ["bookstore/reviews-v1", "bookstore/reviews-v2"];

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    let peers = Peers::install_with(mesh.peers_dir(), Peers::L7)
        .await
        .context("installing gRPC and WebSocket for Python")?;
    let cluster = mesh.cluster();
    let (grpc, websocket) = (GRPC.to_string(), WEBSOCKET.to_string());
    let mut servers = Vec::new();
    for name in SERVERS {
        let args = ["--name", name, "--grpc", &grpc, "--websocket", &websocket];
        let namespace = cluster.pod(name)?.namespace();
        let server = peers
            .start_script(cluster.run(), namespace, "l7_server.py", &args)
            .await?;
        servers.push(server);
    }
    let vip = service(mesh, "reviews")?.ip().to_string();
    let args = ["--host", &vip, "--grpc", &grpc, "--websocket", &websocket];
    let namespace = cluster.pod(FRONTEND)?.namespace();
    let printed = peers.run_script(namespace, "l7_client.py", &args).await;
    for mut server in servers {
        server.kill().await?;
    }
    let printed = printed?;
    let seen = printed.trim();
    ensure!(seen.starts_with("ok: "), "the client says `{seen}`");
    Ok(seen["ok: ".len()..].to_owned())
}
