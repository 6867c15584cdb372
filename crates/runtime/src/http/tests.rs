use std::net::SocketAddr;

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    sync::{Notify, watch},
};

use super::*;
use crate::DrainOutcome;

/// No exchange on loopback takes longer, on any machine.
const DEADLINE: Duration = Duration::from_secs(20);

async fn start(handler: Handler, limits: HttpLimits) -> (SocketAddr, Drain) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let drain = Drain::new();
    serve(listener, handler, &drain, limits);
    (addr, drain)
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpSocket::new_v4().unwrap().connect(addr).await.unwrap()
}

/// Everything until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    // A reset after the answer is as good as a close.
    let _ended = timeout(DEADLINE, stream.read_to_string(&mut text))
        .await
        .unwrap();
    text
}

async fn ask(addr: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = connect(addr).await;
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

fn echo() -> Handler {
    handler(|request| async {
        match request.into_body().collect().await {
            Ok(body) => text(StatusCode::OK, body.to_bytes()),
            Err(error) => text(StatusCode::BAD_REQUEST, error.to_string()),
        }
    })
}

#[tokio::test]
async fn readiness_says_what_is_pending() {
    let readiness = Readiness::new();
    let state = readiness.register("state manager");
    let proxy = readiness.register("proxy");
    let (addr, _drain) = start(readiness_handler(readiness), HttpLimits::default()).await;
    let pending = "not ready, pending: proxy, state manager\n".to_owned();
    assert_eq!(ask(addr, "GET /healthz/ready", "").await, (500, pending));
    state.ready();
    proxy.ready();
    assert_eq!(
        ask(addr, "GET /healthz/ready", "").await,
        (200, "ready\n".to_owned())
    );
    assert_eq!(ask(addr, "POST /healthz/ready", "").await.0, 405);
    assert_eq!(ask(addr, "GET /other", "").await.0, 404);
}

#[tokio::test]
async fn a_handler_gets_the_body() {
    let (addr, _drain) = start(echo(), HttpLimits::default()).await;
    assert_eq!(
        ask(addr, "POST /", "12345").await,
        (200, "12345".to_owned())
    );
}

#[tokio::test]
async fn long_headers_are_refused() {
    let (addr, _drain) = start(echo(), HttpLimits::default()).await;
    let path = format!("GET /{}", "a".repeat(9_000));
    let mut stream = connect(addr).await;
    stream
        .write_all(format!("{path} HTTP/1.1\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let answer = rest(&mut stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_sends_no_headers_is_cut() {
    let limits = HttpLimits {
        header_deadline: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let (addr, _drain) = start(echo(), limits).await;
    let mut stream = connect(addr).await;
    stream.write_all(b"GET / HT").await.unwrap();
    assert!(!rest(&mut stream).await.contains("200"));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let limits = HttpLimits {
        connections: 1,
        ..HttpLimits::default()
    };
    let (arrived, mut arrivals) = watch::channel(false);
    let release = Arc::new(Notify::new());
    let gate = release.clone();
    let wait = handler(move |_| {
        arrived.send_replace(true);
        let gate = gate.clone();
        async move {
            gate.notified().await;
            text(StatusCode::OK, "done")
        }
    });
    let (addr, _drain) = start(wait, limits).await;
    let mut first = connect(addr).await;
    first
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    timeout(DEADLINE, arrivals.wait_for(|arrived| *arrived))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest(&mut connect(addr).await).await, "");
    release.notify_one();
    assert!(rest(&mut first).await.ends_with("done"));
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let limits = HttpLimits {
        request_deadline: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let never = handler(|_| std::future::pending());
    let (addr, _drain) = start(never, limits).await;
    assert_eq!(
        ask(addr, "GET /", "").await,
        (503, "deadline passed\n".to_owned())
    );
}

#[tokio::test]
async fn drain_finishes_the_request_in_progress_and_closes_the_rest() {
    let (arrived, mut arrivals) = watch::channel(false);
    let release = Arc::new(Notify::new());
    let gate = release.clone();
    let wait = handler(move |_| {
        arrived.send_replace(true);
        let gate = gate.clone();
        async move {
            gate.notified().await;
            text(StatusCode::OK, "done")
        }
    });
    let (addr, drain) = start(wait, HttpLimits::default()).await;
    let mut busy = connect(addr).await;
    let mut idle = connect(addr).await;
    busy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    timeout(DEADLINE, arrivals.wait_for(|arrived| *arrived))
        .await
        .unwrap()
        .unwrap();

    let (outcome, ()) = tokio::join!(drain.run(DEADLINE), async {
        assert_eq!(rest(&mut idle).await, "");
        release.notify_one();
        assert!(rest(&mut busy).await.ends_with("done"));
    });
    assert_eq!(outcome, DrainOutcome::Finished);
    assert!(TcpSocket::new_v4().unwrap().connect(addr).await.is_err());
}
