//! What callers with and without tokens can do to the control plane, and cannot.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use leyline_controlplane::{Caller, StateDir, TokenKey};
use leyline_proto::{ADDRESS_TYPE, envoy::service::discovery::v3::DeltaDiscoveryRequest};
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Code;

use crate::{
    discovery::PODS,
    harness::{Fixture, Subscriber, names},
};

fn connector(
    fixture: &Fixture,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_file(fixture.root()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[expect(clippy::disallowed_methods, reason = "a test client")]
async fn tcp(fixture: &Fixture) -> TcpStream {
    let (server, _) = fixture.server.as_ref().unwrap();
    TcpStream::connect(server.address()).await.unwrap()
}

async fn tls(fixture: &Fixture) -> TlsStream<TcpStream> {
    let connector = connector(fixture, &[&rustls::version::TLS13]);
    let name = "localhost".try_into().unwrap();
    connector.connect(name, tcp(fixture).await).await.unwrap()
}

/// Whether the peer ends the connection within some time.
async fn ends(mut stream: TlsStream<TcpStream>, within: Duration) -> bool {
    let mut buffer = vec![0; 4096];
    timeout(within, async move {
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
    })
    .await
    .is_ok()
}

#[tokio::test]
async fn older_tls_and_other_protocols_are_not_spoken() {
    let fixture = Fixture::start(&[]).await;
    let name = || "localhost".try_into().unwrap();
    let old = connector(&fixture, &[&rustls::version::TLS12]);
    assert!(old.connect(name(), tcp(&fixture).await).await.is_err());
    let mut http = connector(&fixture, &[&rustls::version::TLS13])
        .config()
        .as_ref()
        .clone();
    http.alpn_protocols = vec![b"http/1.1".to_vec()];
    let http = TlsConnector::from(Arc::new(http));
    assert!(http.connect(name(), tcp(&fixture).await).await.is_err());
}

#[tokio::test]
async fn who_brings_no_token_does_not_stay_and_is_no_burden_to_others() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    // Idle ones, ones with half a preface, and ones that do not even finish their handshake.
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(tls(&fixture).await);
        let mut half = tls(&fixture).await;
        half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        half.flush().await.unwrap();
        strangers.push(half);
    }
    let start = Instant::now();
    let mut subscriber = fixture.subscriber("a").await;
    assert_eq!(subscriber.synchronise().await.len(), 2);
    assert!(start.elapsed() < Duration::from_secs(2));
    for stranger in strangers {
        assert!(ends(stranger, Duration::from_secs(20)).await);
    }
    // Longer than a stranger may: the proxy is still there.
    fixture.write("pods.yaml", &PODS.replace("10.0.0.2", "10.0.0.9"));
    assert_eq!(
        names(&subscriber.next().await),
        ["Kubernetes//Pod/shop/client"]
    );
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let fixture = Fixture::start(&[]).await;
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(tcp(&fixture).await);
    }
    let mut over = tcp(&fixture).await;
    let mut buffer = [0; 1];
    let ended = timeout(Duration::from_secs(5), over.read(&mut buffer)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    drop(held);
    let start = Instant::now();
    while Subscriber::connect(fixture.service(Some(fixture.node_token("a"))))
        .await
        .is_err()
    {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let key = TokenKey::open(&StateDir::open(&fixture.state()).unwrap()).unwrap();
    let caller = Caller {
        namespace: "istio-system".to_owned(),
        service_account: "ztunnel".to_owned(),
        node: Some("a".to_owned()),
        pod: None,
    };
    let token = key.issue(&caller, Duration::from_secs(2), SystemTime::now());
    let mut subscriber = Subscriber::connect(fixture.service(Some(token.clone())))
        .await
        .unwrap();
    subscriber.synchronise().await;
    let status = subscriber.error().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "token has expired")
    );
    let refused = Subscriber::connect(fixture.service(Some(token))).await;
    assert_eq!(refused.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn one_token_cannot_hold_many_streams() {
    let fixture = Fixture::start(&[]).await;
    let service = fixture.service(Some(fixture.node_token("a")));
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(Subscriber::connect(service.clone()).await.unwrap());
    }
    let refused = Subscriber::connect(service.clone()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    fixture.subscriber("b").await.synchronise().await;
    held.pop();
    let start = Instant::now();
    while Subscriber::connect(service.clone()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_proxy_that_never_reads_is_no_burden_to_fifty_others() {
    let big: String = (0..500)
        .map(|n| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, namespace: shop, labels: {{app: web}}}}\nspec: \
                 {{nodeName: a, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: \
                 10.1.{}.{}}}]}}\n---\n",
                n / 250,
                n % 250 + 1
            )
        })
        .collect();
    let fixture = Fixture::start(&[("pods.yaml", &big)]).await;
    // Subscribes, and never takes anything from its stream.
    let stuck = fixture.subscriber("stuck").await;
    stuck.subscribe(ADDRESS_TYPE, &[]).await;
    let mut proxies = Vec::new();
    for n in 0..50 {
        let mut proxy = fixture.subscriber(&format!("n{n}")).await;
        proxy.synchronise().await;
        proxies.push(proxy);
    }
    for round in 0..5 {
        let start = Instant::now();
        fixture.write(
            "pods.yaml",
            &big.replace("10.1.0.1}", &format!("10.2.0.{round}}}")),
        );
        for proxy in &mut proxies {
            let response = proxy.next().await;
            assert_eq!(names(&response), ["Kubernetes//Pod/shop/p0"]);
            proxy.ack(&response).await;
        }
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    // Nothing has piled up for it: it is still at its first response.
    let status = fixture.status().await;
    let clients = status["proxies"].as_array().unwrap();
    let waiting = clients.iter().find(|client| client["node"] == "stuck");
    let types = &waiting.unwrap()["types"]["address"];
    assert_eq!(
        (&types["waiting"], &types["acked_generation"]),
        (&true.into(), &0.into())
    );
}

#[tokio::test]
async fn junk_is_answered_or_ignored() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let mut subscriber = fixture.subscriber("a").await;
    for type_url in [
        "",
        "x",
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    ] {
        subscriber
            .send(DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                response_nonce: "77".to_owned(),
                ..DeltaDiscoveryRequest::default()
            })
            .await;
    }
    let first = subscriber.synchronise().await;
    assert_eq!(first.len(), 2);
    // Beyond the size of any request: the stream ends, the connection and the server do not.
    let huge = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        response_nonce: "x".repeat(17 * 1024 * 1024),
        ..DeltaDiscoveryRequest::default()
    };
    subscriber.send(huge).await;
    subscriber.ends().await;
    fixture.subscriber("a").await.synchronise().await;
}
