//! Peers of the pool that do unusual things.

use std::time::Duration;

use bytes::Bytes;
use leyline_hbone::{DialError, HboneConfig, HboneError, HboneStream, Pool};
use leyline_net::copy::{Reader, Writer};
use tokio::io::DuplexStream;

use crate::{
    raw::{ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE},
    support::{Far, PIPE, key, pool, read_all, request, works},
};

const MAX_CONCURRENT_STREAMS: u16 = 3;
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;

/// Opens a stream in a tunnel to `io`, if one has to be made.
async fn open_to(pool: &Pool, io: DuplexStream) -> Result<HboneStream, HboneError> {
    pool.open(
        &key(1),
        request(),
        move || async move { Ok::<_, DialError>(io) },
    )
    .await
    .map(|opened| opened.stream)
}

/// A pool with one open stream to a peer whose frames the test makes.
async fn raw_peer(cfg: &HboneConfig) -> (Pool, HboneStream, Raw) {
    let pool = pool(cfg);
    let (near, far) = tokio::io::duplex(PIPE);
    let (stream, raw) = tokio::join!(open_to(&pool, near), async {
        let mut raw = Raw::server(far, &[]).await;
        let stream = raw.next(HEADERS).await.unwrap().stream;
        raw.respond_200(stream).await;
        raw
    });
    (pool, stream.unwrap(), raw)
}

fn go_away(last: u32) -> Vec<u8> {
    [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat()
}

#[tokio::test]
async fn a_request_above_the_goaway_is_repeated_in_another_tunnel() {
    let cfg = HboneConfig::default();
    let (pool, first, mut raw) = raw_peer(&cfg).await;
    let far = Far::new(&cfg);
    let at = key(1);
    let (second, ()) = tokio::join!(far.open(&pool, &at), async {
        let stream = raw.next(HEADERS).await.unwrap().stream;
        raw.send(GOAWAY, 0, 0, &go_away(stream - 2)).await;
    });
    works(second.unwrap().stream).await;
    assert_eq!(far.dials(), 1);
    // The stream below it goes on.
    raw.send(DATA, END_STREAM, 1, b"rest").await;
    let (mut reader, _writer) = first.into_split();
    assert_eq!(read_all(&mut reader).await.unwrap(), b"rest");
}

#[tokio::test]
async fn a_tunnel_that_is_going_away_is_skipped() {
    let cfg = HboneConfig::default();
    let (pool, first, mut raw) = raw_peer(&cfg).await;
    raw.send(GOAWAY, 0, 0, &go_away(1)).await;
    raw.send(PING, 0, 0, &[0; 8]).await;
    while raw.next(PING).await.unwrap().flags & ACK == 0 {}
    let far = Far::new(&cfg);
    works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    assert_eq!(far.dials(), 1);
    drop(first);
}

#[tokio::test]
async fn a_refused_stream_is_repeated_once() {
    let cfg = HboneConfig::default();
    let (pool, _first, mut raw) = raw_peer(&cfg).await;
    let (near, far) = tokio::io::duplex(PIPE);
    let refuse = async |raw: &mut Raw| {
        let stream = raw.next(HEADERS).await.unwrap().stream;
        raw.send(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes())
            .await;
    };
    let (second, ()) = tokio::join!(open_to(&pool, near), async {
        refuse(&mut raw).await;
        let mut other = Raw::server(far, &[]).await;
        refuse(&mut other).await;
    });
    assert!(matches!(second, Err(HboneError::Tunnel(_))), "{second:?}");
}

#[tokio::test]
async fn the_peer_s_limit_of_streams_is_kept() {
    let cfg = HboneConfig::default();
    let pool = pool(&cfg);
    let (near, far) = tokio::io::duplex(PIPE);
    let peer = async {
        let mut raw = Raw::server(far, &[(MAX_CONCURRENT_STREAMS, 2)]).await;
        for _ in 0..2 {
            let stream = raw.next(HEADERS).await.unwrap().stream;
            raw.respond_200(stream).await;
        }
        // No third one comes.
        let third = tokio::time::timeout(Duration::from_millis(50), raw.next(HEADERS)).await;
        assert!(third.is_err());
        raw
    };
    let others = Far::new(&cfg);
    let opens = async {
        let first = open_to(&pool, near).await.unwrap();
        let at = key(1);
        let (second, third) = tokio::join!(others.open(&pool, &at), others.open(&pool, &at));
        (first, second.unwrap(), third.unwrap())
    };
    let (_raw, _streams) = tokio::join!(peer, opens);
    assert_eq!(others.dials(), 1);
}

#[tokio::test]
async fn a_no_error_reset_is_an_end_only_after_the_end() {
    let (_pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    raw.send(DATA, END_STREAM, 1, b"all").await;
    raw.send(RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes()).await;
    let (mut reader, mut writer) = stream.into_split();
    assert_eq!(read_all(&mut reader).await.unwrap(), b"all");
    writer.finish().await.unwrap();

    let (_pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    raw.send(DATA, 0, 1, b"part").await;
    raw.send(RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes()).await;
    let (mut reader, _writer) = stream.into_split();
    assert!(read_all(&mut reader).await.is_err());
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_not_an_end() {
    let (pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    raw.send(DATA, 0, 1, b"part").await;
    drop(raw);
    let (mut reader, _writer) = stream.into_split();
    let error = read_all(&mut reader).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    crate::support::until("the tunnel is forgotten", || pool.stats().keys == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_pongs_is_dead() {
    let cfg = HboneConfig::default();
    let (pool, stream, _raw) = raw_peer(&cfg).await;
    let (mut reader, _writer) = stream.into_split();
    let before = tokio::time::Instant::now();
    let error = reader.read().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(before.elapsed().as_secs(), 30);
    assert_eq!(pool.stats().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_data_is_alive_without_pongs() {
    let (_pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    let (mut reader, _writer) = stream.into_split();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        raw.send(DATA, 0, 1, b"x").await;
        reader.read().await.unwrap().unwrap();
    }
    assert!(reader.read().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_pongs_lives_on() {
    let (_pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    for _ in 0..20 {
        let ping = raw.next(PING).await.unwrap();
        raw.send(PING, ACK, 0, &ping.payload).await;
    }
    raw.send(DATA, END_STREAM, 1, b"all").await;
    let (mut reader, _writer) = stream.into_split();
    assert_eq!(read_all(&mut reader).await.unwrap(), b"all");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_and_a_stuck_one_run_into_deadlines() {
    let cfg = HboneConfig::default();
    let pool = pool(&cfg);
    // Takes the connection and says nothing.
    let (near, _far) = tokio::io::duplex(PIPE);
    let other = Far::new(&cfg);
    let at = key(1);
    let (first, waiter) = tokio::join!(open_to(&pool, near), other.open(&pool, &at));
    assert!(matches!(first, Err(HboneError::Tunnel(_))), "{first:?}");
    assert!(
        matches!(waiter, Err(HboneError::HandshakeDeadline)),
        "{waiter:?}"
    );
    // Never gives a connection.
    let stuck = pool
        .open(&key(2), request(), || {
            std::future::pending::<Result<DuplexStream, DialError>>()
        })
        .await;
    assert!(matches!(stuck, Err(HboneError::DialDeadline)), "{stuck:?}");
    // Never answers the request.
    let (near, far) = tokio::io::duplex(PIPE);
    let (unanswered, _raw) = tokio::join!(open_to(&pool, near), async {
        let mut raw = Raw::server(far, &[]).await;
        while let Some(frame) = raw.frame().await {
            if frame.kind == RST_STREAM {
                break;
            }
            if frame.kind == PING {
                raw.send(PING, ACK, 0, &frame.payload).await;
            }
        }
        raw
    });
    assert!(
        matches!(unanswered, Err(HboneError::ResponseDeadline)),
        "{unanswered:?}"
    );
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http2_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let pool = pool(&HboneConfig::default());
    let (near, mut far) = tokio::io::duplex(PIPE);
    let (result, ()) = tokio::join!(open_to(&pool, near), async move {
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
    });
    assert!(matches!(result, Err(HboneError::Tunnel(_))), "{result:?}");
    assert_eq!(pool.stats().keys, 0);
}

#[tokio::test]
async fn an_abort_is_cancel_on_the_wire_and_a_finish_is_end_stream() {
    let (_pool, stream, mut raw) = raw_peer(&HboneConfig::default()).await;
    let (_reader, mut writer) = stream.into_split();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    writer.finish().await.unwrap();
    let mut ended = false;
    while !ended {
        ended = raw.next(DATA).await.unwrap().flags & END_STREAM != 0;
    }
    writer.abort();
    let reset = raw.next(RST_STREAM).await.unwrap();
    assert_eq!(reset.code(), 8);
}

/// What the peer gives is what we use, in frames as large as it takes; and what we give is what the contract says.
#[tokio::test]
async fn windows_and_frames_are_as_advertised() {
    let pool = pool(&HboneConfig::default());
    let (near, far) = tokio::io::duplex(4 << 20);
    let (stream, mut raw) = tokio::join!(open_to(&pool, near), async {
        let window = (4u16, 300_000u32);
        let frame = (5u16, 100_000u32);
        let mut raw = Raw::server(far, &[window, frame]).await;
        let settings = raw.frame().await.unwrap();
        assert_eq!(settings.kind, SETTINGS);
        let value = |id: u16| {
            let mut pairs = settings.payload.chunks(6);
            let found = pairs.find(|pair| pair[..2] == id.to_be_bytes());
            found.map(|pair| u32::from_be_bytes(pair[2..].try_into().unwrap()))
        };
        assert_eq!(value(2), Some(0), "push");
        assert_eq!(value(4), Some(4 << 20), "stream window");
        assert_eq!(value(5), Some(1 << 20), "frame size");
        assert_eq!(value(6), Some(16 << 10), "header list");
        raw.send(SETTINGS, ACK, 0, &[]).await;
        let update = raw.next(WINDOW_UPDATE).await.unwrap();
        assert_eq!(update.payload, ((16u32 << 20) - 65_535).to_be_bytes());
        let stream = raw.next(HEADERS).await.unwrap().stream;
        raw.send(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes())
            .await;
        raw.respond_200(stream).await;
        raw
    });
    let (_reader, mut writer) = stream.unwrap().into_split();
    let wrote = tokio::time::timeout(
        Duration::from_millis(100),
        writer.write(Bytes::from(vec![7; 800_000])),
    );
    let (stuck, lengths) = tokio::join!(wrote, async {
        let mut lengths = Vec::new();
        while lengths.iter().sum::<usize>() < 300_000 {
            lengths.push(raw.next(DATA).await.unwrap().payload.len());
        }
        lengths
    });
    assert!(stuck.is_err());
    assert_eq!(lengths, [100_000, 100_000, 100_000]);
}
