//! What a handshake of a tunnel costs, both sides together, on one thread:
//! `cargo run --release -p leyline-tls --example handshakes`.
//!
//! Between peers that never met, between peers whose chains are known, and what resumption of sessions, which Leyline does
//! not do, would leave of it.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement, which prints and may fail"
)]

use std::{
    io::{Read, Write},
    ops::DerefMut,
    sync::Arc,
    time::Duration,
};

use leyline_tls::{Revocation, WorkloadCertificate, accept, connect, csr, install_crypto_provider};
use leyline_types::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ServerSessionMemoryCache, WebPkiClientVerifier},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::Instant,
};

const PEERS: usize = 500;
const DEADLINE: Duration = Duration::from_secs(20);

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root: CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        Self {
            root_pem: root.pem(),
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn workload(&self, account: &str) -> Arc<WorkloadCertificate> {
        let identity: Identity = format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .unwrap();
        let request = csr::generate(&identity).unwrap();
        let mut params = CertificateSigningRequestParams::from_pem(&request.pem).unwrap();
        both_usages(&mut params.params);
        let leaf = params.signed_by(&self.issuer).unwrap().pem();
        let chain = [leaf, self.root_pem.clone()];
        let off = Revocation::off();
        Arc::new(WorkloadCertificate::from_pem(&identity, &chain, request.key, &off).unwrap())
    }

    fn plain(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["peer".to_owned()]).unwrap();
        both_usages(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (leaf.der().clone(), key)
    }
}

fn both_usages(params: &mut CertificateParams) {
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
}

fn main() {
    install_crypto_provider();
    let ca = Ca::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let peers: Vec<_> = (0..PEERS)
        .map(|_| (ca.workload("server"), ca.workload("client")))
        .collect();
    let strangers = runtime.block_on(tunnels(&peers));
    let known = vec![peers[0].clone(); PEERS];
    report("peers that never met", strangers);
    report("peers that are known", runtime.block_on(tunnels(&known)));
    for (name, kind) in [
        ("without sockets, in full", HandshakeKind::Full),
        ("without sockets, resumed", HandshakeKind::Resumed),
    ] {
        report(name, sessions(&ca, kind));
    }
}

fn report(name: &str, each: Duration) {
    println!("{name:26} {:8.1} us", each.as_secs_f64() * 1e6);
}

type Pair = (Arc<WorkloadCertificate>, Arc<WorkloadCertificate>);

/// The median of many: others use the machine too.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Over loopback.
async fn tunnels(pairs: &[Pair]) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut times = Vec::with_capacity(pairs.len());
    for (server, client) in pairs {
        let socket = TcpSocket::new_v4().unwrap();
        let (near, far) = tokio::join!(socket.connect(address), listener.accept());
        let (near, far) = (near.unwrap(), far.unwrap().0);
        let expected = [server.identity().clone()];
        let start = Instant::now();
        let (accepted, connected) = tokio::join!(
            Box::pin(accept(server, far, &[], DEADLINE)),
            Box::pin(connect(client, near, &expected, DEADLINE))
        );
        times.push(start.elapsed());
        drop((accepted.unwrap(), connected.unwrap()));
    }
    median(times)
}

/// By rustls alone, with the same cryptography.
fn sessions(ca: &Ca, kind: HandshakeKind) -> Duration {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots))
        .build()
        .unwrap();
    let (leaf, key) = ca.plain();
    let mut server = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let (leaf, key) = ca.plain();
    let mut client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf], key)
        .unwrap();
    client.resumption = Resumption::disabled();
    if kind == HandshakeKind::Resumed {
        client.resumption = Resumption::in_memory_sessions(64);
        server.session_storage = ServerSessionMemoryCache::new(1024);
    }
    let (server, client) = (Arc::new(server), Arc::new(client));
    session(&server, &client);
    let times = (0..PEERS).map(|_| {
        let start = Instant::now();
        assert_eq!(session(&server, &client), kind);
        start.elapsed()
    });
    median(times.collect())
}

fn session(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> HandshakeKind {
    let name = "peer".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
    }
    // So that tickets have been read.
    server.writer().write_all(b"!").unwrap();
    pass(&mut server, &mut client);
    client.reader().read_exact(&mut [0]).unwrap();
    client.handshake_kind().unwrap()
}

/// All that one side has to say.
fn pass<A, B>(
    from: &mut impl DerefMut<Target = ConnectionCommon<A>>,
    to: &mut impl DerefMut<Target = ConnectionCommon<B>>,
) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut unread = &bytes[..];
    while !unread.is_empty() {
        to.read_tls(&mut unread).unwrap();
        to.process_new_packets().unwrap();
    }
}
