use std::collections::VecDeque;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Takes writes up to a size each, and remembers them.
#[derive(Default)]
struct Scripted {
    writes: Vec<Vec<u8>>,
    /// Most bytes of each write to come; nothing left means pending.
    room: VecDeque<usize>,
    flushes: usize,
    vectored: bool,
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buf.put_slice(b"abc");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(room) = self.room.pop_front() else {
            return Poll::Pending;
        };
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let taken = all.len().min(room);
        self.writes.push(all[..taken].to_vec());
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn scripted(room: &[usize], vectored: bool) -> (Link<Scripted>, LinkHandle<Scripted>) {
    let (link, handle) = new(
        Scripted {
            room: room.iter().copied().collect(),
            vectored,
            ..Scripted::default()
        },
        End::Client,
    );
    handle.hold();
    (link, handle)
}

async fn flush(handle: &LinkHandle<Scripted>) -> io::Result<()> {
    std::future::poll_fn(|cx| handle.poll_flush(cx)).await
}

#[tokio::test]
async fn small_writes_become_one() {
    let (mut link, handle) = scripted(&[usize::MAX], true);
    for _ in 0..10 {
        link.write_all(&[7; 100]).await.unwrap();
        link.flush().await.unwrap();
    }
    assert!(handle.shared.gathering.lock().io.writes.is_empty());
    flush(&handle).await.unwrap();
    let gathering = handle.shared.gathering.lock();
    assert_eq!(gathering.io.writes, vec![vec![7; 1000]]);
    assert_eq!(gathering.io.flushes, 1);
}

#[tokio::test]
async fn keeps_order_whatever_the_transport_takes() {
    for vectored in [false, true] {
        let rooms: Vec<usize> = std::iter::repeat_n([1, 50, 99, 7000, 20_000], 40)
            .flatten()
            .collect();
        let (mut link, handle) = scripted(&rooms, vectored);
        let mut expected = Vec::new();
        for (round, size) in [3usize, 200, 16_384, 1, 40_000, 300, 17_000]
            .into_iter()
            .enumerate()
        {
            let data: Vec<u8> = (0..size).map(|i| (i + round) as u8).collect();
            link.write_all(&data).await.unwrap();
            expected.extend(data);
        }
        flush(&handle).await.unwrap();
        let gathering = handle.shared.gathering.lock();
        assert_eq!(
            gathering.io.writes.concat(),
            expected,
            "vectored {vectored}"
        );
    }
}

#[tokio::test]
async fn a_stalled_transport_stalls_the_writer() {
    let (mut link, _handle) = scripted(&[], true);
    let mut written = 0;
    while let Some(result) = link.write_all(&[0; 1000]).now_or_never() {
        result.unwrap();
        written += 1000;
    }
    assert!(written <= GATHER, "{written}");
}

#[tokio::test]
async fn counts_what_is_received() {
    let (mut link, handle) = scripted(&[], true);
    let mut buf = [0; 8];
    link.read_exact(&mut buf[..3]).await.unwrap();
    assert_eq!(handle.traffic().received(), 3);
}
