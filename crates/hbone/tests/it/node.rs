//! The other side is Node's HTTP/2 (nghttp2): an implementation that shares no code with ours.

use std::{process::Stdio, time::Duration};

use bytes::Bytes;
use leyline_hbone::{
    Baggage, ConnectRequest, DialError, HboneConfig, HboneError, Opened, Pool, TunnelUse,
    server::{self, Request},
};
use leyline_net::copy::{Reader, Writer};
use leyline_runtime::{Drain, spawn};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
};
use tracing::Span;

use crate::support::{echo, key, pool, read_all, request, works};

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command
        .arg(format!(
            "{}/tests/node/{script}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Node's server and its port.
async fn node_server() -> (Child, u16) {
    let mut child = node("server.mjs").spawn().expect("node is installed");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = tokio::time::timeout(Duration::from_secs(20), lines.next_line());
    let port = port.await.unwrap().unwrap().unwrap().parse().unwrap();
    (child, port)
}

async fn open(pool: &Pool, port: u16, authority: &str) -> Result<Opened, HboneError> {
    let request = ConnectRequest {
        authority: authority.parse().unwrap(),
        ..request()
    };
    pool.open(&key(1), request, move || async move {
        let socket = TcpSocket::new_v4().map_err(DialError::new)?;
        let connected: std::io::Result<TcpStream> =
            socket.connect(([127, 0, 0, 1], port).into()).await;
        connected.map_err(DialError::new)
    })
    .await
}

#[tokio::test]
async fn our_client_and_its_server() {
    let (_node, port) = node_server().await;
    let pool = pool(&HboneConfig::default());

    let opened = open(&pool, port, "echo:80").await.unwrap();
    let baggage = Baggage::parse(opened.baggage.unwrap().as_bytes()).unwrap();
    assert_eq!(baggage.service, "node");
    let (mut reader, mut writer) = works(opened.stream).await;
    let data: Vec<u8> = (0..20usize << 20).map(|i| ((i * 7) >> 5) as u8).collect();
    let body = Bytes::from(data.clone());
    let (sent, got) = tokio::join!(
        async {
            for start in (0..body.len()).step_by(256 << 10) {
                let end = (start + (256 << 10)).min(body.len());
                writer.write(body.slice(start..end)).await?;
            }
            writer.finish().await
        },
        read_all(&mut reader)
    );
    sent.unwrap();
    assert!(got.unwrap() == data);

    let refused = open(&pool, port, "refuse:80").await.unwrap_err();
    assert_eq!(refused.to_string(), "http status: 503 Service Unavailable");

    let (mut reader, mut writer) = open(&pool, port, "reset:80")
        .await
        .unwrap()
        .stream
        .into_split();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    let error = reader.read().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(pool.stats().tunnels, 1);

    // After GOAWAY this stream goes on, and the next one gets another tunnel.
    let leaving = open(&pool, port, "goaway:80").await.unwrap();
    let (mut reader, mut writer) = works(leaving.stream).await;
    let next = open(&pool, port, "echo:80").await.unwrap();
    assert_eq!(next.tunnel, TunnelUse::New);
    works(next.stream).await;
    crate::support::ping_pong(&mut reader, &mut writer).await;
}

async fn by_host(request: Request) {
    match request.authority().to_string().as_str() {
        "refuse:80" => request.refuse(http::StatusCode::SERVICE_UNAVAILABLE),
        "reset:80" => {
            let (mut reader, mut writer) = request.accept(None).unwrap().into_split();
            reader.read().await.unwrap();
            writer.abort();
        }
        _ => echo(request).await,
    }
}

#[tokio::test]
async fn its_client_and_our_server() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let drain = Drain::new();
    let serving = drain.clone();
    drop(spawn("server", Span::none(), &drain, async move {
        let (io, _) = listener.accept().await.unwrap();
        let cfg = HboneConfig::default();
        server::serve(io, &cfg, &serving, by_host, |_| {}).await
    }));
    let output = node("client.mjs").arg(port.to_string()).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output);
    let output = output.await.unwrap().unwrap();
    let seen = String::from_utf8(output.stdout).unwrap();
    let part = |from: &str, to: &str| {
        let start = seen.find(from).unwrap_or_else(|| panic!("{seen}"));
        let end = seen[start..].find(to).map_or(seen.len(), |end| start + end);
        seen[start..end].to_owned()
    };
    let echoed = r#""status":200,"bytes":20971520,"code":0,"same":true"#;
    assert!(part("\"echo\"", "\"parallel\"").contains(echoed), "{seen}");
    let parallel = part("\"parallel\"", "\"refused\"");
    let each = r#""status":200,"bytes":5,"code":0,"same":true"#;
    assert_eq!(parallel.matches(each).count(), 50, "{seen}");
    assert!(
        part("\"refused\"", "\"reset\"").contains("\"status\":503"),
        "{seen}"
    );
    let reset = part("\"reset\"", "\"get\"");
    assert!(
        reset.contains("\"status\":200") && reset.contains("\"code\":8"),
        "{seen}"
    );
    assert!(part("\"get\"", "}").contains("\"status\":400"), "{seen}");
}
