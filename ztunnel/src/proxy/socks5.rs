//! SOCKS5 for the applications of a pod (port 15080 of its loopback addresses, facts A11): off unless
//! `UNSTABLE_ENABLE_SOCKS5` is set.
//!
//! A request becomes an outbound connection like a captured one, with the pod's identity, policies, log and metrics, and is
//! answered when the other end has taken it. Names are those that the pod's own DNS proxy knows.
//!
//! Invariant: what a captured connection cannot ask for, which is loopback, cannot be asked for here either.

mod wire;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use leyline_net::Accepted;
use leyline_telemetry::traffic::{Direction, Refusal, early_failure};
use leyline_types::{OrigDst, PeerAddr};
use tokio::{net::TcpStream, time::timeout};

pub(super) use self::wire::Reply;
use self::wire::Target;
use super::{Pod, client::Client, dns::DnsProxy, limits::Place, outbound};

/// How long a name may take: as long as resolver libraries wait before they ask again.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// Why a request is refused before it is routed.
struct Refused {
    refusal: Refusal,
    error: String,
    /// None where the client would not understand it, or is gone.
    reply: Option<Reply>,
}

/// One connection, from accept to end. `names` is the DNS proxy of the pod, where it has one.
pub(super) async fn handle(
    pod: Arc<Pod>,
    accepted: Accepted,
    place: Place,
    names: Option<Arc<DnsProxy>>,
) {
    let counted = outbound::Counted::new(place);
    let Accepted { mut stream, peer } = accepted;
    match Box::pin(requested(&pod, &mut stream, names.as_deref())).await {
        Ok(target) => outbound::carry(pod, Client::by_socks5(stream), peer, target, counted).await,
        Err(refused) => Box::pin(refuse(stream, peer, refused)).await,
    }
}

/// Reads the request and finds the address that it is about.
async fn requested(
    pod: &Pod,
    stream: &mut TcpStream,
    names: Option<&DnsProxy>,
) -> Result<OrigDst, Refused> {
    let deadline = pod.shared.config.handshake_deadline;
    let target = match timeout(deadline, wire::negotiate(stream)).await {
        Ok(Ok(target)) => target,
        Ok(Err(malformed)) => {
            return Err(Refused {
                refusal: Refusal::Socks5,
                reply: malformed.reply(),
                error: malformed.to_string(),
            });
        }
        Err(_elapsed) => {
            return Err(Refused {
                refusal: Refusal::Socks5,
                error: format!("no request within {deadline:?}"),
                reply: None,
            });
        }
    };
    let addr = match target {
        Target::Address(addr) => addr,
        Target::Host(host, port) => SocketAddr::new(resolve(names, &host).await?, port),
    };
    let ip = addr.ip();
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(Refused {
            refusal: Refusal::SelfCall,
            error: format!("{addr} is in the pod itself or nowhere"),
            reply: Some(Reply::NotAllowed),
        });
    }
    Ok(OrigDst::new(addr))
}

/// IPv4 before IPv6: a client that has both asks for one of them by itself.
async fn resolve(names: Option<&DnsProxy>, host: &str) -> Result<IpAddr, Refused> {
    let refused = |error: String, reply| Refused {
        refusal: Refusal::UnknownHost,
        error,
        reply: Some(reply),
    };
    let Some(names) = names else {
        let error = format!("{host}: names need the DNS proxy, and the pod has none");
        return Err(refused(error, Reply::AddressTypeNotSupported));
    };
    let found = timeout(RESOLVE_DEADLINE, names.address_of(host)).await;
    found
        .ok()
        .flatten()
        .ok_or_else(|| refused(format!("{host} has no address"), Reply::HostUnreachable))
}

async fn refuse(stream: TcpStream, peer: PeerAddr, refused: Refused) {
    let Refused {
        refusal,
        error,
        reply,
    } = refused;
    let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    early_failure(Direction::Outbound, peer.addr(), unknown, refusal, error);
    if let Some(reply) = reply {
        Client::by_socks5(stream).turn_away(reply).await;
    }
}
