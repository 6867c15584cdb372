//! Connections whose clients say in TLS which host they are for: Envoy's `sni_dynamic_forward_proxy`. Bytes are passed on as
//! they are.

use bytes::Bytes;
use leyline_hbone::HboneIo;
use leyline_tls::Hello;
use tokio::{io::AsyncReadExt, time::timeout};

use super::Failure;
use crate::{
    app::Shared,
    config::{
        cluster::{Cluster, EndpointSource},
        tcp::TcpChain,
    },
    http::reply::Flag,
    upstream::dynamic::Host,
};

/// Bytes of a ClientHello: one TLS record, which is more than any client sends.
const MAX_HELLO: usize = 16 << 10;

/// The server that the client asks for, where the chain wants to know. What was read of it is put back.
pub(super) async fn asked(
    shared: &Shared,
    chain: &TcpChain,
    io: &mut HboneIo,
) -> Result<Option<String>, Failure> {
    if chain.port_by_name.is_none() {
        return Ok(None);
    }
    let mut seen = Vec::with_capacity(1024);
    let read = async {
        loop {
            match Hello::read(&seen) {
                Hello::Asks(server) => return Ok(server),
                Hello::Incomplete if seen.len() < MAX_HELLO => {}
                Hello::Incomplete | Hello::Invalid => {
                    return Err("what the client says is not TLS");
                }
            }
            match io.read_buf(&mut seen).await {
                Ok(0) | Err(_) => return Err("the client broke off"),
                Ok(_) => {}
            }
        }
    };
    let read = timeout(shared.settings.proxy.sniff_deadline, read).await;
    io.unread(Bytes::from(seen));
    let no_route = |reason: &str| (Flag::NoRoute, reason.to_owned());
    match read {
        Ok(Ok(Some(server))) => Ok(Some(server)),
        Ok(Ok(None)) => Err(no_route("the client names no server in TLS")),
        Ok(Err(reason)) => Err(no_route(reason)),
        Err(_elapsed) => Err(no_route("the client does not say which server it wants")),
    }
}

/// The host that was asked for, where the cluster is of such hosts.
pub(super) async fn host(
    shared: &Shared,
    cluster: &Cluster,
    chain: &TcpChain,
    server: Option<String>,
) -> Result<Option<Host>, Failure> {
    let EndpointSource::Request(source) = &cluster.endpoints else {
        return Ok(None);
    };
    let asked = server.zip(chain.port_by_name);
    let named = asked.and_then(|(server, port)| source.named(&server, port));
    let named = named.ok_or_else(|| {
        let reason = "the server that the client names is none of the service's";
        (Flag::NoRoute, reason.to_owned())
    })?;
    let found = Host::find(shared, source, named).await;
    found
        .map(Some)
        .map_err(|failure| (Flag::DnsFailure, failure.to_string()))
}
