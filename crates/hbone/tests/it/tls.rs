//! The real stack below: TLS 1.3 over loopback TCP.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use leyline_hbone::{
    DialError, HboneConfig,
    server::{self},
};
use leyline_net::copy::{Reader, Writer};
use leyline_runtime::{Drain, spawn};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::Span;

use crate::support::{echo, key, ping_pong, pool, read_all, request, works};

fn configs() -> (TlsConnector, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["peer".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(client).into(), Arc::new(server).into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_tls() {
    let (connector, acceptor) = configs();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let drain = Drain::new();
    let serving = drain.clone();
    drop(spawn("server", Span::none(), &drain, async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = acceptor.accept(tcp).await.unwrap();
        let cfg = HboneConfig::default();
        Box::pin(server::serve(tls, &cfg, &serving, echo, |_| {})).await
    }));
    let pool = pool(&HboneConfig::default());
    let open = || {
        let connector = connector.clone();
        let at = key(1);
        let pool = pool.clone();
        async move {
            pool.open(&at, request(), move || async move {
                let socket = TcpSocket::new_v4().map_err(DialError::new)?;
                let tcp = socket.connect(addr).await.map_err(DialError::new)?;
                let name = ServerName::try_from("peer").map_err(DialError::new)?;
                connector.connect(name, tcp).await.map_err(DialError::new)
            })
            .await
            .unwrap()
            .stream
        }
    };

    // A small message needs no other one behind it to get through.
    let (mut reader, mut writer) = works(open().await).await;
    let start = Instant::now();
    for _ in 0..200 {
        ping_pong(&mut reader, &mut writer).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5));

    let data: Vec<u8> = (0..32usize << 20).map(|i| ((i * 13) >> 4) as u8).collect();
    let body = Bytes::from(data.clone());
    let (sent, got) = tokio::join!(
        async {
            // Sizes on both sides of every limit below.
            let mut at = 0;
            for size in [1, 255, 256, 16_383, 16_384, 65_527, 262_144]
                .iter()
                .cycle()
            {
                let end = (at + size).min(body.len());
                writer.write(body.slice(at..end)).await?;
                at = end;
                if at == body.len() {
                    break;
                }
            }
            writer.finish().await
        },
        read_all(&mut reader)
    );
    sent.unwrap();
    assert!(got.unwrap() == data);

    let many = futures::future::join_all((0..50).map(|_| open())).await;
    for stream in many {
        let (mut reader, mut writer) = works(stream).await;
        writer.finish().await.unwrap();
        assert_eq!(reader.read().await.unwrap(), None);
    }
    assert_eq!(pool.stats().tunnels, 1);
}
