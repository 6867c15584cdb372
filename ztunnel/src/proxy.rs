//! The data plane of a node: what each pod's listeners accept, and what becomes of it.
//!
//! `outbound`, `inbound` and `plaintext` are the three ways in; each has one `handle` that lists its steps. They share
//! what is here: the node's state, and the pod's own listeners, tunnels and connections.

mod client;
pub(crate) mod connections;
mod dns;
pub(crate) mod endpoints;
mod forward;
mod guests;
mod hostnames;
mod idle;
mod inbound;
mod labels;
mod limits;
pub(crate) mod listeners;
mod local;
pub(crate) mod on_demand;
mod outbound;
mod plaintext;
mod record;
mod socks5;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use leyline_authz::PolicySet;
use leyline_capture::PodCapture;
use leyline_hbone::{HboneStream, Pool, sources::Sources};
use leyline_net::{Accepted, ConnectOptions, NetNs, Redirection, Source, accept};
use leyline_runtime::{Drain, spawn};
use leyline_state::{OutboundRoute, Snapshot, Store, Workload};
use leyline_telemetry::{
    dns::dns_listen_failed,
    mesh::socks5_listen_failed,
    traffic::{Direction, Refusal, early_failure},
};
use leyline_tls::CertificateStore;
use leyline_types::{Identity, NamespacedName, WorkloadName, WorkloadUid};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::{Span, error, warn};

use self::{
    connections::Connections,
    dns::DnsProxy,
    endpoints::EndpointTable,
    labels::LabelCache,
    limits::{Place, Places},
    listeners::TcpListeners,
    local::{LocalPods, OwnAddresses},
    on_demand::OnDemand,
};
pub(crate) use self::{
    dns::DnsConfig,
    idle::IdleLimits,
    listeners::{Extent, Listeners},
};
use crate::config::{ProxyConfig, SourceAddress};

/// What all pods of the node share.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) store: Arc<Store>,
    /// Counts the changes of `store`, for those who wait for one.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) certificates: Arc<CertificateStore>,
    pub(crate) labels: LabelCache,
    /// For connections that stay inside the process.
    local_pods: LocalPods,
    pub(crate) endpoints: Arc<EndpointTable>,
    /// Where the control plane is asked about each destination.
    pub(crate) on_demand: Option<Arc<OnDemand>>,
}

impl Shared {
    pub(crate) fn new(
        config: ProxyConfig,
        store: Arc<Store>,
        certificates: Arc<CertificateStore>,
    ) -> Self {
        let labels = LabelCache::default();
        let on_demand = config.on_demand.then(Arc::default);
        Self {
            on_demand,
            config,
            store,
            changed: watch::Sender::new(0),
            certificates,
            labels,
            local_pods: LocalPods::default(),
            endpoints: Arc::default(),
        }
    }

    /// The workload of a pod of this node, if xDS has told of it.
    pub(crate) fn workload_now(&self, name: &WorkloadName) -> Option<Arc<Workload>> {
        self.store.snapshot().local_workload(name).cloned()
    }

    /// What `decide` comes to on the present snapshot or, while the control plane has not told everything once or the
    /// destination is about to be captured, on a later one within the deadline; the last answer is given back with the snapshot that it was made on.
    async fn decide(
        &self,
        mut snapshot: Arc<Snapshot>,
        decide: impl Fn(&Snapshot) -> OutboundRoute,
    ) -> (Arc<Snapshot>, OutboundRoute) {
        let unknown = |route: &OutboundRoute| matches!(route, OutboundRoute::Refused(why) if why.is_passing());
        let mut route = decide(&snapshot);
        if !unknown(&route) {
            return (snapshot, route);
        }
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + self.config.workload_deadline;
        loop {
            // Subscribed before it is read, so that no change is missed.
            snapshot = self.store.snapshot();
            route = decide(&snapshot);
            if !unknown(&route) {
                return (snapshot, route);
            }
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return (snapshot, route),
            }
        }
    }

    /// The policies for connections to a pod of this node; unknown workload, unknown policies: nothing is allowed.
    pub(crate) fn policies_of(&self, snapshot: &Snapshot, name: &WorkloadName) -> PolicySet {
        match snapshot.local_workload(name) {
            Some(workload) => snapshot.policies_for(workload),
            None => PolicySet {
                policies: Vec::new(),
                missing: vec![NamespacedName {
                    namespace: name.namespace.clone(),
                    name: name.name.clone(),
                }],
            },
        }
    }

    /// As [`Self::workload_now`], waiting for xDS within the deadline (OUT-1), with the snapshot that knows it.
    async fn workload(&self, name: &WorkloadName) -> Option<(Arc<Snapshot>, Arc<Workload>)> {
        let known = || {
            let snapshot = self.store.snapshot();
            let workload = snapshot.local_workload(name)?.clone();
            Some((snapshot, workload))
        };
        if let Some(found) = known() {
            return Some(found);
        }
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(found) = known() {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(self.config.workload_deadline, wait)
            .await
            .ok()
            .flatten()
    }
}

/// One pod: its namespace, its tunnels to other pods, and its connections.
pub(crate) struct Pod {
    pub(crate) uid: WorkloadUid,
    pub(crate) name: WorkloadName,
    pub(crate) netns: NetNs,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) connections: Arc<Connections>,
    /// For its counters. None where istio-cni's rules capture.
    pub(crate) capture: Option<Arc<PodCapture>>,
    pub(crate) drain: Drain,
    outbound_places: Arc<Places>,
    /// Tunnels, their streams, and plaintext connections.
    inbound_places: Arc<Places>,
    sources: Arc<Sources>,
    own_addresses: OwnAddresses,
    source_address: SourceAddress,
    /// Who it is, where not xDS says so.
    identity: OnceLock<Identity>,
    /// New connections go direct; what is carried goes on.
    draining: AtomicBool,
    /// On kernels where capture must be told of connections to the application.
    announce: Option<Announcer>,
}

/// Tells capture of a connection to the application; see [`leyline_net::Announce`].
type Announcer = Box<dyn Fn(SocketAddr, SocketAddr) -> io::Result<Box<dyn Send>> + Send + Sync>;

fn announcer(capture: Arc<PodCapture>) -> Announcer {
    Box::new(move |client, application| {
        let announced = PodCapture::announce(&capture, client, application);
        Ok(Box::new(announced.map_err(io::Error::other)?))
    })
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Pod {
    pub(crate) fn new(
        uid: WorkloadUid,
        name: WorkloadName,
        netns: NetNs,
        capture: Option<Arc<PodCapture>>,
        source_address: SourceAddress,
        shared: Arc<Shared>,
        drain: Drain,
    ) -> Arc<Self> {
        let announce = capture
            .as_ref()
            .filter(|capture| capture.needs_announcements())
            .map(|capture| announcer(Arc::clone(capture)));
        Arc::new(Self {
            announce,
            source_address,
            identity: OnceLock::new(),
            capture,
            draining: AtomicBool::new(false),
            uid,
            name,
            netns,
            pool: Pool::new(shared.config.hbone.clone(), drain.clone()),
            connections: Connections::new(shared.config.decisions),
            outbound_places: Places::new(shared.config.max_connections),
            inbound_places: Places::new(shared.config.max_connections),
            sources: Sources::new(shared.config.max_handshakes, shared.config.source_limits()),
            own_addresses: OwnAddresses::default(),
            drain,
            shared,
        })
    }

    /// Notes that the pod is no longer enrolled.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.drain.is_started()
    }

    /// Starts to accept; ends with the pod's drain.
    pub(crate) fn serve(self: &Arc<Self>, listeners: Listeners) {
        let Listeners {
            mut tcp,
            dns,
            socks5,
        } = listeners;
        let guests = tcp.as_mut().and_then(|tcp| tcp.guests.take());
        if let Some(tcp) = tcp {
            self.serve_tcp(tcp);
        }
        // What is not captured does not stop what is.
        let names = match dns.transpose() {
            Ok(dns) => dns.map(|dns| dns.serve(self)),
            Err(error) => {
                dns_listen_failed();
                warn!(pod = %self.name, %error, "port 15053 cannot be opened in the pod; its DNS is not captured");
                None
            }
        };
        if let Some(guests) = guests {
            self.serve_guests(guests, names.as_ref());
        }
        match socks5.transpose() {
            Ok(listeners) => self.serve_socks5(listeners.unwrap_or_default(), names.as_ref()),
            Err(error) => {
                socks5_listen_failed();
                warn!(pod = %self.name, %error, "port 15080 cannot be opened in the pod; it has no SOCKS5");
            }
        }
    }

    fn serve_guests(self: &Arc<Self>, listener: TcpListener, names: Option<&Arc<DnsProxy>>) {
        // A listener that does not know its port is broken, and accept tells.
        let port = listener.local_addr().map_or(0, |local| local.port());
        let names = names.cloned();
        let handle =
            move |pod, accepted, place| guests::handle(pod, accepted, place, port, names.clone());
        self.serve_one("guests", Direction::Outbound, listener, handle);
    }

    fn serve_socks5(self: &Arc<Self>, listeners: Vec<TcpListener>, names: Option<&Arc<DnsProxy>>) {
        for listener in listeners {
            let names = names.cloned();
            let handle =
                move |pod, accepted, place| socks5::handle(pod, accepted, place, names.clone());
            self.serve_one("socks5", Direction::Outbound, listener, handle);
        }
    }

    fn serve_tcp(self: &Arc<Self>, listeners: TcpListeners) {
        let TcpListeners {
            outbound,
            inbound,
            hbone,
            guests: _served_with_dns,
        } = listeners;
        self.shared.local_pods.enter(self);
        self.serve_one("outbound", Direction::Outbound, outbound, outbound::handle);
        self.serve_one(
            "inbound plaintext",
            Direction::Inbound,
            inbound,
            plaintext::handle,
        );
        self.serve_one(
            "inbound",
            Direction::Inbound,
            hbone,
            inbound::handle_connection,
        );
    }

    /// As [`Self::serve`], with tunnels alone; `identity` is who it is, where not xDS is to say so.
    pub(crate) fn serve_own(self: &Arc<Self>, hbone: TcpListener, identity: Option<Identity>) {
        if let Some(identity) = identity {
            // Set once: this is called once.
            self.identity.set(identity).ok();
        }
        let handle = inbound::handle_connection;
        self.serve_one("own inbound", Direction::Inbound, hbone, handle);
    }

    fn serve_one<F>(
        self: &Arc<Self>,
        name: &'static str,
        direction: Direction,
        listener: TcpListener,
        handle: impl Fn(Arc<Self>, Accepted, Place) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let pod = self.clone();
        let places = match direction {
            Direction::Outbound => self.outbound_places.clone(),
            Direction::Inbound => self.inbound_places.clone(),
        };
        spawn(name, Span::none(), &self.drain, async move {
            let drain = pod.drain.clone();
            let mut draining = std::pin::pin!(drain.started());
            loop {
                let accepted = tokio::select! {
                    biased;
                    // First: what the kernel has accepted before the drain would be reset with the listener.
                    accepted = accept(&listener) => accepted,
                    () = &mut draining => return,
                };
                match accepted.map(|accepted| (accepted, places.take())) {
                    Ok((accepted, Some(place))) => {
                        // Not within another future: that would hold it twice, as what it is given and as what it awaits.
                        let connection = handle(pod.clone(), accepted, place);
                        spawn(name, Span::none(), &pod.drain, connection);
                    }
                    Ok((accepted, None)) => refuse_excess(&pod, direction, accepted),
                    Err(error) => {
                        error!(pod = %pod.name, listener = name, %error, "listener is broken; it accepts no more");
                        return;
                    }
                }
            }
        });
    }

    /// The policies for connections to this pod, as of now.
    pub(crate) fn policies(&self) -> PolicySet {
        self.shared
            .policies_of(&self.shared.store.snapshot(), &self.name)
    }

    /// What a connection that begins now may read at once.
    fn read_share(&self) -> usize {
        forward::read_share(self.connections.count())
    }

    /// To be told of a tunnelled connection that begins now.
    fn limit_send(&self, stream: &mut HboneStream) {
        let send_buffer = self.shared.config.hbone.send_buffer;
        forward::limit_send(stream, self.connections.count(), send_buffer);
    }

    /// Towards other nodes and pods, by the pod's own routes.
    fn upstream_options(&self) -> ConnectOptions<'_> {
        let config = &self.shared.config;
        ConnectOptions {
            mark: Some(config.bypass_mark),
            source: Source::Routed,
            deadline: config.connect_deadline,
            keepalive: config.keepalive,
            announce: None,
        }
    }

    /// Towards another proxy.
    fn tunnel_options(&self) -> ConnectOptions<'_> {
        ConnectOptions {
            source: Source::tunnel(self.shared.config.pace_tunnels),
            ..self.upstream_options()
        }
    }

    /// Towards the pod's own application, as the pod itself.
    fn own_options(&self) -> ConnectOptions<'_> {
        ConnectOptions {
            source: Source::Own,
            ..self.upstream_options()
        }
    }

    /// Towards the pod's own application, as the client.
    fn application_options(&self, client: IpAddr, target: IpAddr) -> ConnectOptions<'_> {
        let config = &self.shared.config;
        if client == target || self.source_address == SourceAddress::Own {
            // Its own address needs no disguise.
            return self.own_options();
        }
        let (mark, source) = match config.redirection {
            Redirection::Steered => (config.capture_mark, Source::Spoofed(client)),
            // Its rules know the connection by this mark, and bring the answers back.
            Redirection::Rewritten => (config.bypass_mark, Source::SpoofedRouted(client)),
        };
        ConnectOptions {
            mark: Some(mark),
            source,
            deadline: config.connect_deadline,
            keepalive: None,
            announce: self.announce.as_deref(),
        }
    }
}

fn refuse_excess(pod: &Pod, direction: Direction, accepted: Accepted) {
    let peer = accepted.peer.addr();
    let local = accepted.stream.local_addr().unwrap_or(peer);
    let limit = pod.shared.config.max_connections;
    early_failure(
        direction,
        peer,
        local,
        Refusal::Limit,
        format_args!("{} has {limit} connections", pod.name),
    );
    forward::reset(accepted.stream);
}

/// A socket that cannot say where its connection was going is mostly one whose peer has gone already.
fn no_original_destination(direction: Direction, peer: SocketAddr, error: &io::Error) {
    let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let reason = Refusal::NoOriginalDestination;
    early_failure(direction, peer, unknown, reason, error);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future of one connection.
    fn size<F>(_handle: fn(Arc<Pod>, Accepted, Place) -> F) -> usize {
        size_of::<F>()
    }

    /// Tens of thousands of connections each keep theirs; what is rare is boxed.
    #[test]
    fn connections_are_small() {
        const CONNECTION: usize = 2400;
        // With HTTP/2 in it, for up to a hundred connections.
        const TUNNEL: usize = 6 << 10;
        for (what, size, most) in [
            ("outbound", size(outbound::handle), CONNECTION),
            ("plaintext", size(plaintext::handle), CONNECTION),
            ("stream", inbound::stream_size(), CONNECTION),
            ("tunnel", size(inbound::handle_connection), TUNNEL),
        ] {
            assert!(size <= most, "{what}: {size} bytes");
        }
    }
}
