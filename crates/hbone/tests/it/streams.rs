//! What bytes go through, how streams end, and how much of them is held.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use leyline_hbone::{
    Baggage, DialError, HboneConfig, HboneStream, Opened, Pool, TunnelUse,
    server::{self, Request},
};
use leyline_net::copy::{Reader, Writer};
use leyline_runtime::{Drain, spawn};
use tokio::sync::mpsc;
use tracing::Span;

use crate::{
    raw::{HEADERS, Raw, WINDOW_UPDATE},
    support::{Far, PIPE, echo, expect, key, pool, read_all, request, works},
};

/// Opens a stream to a handler that hands its end over.
async fn joined(cfg: &HboneConfig) -> (HboneStream, HboneStream, Pool) {
    let (far_end, mut far_ends) = mpsc::channel(8);
    let far = Far::new(cfg);
    let pool = pool(cfg);
    let opened = pool
        .open(&key(1), request(), move || async move {
            Ok::<_, DialError>(far.connect(move |request: Request| {
                let far_end = far_end.clone();
                async move { far_end.send(request.accept(None).unwrap()).await.unwrap() }
            }))
        })
        .await
        .unwrap();
    (opened.stream, far_ends.recv().await.unwrap(), pool)
}

#[tokio::test]
async fn headers_reach_both_ends_and_bytes_come_back() {
    let cfg = HboneConfig::default();
    let far = Far::new(&cfg);
    let pool = pool(&cfg);
    let mut request = request();
    request.forwarded_host = Some("web.shop".into());
    request.baggage = Some("service.name=client".to_owned());
    let opened = pool
        .open(&key(1), request, move || async move {
            Ok::<_, DialError>(far.connect(|request: Request| async move {
                assert_eq!(request.authority().to_string(), "10.0.0.1:80");
                let forwarded = request.forwarded().unwrap().unwrap();
                assert_eq!(forwarded.client.to_string(), "10.0.1.1:4000");
                assert_eq!(forwarded.host.unwrap(), "web.shop");
                assert_eq!(request.baggage().unwrap().unwrap().service, "client");
                assert_eq!(request.traceparent().unwrap().unwrap().flags, 0);
                let (mut reader, mut writer) = request
                    .accept(Some("service.name=server"))
                    .unwrap()
                    .into_split();
                let data = reader.read().await.unwrap().unwrap();
                writer.write(data).await.unwrap();
                writer.finish().await.unwrap();
                read_all(&mut reader).await.unwrap();
            }))
        })
        .await
        .unwrap();
    let Opened {
        stream,
        baggage,
        tunnel,
    } = opened;
    assert_eq!(tunnel, TunnelUse::New);
    let baggage = Baggage::parse(baggage.unwrap().as_bytes()).unwrap();
    assert_eq!(baggage.service, "server");
    let (mut reader, mut writer) = works(stream).await;
    assert_eq!(reader.read().await.unwrap(), None);
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn either_direction_may_end_first() {
    for near_first in [true, false] {
        let (near, far, _pool) = joined(&HboneConfig::default()).await;
        let (first, second) = if near_first { (near, far) } else { (far, near) };
        let (mut first_in, mut first_out) = first.into_split();
        let (mut second_in, mut second_out) = second.into_split();
        first_out.write(Bytes::from_static(b"over")).await.unwrap();
        first_out.finish().await.unwrap();
        assert_eq!(read_all(&mut second_in).await.unwrap(), b"over");
        // The other direction goes on for as long as it likes.
        for _ in 0..3 {
            second_out
                .write(Bytes::from_static(b"still"))
                .await
                .unwrap();
            expect(&mut first_in, b"still").await;
        }
        second_out.finish().await.unwrap();
        assert_eq!(first_in.read().await.unwrap(), None);
        assert!(first_out.write(Bytes::from_static(b"x")).await.is_err());
    }
}

#[tokio::test]
async fn an_abort_is_a_reset_and_not_an_end() {
    for near_aborts in [true, false] {
        let (near, far, _pool) = joined(&HboneConfig::default()).await;
        let (one, other) = if near_aborts {
            (near, far)
        } else {
            (far, near)
        };
        let (_one_in, mut one_out) = one.into_split();
        let (mut other_in, mut other_out) = other.into_split();
        one_out.write(Bytes::from_static(b"part")).await.unwrap();
        expect(&mut other_in, b"part").await;
        one_out.abort();
        let error = other_in.read().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let error = other_out.write(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(
            error.to_string().contains("cancel") || error.to_string().contains("no longer needed"),
            "{error}"
        );
        assert!(one_out.write(Bytes::from_static(b"x")).await.is_err());
    }
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset() {
    for near_drops in [true, false] {
        let (near, far, _pool) = joined(&HboneConfig::default()).await;
        let (one, other) = if near_drops { (near, far) } else { (far, near) };
        drop(one);
        let (mut other_in, _other_out) = other.into_split();
        let error = other_in.read().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_writer_that_waits_for_room_hears_of_the_reset() {
    let (near, far, _pool) = joined(&small_windows()).await;
    let (_near_in, mut near_out) = near.into_split();
    let (_far_in, mut far_out) = far.into_split();
    let stuck = near_out.write(Bytes::from(vec![0; 1 << 20]));
    let (result, ()) = tokio::join!(stuck, async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        far_out.abort();
    });
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

fn small_windows() -> HboneConfig {
    HboneConfig {
        stream_window: 128 << 10,
        connection_window: 256 << 10,
        send_buffer: 64 << 10,
        ..HboneConfig::default()
    }
}

/// Byte `at` of a stream that never repeats soon.
pub(crate) fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) >> 3) as u8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_pass_a_slow_reader_in_bounded_memory() {
    const TOTAL: usize = 100 << 20;
    let cfg = small_windows();
    let held_at_most = cfg.stream_window as usize + cfg.send_buffer + PIPE + (128 << 10);
    let (near, far, _pool) = joined(&cfg).await;
    let (mut reader, _far_out) = far.into_split();
    let (_near_in, mut writer) = near.into_split();

    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let drain = Drain::new();
    drop(spawn("writer", Span::none(), &drain, async move {
        let mut at = 0;
        while at < TOTAL {
            let len = (100 << 10).min(TOTAL - at);
            let chunk: Vec<u8> = (at..at + len).map(pattern).collect();
            writer.write(chunk.into()).await.unwrap();
            at += len;
            count.store(at, Ordering::Relaxed);
        }
        writer.finish().await.unwrap();
        // Kept until the reader has seen the end.
        writer
    }));

    let mut read = 0;
    let mut most_held = 0;
    let mut chunks = 0u32;
    while let Some(chunk) = reader.read().await.unwrap() {
        for (offset, byte) in chunk.iter().enumerate().step_by(97) {
            assert_eq!(*byte, pattern(read + offset));
        }
        read += chunk.len();
        chunks += 1;
        if chunks.is_multiple_of(200) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        most_held = most_held.max(written.load(Ordering::Relaxed).saturating_sub(read));
    }
    assert_eq!(read, TOTAL);
    assert!(most_held <= held_at_most, "{most_held} > {held_at_most}");
}

#[tokio::test]
async fn what_is_not_read_is_not_credited() {
    let cfg = small_windows();
    let (near, far, _pool) = joined(&cfg).await;
    let (_near_in, mut writer) = near.into_split();
    let (mut reader, _far_out) = far.into_split();
    let mut written = 0;
    // Until it waits for good.
    while let Ok(result) = tokio::time::timeout(
        Duration::from_millis(100),
        writer.write(Bytes::from(vec![1; 8 << 10])),
    )
    .await
    {
        result.unwrap();
        written += 8 << 10;
    }
    let most = cfg.stream_window as usize + cfg.send_buffer + (8 << 10);
    assert!(written <= most, "{written}");
    // The chunk in hand is not credited before the next read.
    let first = reader.read().await.unwrap().unwrap();
    assert!(!first.is_empty());
    assert!(reader.read().now_or_never().is_some());
}

#[tokio::test]
async fn a_stream_that_is_not_read_does_not_stop_another() {
    let cfg = small_windows();
    let (far_end, mut far_ends) = mpsc::channel(8);
    let far = Far::new(&cfg);
    let pool = pool(&cfg);
    let mut near_ends = Vec::new();
    for _ in 0..2 {
        let (far, far_end) = (far.clone(), far_end.clone());
        let opened = pool
            .open(&key(1), request(), move || async move {
                Ok::<_, DialError>(far.connect(move |request: Request| {
                    let far_end = far_end.clone();
                    async move { far_end.send(request.accept(None).unwrap()).await.unwrap() }
                }))
            })
            .await
            .unwrap();
        near_ends.push((opened.stream, far_ends.recv().await.unwrap()));
    }
    assert_eq!(pool.stats().tunnels, 1);
    let (unread_near, _unread_far) = near_ends.remove(0);
    let (near, far) = near_ends.remove(0);
    let (_unread_in, mut unread) = unread_near.into_split();
    let stuck = tokio::time::timeout(
        Duration::from_millis(100),
        unread.write(Bytes::from(vec![0; 1 << 20])),
    );
    assert!(stuck.await.is_err());
    let (_near_in, mut writer) = near.into_split();
    let (mut reader, _far_out) = far.into_split();
    let data: Vec<u8> = (0..2 << 20).map(pattern).collect();
    let (sent, got) = tokio::join!(
        async {
            writer.write(data.clone().into()).await?;
            writer.finish().await
        },
        read_all(&mut reader)
    );
    sent.unwrap();
    assert!(got.unwrap() == data);
}

#[tokio::test]
async fn futures_of_a_stream_are_small() {
    let cfg = HboneConfig::default();
    let far = Far::new(&cfg);
    let pool = pool(&cfg);
    let at = key(1);
    let dialler = far.clone();
    let open = pool.open(&at, request(), move || async move {
        Ok::<_, DialError>(dialler.connect(echo))
    });
    let size = size_of_val(&open);
    assert!(size <= 2560, "open: {size}");
    let (mut reader, mut writer) = open.await.unwrap().stream.into_split();
    let size = size_of_val(&reader.read());
    assert!(size <= 64, "read: {size}");
    let size = size_of_val(&writer.write(Bytes::new()));
    assert!(size <= 256, "write: {size}");
    let (_near, io) = tokio::io::duplex(1);
    let drain = Drain::new();
    let size = size_of_val(&server::serve(io, &cfg, &drain, echo, |_| {}));
    assert!(size <= 4096, "serve: {size}");
}

/// Writes 8 KiB pieces to a peer that allows everything and reads nothing, and says how many were taken.
async fn taken_by_a_peer_that_does_not_read(limit: Option<usize>) -> usize {
    const EVERYTHING: u32 = (1 << 31) - 1;
    const PIECE: usize = 8 << 10;
    let cfg = HboneConfig::default();
    let pool = pool(&cfg);
    let (near, far) = tokio::io::duplex(PIPE);
    let mut peer = tokio::task::JoinSet::new();
    peer.spawn(async move {
        let mut raw = Raw::server(far, &[(4, EVERYTHING)]).await;
        let all = (EVERYTHING - 65_535).to_be_bytes();
        raw.send(WINDOW_UPDATE, 0, 0, &all).await;
        let request = raw.next(HEADERS).await.unwrap();
        raw.respond_200(request.stream).await;
        // Kept open.
        std::future::pending::<()>().await;
        drop(raw);
    });
    let key = key(1);
    let opened = pool.open(
        &key,
        request(),
        move || async move { Ok::<_, DialError>(near) },
    );
    let mut stream = opened.await.unwrap().stream;
    if let Some(limit) = limit {
        stream.limit_send(limit);
    }
    let (_reader, mut writer) = stream.into_split();
    let mut taken = 0;
    // Without a timer nothing else is left to happen once a write waits.
    let soon = Duration::from_millis(200);
    while tokio::time::timeout(soon, writer.write(Bytes::from(vec![0; PIECE])))
        .await
        .is_ok()
    {
        taken += PIECE;
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_peer_that_does_not_read_can_be_made_small() {
    let by_default = taken_by_a_peer_that_does_not_read(None).await;
    assert!(
        by_default >= HboneConfig::default().send_buffer,
        "{by_default}"
    );
    let limited = taken_by_a_peer_that_does_not_read(Some(32 << 10)).await;
    // The pipe and the gathered frames hold some more.
    assert!(limited <= (32 << 10) + 2 * PIPE, "{limited}");
}

#[tokio::test]
async fn a_small_limit_loses_nothing() {
    let cfg = HboneConfig::default();
    let (mut near, far, _pool) = joined(&cfg).await;
    near.limit_send(1000);
    let (_near_reader, mut writer) = near.into_split();
    let (mut reader, _far_writer) = far.into_split();
    let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let send = async {
        writer.write(Bytes::from(sent.clone())).await.unwrap();
        writer.finish().await.unwrap();
    };
    let ((), got) = tokio::join!(send, read_all(&mut reader));
    assert!(got.unwrap() == sent);
}

#[tokio::test]
async fn a_writer_at_its_limit_learns_of_a_reset() {
    let cfg = HboneConfig {
        stream_window: 65_535,
        ..HboneConfig::default()
    };
    let (mut near, far, _pool) = joined(&cfg).await;
    near.limit_send(1000);
    let (_near_reader, mut writer) = near.into_split();
    let reset = async {
        let (mut reader, mut far_writer) = far.into_split();
        reader.read().await.unwrap();
        far_writer.abort();
    };
    let write = writer.write(Bytes::from(vec![0; 1 << 20]));
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(write, reset).0
    });
    let error = waited.await.expect("waits for ever").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
