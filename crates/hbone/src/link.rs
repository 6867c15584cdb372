//! The transport below HTTP/2. It gathers small writes, so that the frames of one turn of the tunnel's task become one
//! TLS record and one system call, and it counts bytes, as signs of life and of load, and frames that say no.
//!
//! h2 flushes after nearly every frame. Once the tunnel's task runs it takes flushing over: h2's flushes are answered
//! at once, and the task calls [`LinkHandle::poll_flush`] when h2 has nothing more to say.

mod answers;
mod frames;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use self::{
    answers::Answers,
    frames::{Direction, Frames, Seen},
};

/// Writes are gathered up to one TLS record; larger ones gain nothing from being copied.
const GATHER: usize = 16 << 10;
/// Slices handed to the transport at once: what is gathered, a frame's head and its payload, and some more.
const SLICES: usize = 8;

/// What h2 owns.
pub(crate) struct Link<IO> {
    shared: Arc<Shared<IO>>,
}

/// What the tunnel's task keeps.
pub(crate) struct LinkHandle<IO> {
    shared: Arc<Shared<IO>>,
}

/// Bytes that have passed so far; never locked.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    /// Microseconds of the tunnel's task.
    worked: AtomicU64,
}

impl Traffic {
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn both(&self) -> u64 {
        self.received() + self.sent.load(Ordering::Relaxed)
    }

    /// How long the tunnel's task has had its turns.
    pub(crate) fn worked(&self) -> Duration {
        Duration::from_micros(self.worked.load(Ordering::Relaxed))
    }

    /// A turn began at `start` and ends now.
    pub(crate) fn turn(&self, start: Instant) {
        let micros = start.elapsed().as_micros();
        Self::add(&self.worked, usize::try_from(micros).unwrap_or(usize::MAX));
    }

    /// Only the tunnel's task counts, so that load and store need not be one operation.
    fn add(counter: &AtomicU64, more: usize) {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        counter.store(
            counter.load(Ordering::Relaxed).saturating_add(more),
            Ordering::Relaxed,
        );
    }
}

struct Shared<IO> {
    /// Never contended: h2 and the task that holds the handle are polled by the same task.
    gathering: Mutex<Gathering<IO>>,
    /// Whether the task flushes.
    held: AtomicBool,
    traffic: Arc<Traffic>,
}

struct Gathering<IO> {
    io: IO,
    pending: BytesMut,
    /// Something was written since the transport was last flushed.
    dirty: bool,
    sent: Frames,
    received: Frames,
    /// Of a server.
    answers: Option<Answers>,
    /// The peer has taken notice of SETTINGS.
    settings_acked: bool,
}

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// Wraps a transport.
pub(crate) fn new<IO>(io: IO, end: End) -> (Link<IO>, LinkHandle<IO>) {
    let (sent, received) = match end {
        End::Client => (Frames::of_client(), Frames::of_server()),
        End::Server => (Frames::of_server(), Frames::of_client()),
    };
    let shared = Arc::new(Shared {
        gathering: Mutex::new(Gathering {
            io,
            pending: BytesMut::new(),
            dirty: false,
            sent,
            received,
            answers: (end == End::Server).then(Answers::default),
            settings_acked: false,
        }),
        held: AtomicBool::new(false),
        traffic: Arc::default(),
    });
    let link = Link {
        shared: shared.clone(),
    };
    (link, LinkHandle { shared })
}

impl<IO: AsyncRead + AsyncWrite + Unpin> LinkHandle<IO> {
    /// From now on only `poll_flush` of this handle flushes.
    pub(crate) fn hold(&self) {
        self.shared.held.store(true, Ordering::Relaxed);
    }

    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        self.shared.traffic.clone()
    }

    /// A request was handed out, and will be answered.
    pub(crate) fn await_answer(&self, stream: u32) {
        if let Some(answers) = &mut self.shared.gathering.lock().answers {
            answers.await_for(stream);
        }
    }

    /// Takes one of the requests that h2 has answered because their header list is too large.
    pub(crate) fn take_too_large(&self) -> bool {
        let answers = &mut self.shared.gathering.lock().answers;
        answers.as_mut().is_some_and(Answers::take_too_large)
    }

    /// Whether the peer has taken notice of SETTINGS since this was asked last.
    pub(crate) fn take_settings_acked(&self) -> bool {
        std::mem::take(&mut self.shared.gathering.lock().settings_acked)
    }

    /// Sends what was gathered.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.gathering.lock().poll_flush(cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Gathering<IO> {
    /// Sends `pending`, then as much of `bufs` as the transport takes.
    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.dirty = true;
        while !self.pending.is_empty() {
            let written = if self.io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let all = std::iter::once(&self.pending[..]).chain(bufs.iter().map(|b| &b[..]));
                for (slice, buf) in slices.iter_mut().zip(all) {
                    *slice = IoSlice::new(buf);
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
            } else {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.pending))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let gathered = written.min(self.pending.len());
            self.pending.advance(gathered);
            if written > gathered {
                return Poll::Ready(Ok(written - gathered));
            }
        }
        match bufs {
            [] => Poll::Ready(Ok(0)),
            [buf] => Pin::new(&mut self.io).poll_write(cx, buf),
            bufs if self.io.is_write_vectored() => {
                Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
            }
            [buf, ..] => Pin::new(&mut self.io).poll_write(cx, buf),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.pending.len() + len <= GATHER {
            for buf in bufs {
                self.pending.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(len));
        }
        self.poll_send(cx, bufs)
    }

    /// Of `bufs` so many bytes are on their way.
    fn follow_sent(&mut self, bufs: &[IoSlice<'_>], mut written: usize) {
        let (sent, answers) = (&mut self.sent, &mut self.answers);
        for buf in bufs {
            let taken = buf.get(..written.min(buf.len())).unwrap_or_default();
            sent.follow(taken, |seen| {
                frames::count(Direction::Sent, seen);
                if let Some(answers) = answers {
                    answers.sent(seen);
                }
            });
            written -= taken.len();
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.pending.is_empty() {
            ready!(self.poll_send(cx, &[]))?;
        }
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Link<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut gathering = self.shared.gathering.lock();
        let result = Pin::new(&mut gathering.io).poll_read(cx, buf);
        let arrived = buf.filled().get(before..).unwrap_or_default();
        let Gathering {
            received,
            answers,
            settings_acked,
            ..
        } = &mut *gathering;
        received.follow(arrived, |seen| {
            frames::count(Direction::Received, seen);
            *settings_acked |= seen == Seen::SettingsAck;
            if let Some(answers) = answers {
                answers.received(seen);
            }
        });
        drop(gathering);
        Traffic::add(&self.shared.traffic.received, buf.filled().len() - before);
        result
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Link<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathering = self.shared.gathering.lock();
        let written = ready!(gathering.poll_write(cx, bufs))?;
        gathering.follow_sent(bufs, written);
        drop(gathering);
        Traffic::add(&self.shared.traffic.sent, written);
        Poll::Ready(Ok(written))
    }

    /// Always, so that h2 hands a frame's head and payload over together.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.held.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.shared.gathering.lock().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.shared.gathering.lock();
        ready!(gathering.poll_flush(cx))?;
        Pin::new(&mut gathering.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
