//! What the inbound end refuses, and how it ends.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request as HttpRequest, StatusCode};
use leyline_hbone::{
    HboneConfig, HboneError,
    server::{BadRequest, Request},
};
use leyline_net::copy::Reader;
use leyline_runtime::{DrainOutcome, spawn};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tracing::Span;

use crate::{
    raw::{DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, WINDOW_UPDATE},
    support::{Far, echo, key, ping_pong, pool, until, works},
};

/// An h2 client of another's making, driven by a task.
async fn h2_client(far: &Far, io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    drop(spawn("h2 client", Span::none(), &far.drain, async move {
        let _ended = connection.await;
    }));
    sender.ready().await.unwrap()
}

async fn status(
    sender: &mut h2::client::SendRequest<Bytes>,
    request: HttpRequest<()>,
) -> StatusCode {
    let (response, _send) = sender.send_request(request, false).unwrap();
    response.await.unwrap().status()
}

#[tokio::test]
async fn only_connect_to_a_valid_authority_is_taken() {
    let far = Far::new(&HboneConfig::default());
    let mut sender = h2_client(&far, far.connect(echo)).await;
    let get = HttpRequest::get("http://10.0.0.1:80/").body(()).unwrap();
    assert_eq!(status(&mut sender, get).await, StatusCode::BAD_REQUEST);
    for authority in [
        "10.0.0.1",
        "10.0.0.1:0",
        "user@web:80",
        "1.2.3:80",
        "web:http",
    ] {
        let Ok(request) = HttpRequest::connect(authority).body(()) else {
            continue;
        };
        assert_eq!(
            status(&mut sender, request).await,
            StatusCode::BAD_REQUEST,
            "{authority}"
        );
    }
    let good = HttpRequest::connect("web.shop:80").body(()).unwrap();
    assert_eq!(status(&mut sender, good).await, StatusCode::OK);
    let refused = far.refused.lock().clone();
    assert_eq!(refused[0], BadRequest::Method);
    assert!(refused.len() > 2);
    assert!(
        refused[1..].iter().all(|r| *r == BadRequest::Authority),
        "{refused:?}"
    );
}

#[tokio::test]
async fn requests_that_are_not_http_are_reset() {
    let far = Far::new(&HboneConfig::default());
    let mut raw = Raw::client(far.connect(echo)).await;
    let cases: [&[(&str, &str)]; 4] = [
        &[
            (":method", "CONNECT"),
            (":authority", "a:80"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
        ],
        &[
            (":method", "CONNECT"),
            (":authority", "a:80"),
            (":scheme", "http"),
            (":path", "/"),
        ],
        &[(":authority", "a:80")],
        &[(":method", "CONNECT"), (":authority", "a b:80")],
    ];
    for (index, fields) in cases.into_iter().enumerate() {
        let stream = u32::try_from(2 * index + 1).unwrap();
        raw.request(stream, fields).await;
        let reset = raw.next(RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.code()), (stream, 1), "{fields:?}");
    }
    // No authority at all.
    raw.request(9, &[(":method", "CONNECT")]).await;
    let answer = raw.next(HEADERS).await.unwrap();
    assert_eq!(answer.flags & END_STREAM, END_STREAM);
    until("it is told", || {
        *far.refused.lock() == [BadRequest::Authority]
    })
    .await;
    // The connection is none the worse.
    raw.connect(11).await;
    assert_eq!(raw.next(HEADERS).await.unwrap().payload[0], 0x88);
    raw.send(DATA, END_STREAM, 11, b"x").await;
    assert_eq!(raw.next(DATA).await.unwrap().payload, b"x");
}

#[tokio::test]
async fn headers_are_bounded() {
    let far = Far::new(&HboneConfig::default());
    let mut sender = h2_client(&far, far.connect(echo)).await;
    let connect = |size: usize| {
        HttpRequest::connect("10.0.0.1:80")
            .header("baggage", "x".repeat(size))
            .body(())
            .unwrap()
    };
    assert_eq!(status(&mut sender, connect(60 << 10)).await, StatusCode::OK);
    let (response, _send) = sender.send_request(connect(70 << 10), false).unwrap();
    match response.await {
        Ok(response) => assert_eq!(
            response.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        ),
        Err(error) => assert!(error.is_reset(), "{error}"),
    }
    until("it is told, once", || {
        *far.refused.lock() == [BadRequest::Headers]
    })
    .await;
    assert_eq!(status(&mut sender, connect(0)).await, StatusCode::OK);
    assert_eq!(far.refused.lock().len(), 1);
}

#[tokio::test]
async fn malformed_telemetry_headers_harm_nothing() {
    let far = Far::new(&HboneConfig::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let io = far.connect(move |request: Request| {
        let told = told.clone();
        async move {
            let bad = (
                request.baggage().is_err(),
                request.forwarded().is_err(),
                request.traceparent().is_err(),
            );
            told.lock().push(bad);
            drop(request.accept(None));
        }
    });
    let mut sender = h2_client(&far, io).await;
    let request = HttpRequest::connect("10.0.0.1:80")
        .header("baggage", "nonsense")
        .header("forwarded", "for=\"10.0.0.1:1\"")
        .header("forwarded", "for=\"10.0.0.2:1\"")
        .header("traceparent", "00-zz")
        .body(())
        .unwrap();
    assert_eq!(status(&mut sender, request).await, StatusCode::OK);
    assert_eq!(*seen.lock(), [(true, true, true)]);
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let far = Far::new(&HboneConfig::default());
    let mut raw = Raw::client(far.connect(|request: Request| async move {
        // An application that never answers.
        std::future::pending::<()>().await;
        drop(request);
    }))
    .await;
    for n in 0..2000u32 {
        let stream = 2 * n + 1;
        raw.connect(stream).await;
        if raw
            .try_send(RST_STREAM, 0, stream, &8u32.to_be_bytes())
            .await
            .is_err()
        {
            break;
        }
    }
    until("tasks are bounded", || far.drain.tasks() <= 401).await;
    let counted = far
        .refused
        .lock()
        .iter()
        .filter(|r| **r == BadRequest::TooMany)
        .count();
    let ended = !far.results.lock().is_empty();
    assert!(counted > 0 || ended);
}

#[tokio::test]
async fn a_handler_hears_that_the_request_was_given_up() {
    let far = Far::new(&HboneConfig::default());
    let (told, mut hears) = tokio::sync::mpsc::channel(1);
    let io = far.connect(move |mut request: Request| {
        let told = told.clone();
        async move {
            request.cancelled().await;
            told.send(()).await.unwrap();
        }
    });
    let mut raw = Raw::client(io).await;
    raw.connect(1).await;
    raw.send(RST_STREAM, 0, 1, &8u32.to_be_bytes()).await;
    hears.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_a_deadline() {
    let cfg = HboneConfig::default();
    // No preface; half of one; no request.
    let far = Far::new(&cfg);
    let _silent = far.connect(echo);
    let mut half = far.connect(echo);
    half.write_all(b"PRI * HTTP").await.unwrap();
    tokio::time::sleep(cfg.handshake_deadline + Duration::from_secs(1)).await;
    let results = far.results.lock().clone();
    assert!(
        matches!(
            results[..],
            [
                Err(HboneError::HandshakeDeadline),
                Err(HboneError::HandshakeDeadline)
            ]
        ),
        "{results:?}"
    );
    let far = Far::new(&cfg);
    let mut raw = Raw::client(far.connect(echo)).await;
    let goaway = raw.next(GOAWAY).await.unwrap();
    assert_eq!(goaway.code(), 0);
}

/// The peer ends the tunnel while a PING is on its way, which then has no pong and is nobody's fault.
#[tokio::test(start_paused = true)]
async fn an_end_that_overtakes_a_pong_is_an_end() {
    let far = Far::new(&HboneConfig::default());
    let mut raw = Raw::client(far.connect(echo)).await;
    raw.next(PING).await.unwrap();
    drop(raw);
    until("the tunnel has ended", || !far.results.lock().is_empty()).await;
    let results = far.results.lock().clone();
    assert!(matches!(results[..], [Ok(())]), "{results:?}");
}

#[tokio::test]
async fn garbage_is_refused() {
    let far = Far::new(&HboneConfig::default());
    let mut io = far.connect(echo);
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.unwrap();
    until("it is told", || far.results.lock().len() == 1).await;
    assert!(matches!(
        far.results.lock()[0],
        Err(HboneError::Handshake(_))
    ));
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_sends_new_ones_elsewhere() {
    let cfg = HboneConfig::default();
    let (old, new, pool) = (Far::new(&cfg), Far::new(&cfg), pool(&cfg));
    let (mut reader, mut writer) = works(old.open(&pool, &key(1)).await.unwrap().stream).await;
    let draining = old.drain.clone();
    let (outcome, ()) = tokio::join!(draining.run(Duration::from_secs(20)), async {
        // Whether GOAWAY is there already or not, the next stream is served.
        tokio::time::sleep(Duration::from_millis(20)).await;
        works(new.open(&pool, &key(1)).await.unwrap().stream).await;
        assert_eq!(new.dials(), 1);
        ping_pong(&mut reader, &mut writer).await;
        leyline_net::copy::Writer::finish(&mut writer)
            .await
            .unwrap();
        assert_eq!(reader.read().await.unwrap(), None);
    });
    assert_eq!(outcome, DrainOutcome::Finished);
    assert!(matches!(old.results.lock()[..], [Ok(())]));
}

#[tokio::test]
async fn a_forced_drain_resets_what_is_left() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let (mut reader, _writer) = works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    let outcome = far.drain.run(Duration::from_millis(50)).await;
    assert_eq!(outcome, DrainOutcome::Forced { tasks: 1 });
    assert_eq!(
        reader.read().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    until("the tunnel is forgotten", || pool.stats().keys == 0).await;
}

/// A reader that has taken a chunk and not asked for the next has not given its window back.
#[tokio::test]
async fn the_window_is_given_back_by_the_next_read() {
    let cfg = HboneConfig {
        stream_window: 64 << 10,
        ..HboneConfig::default()
    };
    let far = Far::new(&cfg);
    let (go, gate) = tokio::sync::mpsc::channel::<()>(1);
    let gate = Arc::new(tokio::sync::Mutex::new(gate));
    let io = far.connect(move |request: Request| {
        let gate = gate.clone();
        async move {
            let (mut reader, _writer) = request.accept(None).unwrap().into_split();
            let mut gate = gate.lock().await;
            while gate.recv().await.is_some() {
                reader.read().await.unwrap();
            }
        }
    });
    let mut raw = Raw::client(io).await;
    raw.connect(1).await;
    raw.next(HEADERS).await.unwrap();
    for _ in 0..4 {
        raw.send(DATA, 0, 1, &[0; 16_000]).await;
    }
    let mut update = Box::pin(raw.next(WINDOW_UPDATE));
    for reads in 1..=2 {
        go.send(()).await.unwrap();
        let told = tokio::time::timeout(Duration::from_millis(50), update.as_mut()).await;
        assert_eq!(told.is_ok(), reads == 2, "after read {reads}");
        if let Ok(frame) = told {
            // The first chunk and no more.
            assert_eq!(frame.unwrap().payload, 16_000u32.to_be_bytes());
        }
    }
}
