use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup, ServerConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
    server::ServerSessionMemoryCache,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

use super::*;
use crate::{
    provider::mesh_provider,
    revocation::{Issuers, Revocation},
    testing::{Leaf, TestCa, sockets},
};

mod openssl;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const FOREIGN: &str = "spiffe://elsewhere.example/ns/shop/sa/web";
/// Long enough that only a handshake that hangs meets it.
const DEADLINE: Duration = Duration::from_secs(20);

type Accepted = Result<(ServerTls, Identity), TlsError>;
type Connected = Result<(ClientTls, Identity), TlsError>;

async fn handshake(
    server: &Arc<WorkloadCertificate>,
    client: &Arc<WorkloadCertificate>,
    expected: &[&str],
) -> (Accepted, Connected) {
    let expected: Vec<Identity> = expected.iter().map(|id| id.parse().unwrap()).collect();
    let (near, far) = sockets().await;
    let client = async {
        let connected = connect(client, near, &expected, DEADLINE).await;
        // What the server thinks of our certificate arrives after the handshake.
        let (mut tls, identity) = connected?;
        match server_is_done(&mut tls).await {
            true => Ok((tls, identity)),
            false => Err(TlsError::Refused(tls.verdict().refusal().unwrap())),
        }
    };
    let server = async {
        let accepted = accept(server, far, &[], DEADLINE).await;
        match accepted {
            Ok((mut tls, identity)) => {
                tls.write_all(b"!").await.unwrap();
                Ok((tls, identity))
            }
            Err(error) => Err(error),
        }
    };
    tokio::join!(Box::pin(server), Box::pin(client))
}

async fn server_is_done(tls: &mut ClientTls) -> bool {
    let mut byte = [0];
    // As a real client, it does not wait for the server before it sends.
    tls.write_all(b"preface").await.unwrap();
    tls.read_exact(&mut byte).await.is_ok()
}

/// Both sides of a handshake that fails, by their reasons.
async fn reasons(
    server: &Arc<WorkloadCertificate>,
    client: &Arc<WorkloadCertificate>,
    expected: &[&str],
) -> (&'static str, &'static str) {
    let (accepted, connected) = handshake(server, client, expected).await;
    (
        accepted.unwrap_err().reason(),
        connected.unwrap_err().reason(),
    )
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = TestCa::new();
    let (accepted, connected) = handshake(&ca.workload(WEB), &ca.workload(DB), &[DB, WEB]).await;
    let ((mut server, client_id), (mut client, server_id)) =
        (accepted.unwrap(), connected.unwrap());
    assert_eq!(
        (client_id.to_string(), server_id.to_string()),
        (DB.to_owned(), WEB.to_owned())
    );

    let mut received = [0; 7];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"preface");
    client.write_all(b"bytes").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bytes");
}

#[tokio::test]
async fn prefers_the_hybrid_group_and_the_quick_suite() {
    let ca = TestCa::new();
    let (accepted, connected) = handshake(&ca.workload(WEB), &ca.workload(DB), &[WEB]).await;
    let (server, client) = (accepted.unwrap().0, connected.unwrap().0);
    let (server, client) = (server.io.get_ref().1, client.io.get_ref().1);
    for group in [
        server.negotiated_key_exchange_group(),
        client.negotiated_key_exchange_group(),
    ] {
        assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
    }
    let suite = client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[tokio::test]
async fn takes_intermediates_and_other_roots_of_a_bundle() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let both = [&old, &new];
    let server = old
        .intermediate()
        .intermediate()
        .unchecked(&Leaf::workload(WEB), &both);
    let client = new.intermediate().unchecked(&Leaf::workload(DB), &both);
    let (accepted, connected) = handshake(&server, &client, &[WEB]).await;
    assert_eq!(accepted.unwrap().1.to_string(), DB);
    assert_eq!(connected.unwrap().1.to_string(), WEB);
}

#[tokio::test]
async fn refuses_servers() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let client = ca.workload(DB);
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let good = Leaf::workload(WEB);
    let expired = Leaf {
        not_before: now - 2 * hour,
        not_after: now - hour,
        ..good.clone()
    };
    let early = Leaf {
        not_before: now + hour,
        not_after: now + 2 * hour,
        ..good.clone()
    };
    let client_only = Leaf {
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        ..good.clone()
    };
    let trusting_both: &[&TestCa] = &[&ca, &other];
    for (server, expected, reason, told) in [
        (
            other.unchecked(&good, trusting_both),
            WEB,
            "unknown_root",
            "refused_unknown_root",
        ),
        (
            ca.unchecked(&expired, trusting_both),
            WEB,
            "expired",
            "refused_expired",
        ),
        (
            ca.unchecked(&early, trusting_both),
            WEB,
            "not_yet_valid",
            "refused_expired",
        ),
        (
            ca.unchecked(&client_only, trusting_both),
            WEB,
            "purpose",
            "refused_certificate",
        ),
        (ca.workload(WEB), DB, "identity", "refused_certificate"),
        (ca.workload(FOREIGN), WEB, "identity", "refused_certificate"),
    ] {
        assert_eq!(
            reasons(&server, &client, &[expected]).await,
            (told, reason),
            "{server:?}"
        );
    }
    assert_eq!(reasons(&ca.workload(WEB), &client, &[]).await.1, "identity");
}

#[tokio::test]
async fn refuses_clients_and_tells_them_why() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let server = ca.workload(WEB);
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let good = Leaf::workload(DB);
    let expired = Leaf {
        not_before: now - 2 * hour,
        not_after: now - hour,
        ..good.clone()
    };
    let server_only = Leaf {
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..good.clone()
    };
    for (client, reason, told) in [
        (
            other.unchecked(&good, &[&ca]),
            "unknown_root",
            "refused_unknown_root",
        ),
        (
            other.intermediate().unchecked(&good, &[&ca]),
            "unknown_root",
            "refused_unknown_root",
        ),
        (ca.unchecked(&expired, &[&ca]), "expired", "refused_expired"),
        (
            ca.unchecked(&server_only, &[&ca]),
            "purpose",
            "refused_certificate",
        ),
        (ca.workload(FOREIGN), "trust_domain", "refused_certificate"),
    ] {
        assert_eq!(
            reasons(&server, &client, &[WEB]).await,
            (reason, told),
            "{client:?}"
        );
    }
}

#[tokio::test]
async fn peers_of_aliases_are_accepted_and_those_of_a_third_trust_domain_are_not() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let server = ca.workload(WEB);
    let domain_of = |id: &str| id.parse::<Identity>().unwrap().trust_domain().clone();
    let third = "spiffe://third.example/ns/shop/sa/web";
    let outcome = async |client: &Arc<WorkloadCertificate>| {
        let (near, far) = sockets().await;
        let expected = [WEB.parse().unwrap()];
        let aliases = [domain_of(FOREIGN)];
        let accepting = accept(&server, far, &aliases, DEADLINE);
        let connecting = connect(client, near, &expected, DEADLINE);
        let (accepted, _connected) = tokio::join!(Box::pin(accepting), Box::pin(connecting));
        match accepted {
            Ok((_tls, identity)) => identity.to_string(),
            Err(error) => error.reason().to_owned(),
        }
    };
    assert_eq!(outcome(&ca.workload(WEB)).await, WEB);
    assert_eq!(outcome(&ca.workload(FOREIGN)).await, FOREIGN);
    assert_eq!(outcome(&ca.workload(third)).await, "trust_domain");
    // An alias is a name only: the roots vouch for it as for any other.
    let unvouched = other.unchecked(&Leaf::workload(FOREIGN), &[&ca]);
    assert_eq!(outcome(&unvouched).await, "unknown_root");
}

#[tokio::test]
async fn refusals_name_both_parties() {
    let ca = TestCa::new();
    let (accepted, connected) = handshake(&ca.workload(WEB), &ca.workload(FOREIGN), &[WEB]).await;
    assert_eq!(
        accepted.unwrap_err().to_string(),
        format!("peer {FOREIGN} is not of trust domain cluster.local")
    );
    assert_eq!(
        connected.unwrap_err().to_string(),
        "peer refused us: it does not accept our certificate or identity"
    );
    let (_, connected) = handshake(&ca.workload(WEB), &ca.workload(DB), &[DB, FOREIGN]).await;
    assert_eq!(
        connected.unwrap_err().to_string(),
        format!("peer is {WEB}, expected one of [{DB}, {FOREIGN}]")
    );
}

/// A TLS client that is not ours.
struct OtherClient {
    version: &'static SupportedProtocolVersion,
    provider: CryptoProvider,
    alpn: Option<&'static [u8]>,
    /// Its certificate, if it has one.
    leaf: Option<Leaf>,
}

impl OtherClient {
    fn new() -> Self {
        Self {
            version: &TLS13,
            provider: aws_lc_rs::default_provider(),
            alpn: Some(ALPN_H2),
            leaf: Some(Leaf::workload(DB)),
        }
    }

    /// Calls our server, and says what both saw.
    async fn call(self) -> (Accepted, io::Result<client::TlsStream<TcpStream>>) {
        let ca = TestCa::new();
        let server = ca.workload(WEB);
        let builder = ClientConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OutboundVerifier::new(
                Arc::clone(server.trusted()),
                Issuers::new(Revocation::off(), &[]),
                &[WEB.parse().unwrap()],
            )));
        let mut config = match self.leaf {
            Some(leaf) => {
                let (chain, key) = ca.issue(&leaf);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|alpn| alpn.to_vec()).collect();
        let (near, far) = sockets().await;
        let name = ServerName::try_from("ignored").unwrap();
        let server = async {
            let mut accepted = accept(&server, far, &[], DEADLINE).await;
            if let Ok((tls, _)) = &mut accepted {
                tls.write_all(b"!").await.unwrap();
            }
            accepted
        };
        let client = async {
            let connector = TlsConnector::from(Arc::new(config));
            let mut tls = connector.connect(name, near).await?;
            // The server's verdict on the certificate, if there is one, comes now.
            let mut byte = [0];
            match tls.read(&mut byte).await {
                Ok(_) => Ok(tls),
                Err(error) => Err(error),
            }
        };
        tokio::join!(Box::pin(server), Box::pin(client))
    }
}

/// Calls and answers once; `server` and `client` are what they would resume with.
async fn kind_of_handshake(server: TlsAcceptor, client: TlsConnector) -> (HandshakeKind, usize) {
    let (near, far) = sockets().await;
    let accepting = async {
        let mut tls = server.accept(far).await.unwrap();
        tls.write_all(b"!").await.unwrap();
        tls.get_ref().1.handshake_kind().unwrap()
    };
    let connecting = async {
        let name = ServerName::try_from("ignored").unwrap();
        let mut tls = client.connect(name, near).await.unwrap();
        // Tickets arrive with the first data.
        let mut byte = [0];
        tls.read_exact(&mut byte).await.unwrap();
        usize::try_from(tls.get_ref().1.tls13_tickets_received()).unwrap()
    };
    tokio::join!(accepting, connecting)
}

/// Neither with a client that would like to, nor at a server that offers it.
#[tokio::test]
async fn no_handshake_is_resumed() {
    let ca = TestCa::new();
    let (web, db) = (ca.workload(WEB), ca.workload(DB));
    let verifier = Arc::new(OutboundVerifier::new(
        Arc::clone(web.trusted()),
        Issuers::new(Revocation::off(), &[]),
        &[WEB.parse().unwrap()],
    ));
    let ours = (
        web.server_config(&[]).unwrap(),
        db.client_config(Arc::clone(&verifier)),
    );
    let mut eager_client = ClientConfig::clone(&ours.1);
    eager_client.resumption = Resumption::in_memory_sessions(8);
    let mut eager_server = ServerConfig::clone(&ours.0);
    eager_server.session_storage = ServerSessionMemoryCache::new(8);
    eager_server.send_tls13_tickets = 2;
    let eager = (Arc::new(eager_server), Arc::new(eager_client));
    for (server, client, tickets, second) in [
        (&ours.0, &eager.1, 0, HandshakeKind::Full),
        (&eager.0, &ours.1, 2, HandshakeKind::Full),
        // So that it is known that this would be seen.
        (&eager.0, &eager.1, 2, HandshakeKind::Resumed),
    ] {
        let call = || kind_of_handshake(server.clone().into(), client.clone().into());
        assert_eq!(call().await, (HandshakeKind::Full, tickets));
        assert_eq!(call().await.0, second);
    }
}

/// The chains of both sides are remembered, which is of no use to somebody who has seen them.
#[tokio::test]
async fn a_known_chain_needs_its_key_all_the_same() {
    let ca = TestCa::new();
    let (web, db) = (ca.workload(WEB), ca.workload(DB));
    let (accepted, connected) = handshake(&web, &db, &[WEB]).await;
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    drop((accepted, connected));
    let stolen = |chain: &[CertificateDer<'static>]| {
        let (_chain, key) = ca.issue(&Leaf::workload(DB));
        let key = mesh_provider().key_provider.load_private_key(key).unwrap();
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(
            chain.to_vec(),
            key,
        )))
    };

    let verifier = OutboundVerifier::new(
        Arc::clone(db.trusted()),
        db.issuers().clone(),
        &[WEB.parse().unwrap()],
    );
    let mut thief = ClientConfig::clone(&db.client_config(Arc::new(verifier)));
    thief.client_auth_cert_resolver = stolen(db.chain());
    let (near, far) = sockets().await;
    let name = ServerName::try_from("ignored").unwrap();
    let calling = async {
        let connector = TlsConnector::from(Arc::new(thief));
        let mut tls = connector.connect(name, near).await?;
        tls.read_u8().await
    };
    let (accepted, called) = tokio::join!(accept(&web, far, &[], DEADLINE), calling);
    assert_eq!(accepted.unwrap_err().reason(), "bad_certificate");
    assert!(called.is_err());

    let mut thief = ServerConfig::clone(&web.server_config(&[]).unwrap());
    thief.cert_resolver = stolen(web.chain());
    let (near, far) = sockets().await;
    let expected = [WEB.parse().unwrap()];
    let acceptor = TlsAcceptor::from(Arc::new(thief));
    let (accepted, connected) = tokio::join!(
        acceptor.accept(far),
        connect(&db, near, &expected, DEADLINE)
    );
    assert_eq!(connected.unwrap_err().reason(), "bad_certificate");
    assert!(accepted.is_err());
}

#[tokio::test]
async fn refuses_clients_that_do_not_speak_our_tls() {
    let old = OtherClient {
        version: &TLS12,
        ..OtherClient::new()
    };
    let (accepted, told) = old.call().await;
    assert_eq!(accepted.unwrap_err().reason(), "version");
    assert_eq!(Refusal::in_io(&told.unwrap_err()), Some(Refusal::Version));

    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    let (accepted, told) = OtherClient {
        provider,
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "parameters");
    assert_eq!(
        Refusal::in_io(&told.unwrap_err()),
        Some(Refusal::Parameters)
    );
}

#[tokio::test]
async fn refuses_clients_that_are_nobody() {
    let (accepted, told) = OtherClient {
        leaf: None,
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "no_certificate");
    assert_eq!(
        Refusal::in_io(&told.unwrap_err()),
        Some(Refusal::CertificateRequired)
    );

    let leaf = Some(Leaf::server("db.shop"));
    let (accepted, told) = OtherClient {
        leaf,
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "not_spiffe");
    assert_eq!(
        Refusal::in_io(&told.unwrap_err()),
        Some(Refusal::Certificate)
    );

    let uris = vec![DB.to_owned(), FOREIGN.to_owned()];
    let leaf = Some(Leaf {
        uris,
        ..Leaf::workload(DB)
    });
    let (accepted, _) = OtherClient {
        leaf,
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "not_spiffe");
}

#[tokio::test]
async fn refuses_clients_without_http2() {
    let (accepted, _) = OtherClient {
        alpn: None,
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "alpn");
    let (accepted, told) = OtherClient {
        alpn: Some(b"http/1.1"),
        ..OtherClient::new()
    }
    .call()
    .await;
    assert_eq!(accepted.unwrap_err().reason(), "alpn");
    assert_eq!(Refusal::in_io(&told.unwrap_err()), Some(Refusal::Alpn));
}

#[tokio::test]
async fn accepts_each_classical_group() {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519};
    for group in [X25519, SECP256R1, SECP384R1] {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![group];
        let (accepted, connected) = OtherClient {
            provider,
            ..OtherClient::new()
        }
        .call()
        .await;
        assert_eq!(accepted.unwrap().1.to_string(), DB);
        let connected = connected.unwrap();
        let negotiated = connected
            .get_ref()
            .1
            .negotiated_key_exchange_group()
            .unwrap();
        assert_eq!(negotiated.name(), group.name());
    }
}

#[tokio::test]
async fn refuses_what_is_not_tls() {
    let server = TestCa::new().workload(WEB);
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[0; 64],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let (mut near, far) = sockets().await;
        near.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let (accepted, _) = tokio::join!(
            accept(&server, far, &[], DEADLINE),
            near.read_to_end(&mut answer)
        );
        assert_eq!(accepted.unwrap_err().reason(), "malformed", "{bytes:?}");
    }
}

#[tokio::test]
async fn a_peer_that_goes_away_is_told_apart() {
    let cert = TestCa::new().workload(WEB);
    let (near, far) = sockets().await;
    drop(near);
    assert_eq!(
        accept(&cert, far, &[], DEADLINE)
            .await
            .unwrap_err()
            .reason(),
        "closed"
    );
    let (near, far) = sockets().await;
    drop(far);
    assert_eq!(
        connect(&cert, near, &[], DEADLINE)
            .await
            .unwrap_err()
            .reason(),
        "closed"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_peers_meet_the_deadline() {
    let cert = TestCa::new().workload(WEB);
    let (mut near, far) = sockets().await;
    // The start of a record, and then nothing.
    near.write_all(&[22, 3, 1]).await.unwrap();
    let (near, far) = tokio::join!(
        connect(&cert, near, &[], Duration::from_secs(3)),
        accept(&cert, far, &[], Duration::from_secs(2)),
    );
    assert!(
        matches!(far, Err(TlsError::Deadline(d)) if d.as_secs() == 2),
        "{far:?}"
    );
    // The client's peer gave up first.
    assert!(
        matches!(near, Err(TlsError::Closed | TlsError::Malformed(_))),
        "{near:?}"
    );

    let (near, far) = sockets().await;
    let error = connect(&cert, near, &[], Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(
        matches!(error, TlsError::Deadline(d) if d.as_secs() == 3),
        "{error}"
    );
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn a_refused_peer_that_does_not_close_is_left() {
    let server = TestCa::new().workload(WEB);
    let (mut near, far) = sockets().await;
    near.write_all(&[0; 64]).await.unwrap();
    let started = tokio::time::Instant::now();
    assert_eq!(
        accept(&server, far, &[], DEADLINE)
            .await
            .unwrap_err()
            .reason(),
        "malformed"
    );
    assert!(started.elapsed() <= ALERT_LINGER + Duration::from_millis(5));
}

#[test]
fn a_handshake_is_small_enough_to_spawn_by_the_thousand() {
    let cert = TestCa::new().workload(WEB);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (near, far) = runtime.block_on(sockets());
    let accepting = size_of_val(&accept(&cert, far, &[], DEADLINE));
    let connecting = size_of_val(&connect(&cert, near, &[], DEADLINE));
    assert!(accepting < 2048, "{accepting}");
    assert!(connecting < 2048, "{connecting}");
}
