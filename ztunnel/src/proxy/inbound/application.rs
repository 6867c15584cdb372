//! The connection to the application: as the client would have made it, or in the application's own tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use leyline_hbone::server::Request;
use leyline_net::{
    connect,
    proxy_protocol::{self, Field},
};
use leyline_state::{Delivery, InboundTarget};
use leyline_telemetry::traffic::ResponseFlag;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::Tunnel;

/// Connects, unless the peer gives up first.
pub(super) async fn reach(
    tunnel: &Tunnel,
    target: &InboundTarget,
    request: &mut Request,
) -> Result<TcpStream, (ResponseFlag, String)> {
    tokio::select! {
        reached = deliver(tunnel, target) => {
            reached.map_err(|error| (ResponseFlag::Connect, error))
        }
        () = request.cancelled() => {
            Err((ResponseFlag::None, "the peer gave up before the application answered".to_owned()))
        }
    }
}

async fn deliver(tunnel: &Tunnel, target: &InboundTarget) -> Result<TcpStream, String> {
    match target.delivery {
        Delivery::Direct => {
            let pod = &tunnel.pod;
            let options = pod.application_options(tunnel.peer.ip(), target.addr.ip());
            let connected = connect(&pod.netns, target.addr, &options).await;
            connected.map_err(|error| error.to_string())
        }
        Delivery::Tunnel => Box::pin(into_tunnel(tunnel, target.addr)).await,
        Delivery::ProxyHeader(asked) => Box::pin(with_header(tunnel, target, asked)).await,
    }
}

/// The application is told of the client, or wants to know nothing of it: the connection is the proxy's own.
async fn into_tunnel(tunnel: &Tunnel, addr: SocketAddr) -> Result<TcpStream, String> {
    let pod = &tunnel.pod;
    let addr = if pod.shared.config.localhost_app_tunnel {
        SocketAddr::new(loopback_of(addr.ip()), addr.port())
    } else {
        addr
    };
    let connected = connect(&pod.netns, addr, &pod.own_options()).await;
    connected.map_err(|error| format!("application tunnel at {addr}: {error}"))
}

async fn with_header(
    tunnel: &Tunnel,
    target: &InboundTarget,
    asked: SocketAddr,
) -> Result<TcpStream, String> {
    let mut stream = into_tunnel(tunnel, target.addr).await?;
    let identity = tunnel.identity.to_string();
    let mut fields = vec![Field::SourceIdentity(&identity)];
    if let Some(service) = &target.service {
        fields.push(Field::Service(service.hostname.as_str()));
    }
    let header = proxy_protocol::header(tunnel.peer, asked, &fields);
    // It fits into the empty send buffer of a new connection.
    let deadline = tunnel.pod.shared.config.connect_deadline;
    match timeout(deadline, stream.write_all(&header)).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(format!("application tunnel: {error}")),
        Err(_elapsed) => Err(format!("application tunnel takes no data for {deadline:?}")),
    }
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
