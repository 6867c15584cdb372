//! Port 15008: tunnels of node proxies, and each connection in them to the chain that serves it.

use std::{net::SocketAddr, sync::Arc};

use http::StatusCode;
use leyline_hbone::{
    HboneConfig,
    server::{self, BadRequest, Request},
    sources::{Kind, Sources, TunnelPlace},
};
use leyline_net::{Accepted, pace};
use leyline_runtime::spawn;
use leyline_tls::TlsError;
use leyline_types::{HboneAuthority, Identity, Str};
use metrics::counter;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Duration, Instant, sleep, timeout, timeout_at},
};
use tracing::{Span, debug, info, warn};

use crate::{
    app::Shared,
    config::{Config, destinations::Leaf, header_case::HeaderCase, listener::Chain},
    http::{
        life::{LifeLimits, spread},
        request_log::SeriesCache,
        server::{Destination, HttpConnection, serve},
    },
    sniff::{Protocol, sniff},
    tcp,
};

/// Tunnels at once; more wait in the listen queue. Each costs a descriptor and its buffers.
const MAX_TUNNELS: usize = 16_384;

/// How long a destination that is not known is waited for.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Who is at the other end of a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The client pod's address: its node proxy connects from it.
    pub(crate) addr: SocketAddr,
    pub(crate) identity: Identity,
    /// The same as text, which policies look at.
    pub(crate) principal: Arc<str>,
}

/// Accepts until drain.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_TUNNELS));
    let limits = &shared.settings.proxy;
    let sources = Sources::new(limits.max_handshakes, limits.per_source);
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            leyline_net::accept(&listener)
                .await
                .map(|accepted| (accepted, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = shared.drain.started() => return,
        };
        match accepted {
            Ok((accepted, place)) => {
                let tunnel = Box::pin(handle_tunnel(shared.clone(), sources.clone(), accepted));
                let tunnel = async move {
                    tunnel.await;
                    drop(place);
                };
                drop(spawn("tunnel", Span::none(), &shared.drain, tunnel));
            }
            Err(error) => return warn!(%error, "the listener is of no use any more"),
        }
    }
}

async fn handle_tunnel(shared: Arc<Shared>, sources: Arc<Sources>, accepted: Accepted) {
    let Accepted { stream, peer } = accepted;
    let peer = peer.addr();
    let Some(place) = sources.enter(peer.ip(), Kind::Other) else {
        counter!("leyline_waypoint_refused_total", "reason" => "tunnels_of_source").increment(1);
        return info!(%peer, "tunnel refused: this client has too many");
    };
    let (stream, identity) = match Box::pin(establish(&shared, &place, stream)).await {
        Ok(established) => established,
        Err(error) => {
            counter!("leyline_waypoint_refused_total", "reason" => "tls").increment(1);
            return warn!(%peer, error, "tunnel refused");
        }
    };
    let client = Client {
        addr: peer,
        principal: identity.to_string().into(),
        identity,
    };
    debug!(%peer, identity = %client.identity, "tunnel accepted");
    pace::settle(stream.socket(), &shared.netns);
    let handler = {
        let (shared, client) = (shared.clone(), client.clone());
        move |request| handle_stream(shared.clone(), client.clone(), request)
    };
    let bad = |reason: BadRequest| {
        counter!("leyline_waypoint_refused_total", "reason" => reason.reason()).increment(1);
        info!(%peer, reason = reason.reason(), "request in a tunnel refused");
    };
    let settings = &shared.settings.proxy;
    let window = place.window(&client.identity);
    let hbone = HboneConfig {
        connection_window: window.size(),
        ..settings.hbone.clone()
    };
    // An old tunnel is told to go; its streams are carried to their end.
    let drain = shared.drain.child();
    let leaving = Box::pin(stream.leaving().asked());
    let served = server::serve_until(stream, &hbone, &drain, leaving, handler, bad);
    let served = Box::pin(served);
    let aged = async {
        match settings.max_connection_age {
            Some(age) => sleep(spread(age)).await,
            None => std::future::pending().await,
        }
        counter!("leyline_waypoint_connections_ended_total", "reason" => "tunnel_age").increment(1);
        drain.start();
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = served => result,
        () = aged => return,
        // The tunnel is dropped, so that what it carries breaks.
        () = withdrawn(&shared, &client) => return,
    };
    if let Err(error) = result {
        debug!(%peer, %error, "tunnel broke");
    }
}

async fn establish(
    shared: &Shared,
    place: &TunnelPlace,
    stream: TcpStream,
) -> Result<(leyline_tls::ServerTls, Identity), String> {
    let certificate = shared.certificates.get(&shared.settings.identity).await;
    let certificate = certificate.map_err(|error| error.to_string())?;
    let deadline = shared.settings.proxy.handshake_deadline;
    let aliases = shared.config.load_full().trust_domains.clone();
    // The wait for a turn counts.
    let accepted = timeout(deadline, async {
        let _turn = place.turn().await;
        leyline_tls::accept(&certificate, stream, &aliases, deadline).await
    });
    let accepted = accepted.await.unwrap_or(Err(TlsError::Deadline(deadline)));
    accepted.map_err(|error| error.to_string())
}

/// Resolves when the client's trust domain is none of the mesh any more, which is told then; never for a client of our
/// own. Cancel safe.
async fn withdrawn(shared: &Shared, client: &Client) {
    let of_client = client.identity.trust_domain();
    if of_client == shared.settings.identity.trust_domain() {
        return std::future::pending().await;
    }
    loop {
        // Before the look, so that no change is missed.
        let changed = shared.config.changed();
        if !shared.config.load().trust_domains.contains(of_client) {
            break;
        }
        changed.await;
    }
    counter!("leyline_waypoint_refused_total", "reason" => "trust_domain").increment(1);
    let (peer, identity) = (client.addr, &client.identity);
    info!(%peer, %identity, "tunnel cut: its trust domain is no alias of ours any more");
}

/// One CONNECT: which chain, then 200, then what is inside.
async fn handle_stream(shared: Arc<Shared>, client: Client, request: Request) {
    let authority = request.authority().clone();
    let config = arrived(&shared, &authority).await;
    let refuse = |request: Request, status: StatusCode, reason: &'static str, why: &str| {
        counter!("leyline_waypoint_refused_total", "reason" => reason).increment(1);
        info!(
            target: "access", downstream_local_address = %authority, downstream_remote_address = %client.addr,
            response_flags = "NR", response_code = status.as_u16(), error = why, "connection refused"
        );
        request.refuse(status);
    };
    let Some(leaf) = config.destination(&authority) else {
        let why = "this waypoint does not serve the destination";
        return refuse(request, StatusCode::NOT_FOUND, "unknown_destination", why);
    };
    if let Leaf::Refused(why) = leaf {
        return refuse(request, StatusCode::SERVICE_UNAVAILABLE, "unsupported", why);
    }
    let baggage = Some(shared.baggage.as_str());
    let mut io = match request.accept(baggage) {
        Ok(stream) => stream.into_io(),
        Err(error) => return debug!(%error, "the client gave up"),
    };
    let chain = match leaf {
        Leaf::Chain(name) => Some(name.clone()),
        Leaf::Sniff { http, other } => {
            match sniff(&mut io, shared.settings.proxy.sniff_deadline).await {
                Ok(Protocol::Http) => Some(http.clone()),
                Ok(Protocol::Other) => other.clone(),
                Err(error) => return debug!(%error, "the client broke off"),
            }
        }
        Leaf::Refused(_) => None,
    };
    let Some(chain) = chain else {
        counter!("leyline_waypoint_refused_total", "reason" => "protocol").increment(1);
        return io.abort();
    };
    dispatch(shared, client, authority, chain, io).await;
}

/// The configuration that serves this destination. A node proxy may be told of this waypoint before this waypoint is told of the
/// service: it waits a moment for that.
async fn arrived(shared: &Shared, authority: &HboneAuthority) -> Arc<Config> {
    let serving = || {
        let serves = |config: &Config| config.destination(authority).is_some();
        let config = shared.config.serving(serves);
        let is_served = serves(&config);
        (config, is_served)
    };
    let deadline = Instant::now() + ARRIVAL;
    loop {
        // Before the look, so that no change is missed.
        let changed = shared.config.changed();
        let (config, is_served) = serving();
        if is_served || timeout_at(deadline, changed).await.is_err() {
            return config;
        }
    }
}

async fn dispatch(
    shared: Arc<Shared>,
    client: Client,
    authority: HboneAuthority,
    name: Str,
    mut io: leyline_hbone::HboneIo,
) {
    let serves = |config: &Config| config.chain(name.as_str()).is_some();
    let config = shared.config.serving(serves);
    let destination = Destination(authority);
    let chain = config.chain(name.as_str());
    match chain.map(|chain| (&**chain, chain)) {
        Some((Chain::Tcp(tcp), chain)) => {
            let (known, ends) = ((&*config, &name), (tcp, chain));
            let carried = tcp::carry(&shared, known, ends, &client, &destination, io);
            Box::pin(carried).await;
        }
        // HTTP is told why in its own way, with 503, even where the chain cannot be served.
        Some((Chain::Http(_), _)) => http(shared.clone(), name, client, destination, io).await,
        Some((Chain::Refused(_), _))
            if name.as_str().contains("|http") || name == "direct-http" =>
        {
            http(shared.clone(), name, client, destination, io).await;
        }
        Some((Chain::Refused(reason), _)) => {
            counter!("leyline_waypoint_refused_total", "reason" => "unsupported").increment(1);
            info!(chain = %name, %reason, downstream_remote_address = %client.addr, "connection refused");
            io.abort();
        }
        None => {
            counter!("leyline_waypoint_refused_total", "reason" => "no_chain").increment(1);
            info!(chain = %name, "connection refused: the chain is not there");
            io.abort();
        }
    }
}

async fn http(
    shared: Arc<Shared>,
    chain: Str,
    client: Client,
    destination: Destination,
    io: leyline_hbone::HboneIo,
) {
    let settings = &shared.settings.proxy;
    let config = shared
        .config
        .serving(|config| config.chain(chain.as_str()).is_some());
    let (idle, header_case) = match config.chain(chain.as_str()).map(|chain| &**chain) {
        Some(Chain::Http(chain)) => (chain.idle, chain.header_case),
        Some(Chain::Tcp(_) | Chain::Refused(_)) | None => (None, HeaderCase::default()),
    };
    let limits = LifeLimits {
        age: settings.max_connection_age,
        idle: idle.or(settings.idle),
    };
    let conn = HttpConnection {
        life: Arc::default(),
        shared,
        chain,
        client,
        destination,
        header_case,
        series: SeriesCache::default(),
    };
    Box::pin(serve(conn, limits, io)).await;
}
