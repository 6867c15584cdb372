//! Refuses HTTP/1.1 requests that say their length twice, by `content-length` and by `transfer-encoding`: two servers could read
//! them in two ways (RFC 9112, 6.3 and 11.2). hyper reads the latter and hides the former, so that the bytes are looked at
//! before it sees them. A head with both is spoilt, and hyper answers it as any other that is not HTTP: 400, and the end of
//! the connection.
//!
//! For that one must know where heads begin: bodies are followed, no byte of them is looked at. What is not understood is
//! left to hyper from there on, and so are other protocols: HTTP/2, and whatever was asked for and granted. What follows such a
//! request waits for its answer, which [`Switch`] tells.

mod scan;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use futures::{FutureExt, task::AtomicWaker};
use http::{Method, Request, Response, StatusCode, Version, header::UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use leyline_hbone::HboneIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Duration, Sleep, sleep},
};
use tokio_util::io::poll_read_buf;
use tracing::debug;

use self::scan::{Answer, Scanner};

/// A client that was answered before all of its request was read may still be sending. If its connection were closed on that,
/// it would be reset, and what it was answered would be lost with it (RFC 9112, 9.6): what it sends is thrown away until it
/// ends its side, up to this much, for so long. It has a round trip to stop, and tunnels are within a cluster or two.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(1);

/// Where those who answer a connection's requests tell what became of one for another protocol.
#[derive(Debug, Default)]
pub(super) struct Switch {
    answer: Mutex<Option<Answer>>,
    reader: AtomicWaker,
    /// Of the last request whose wish was not granted. hyper gives the connection to it at its end all the same.
    declined: Mutex<Option<OnUpgrade>>,
    /// Whether the connection is another protocol's.
    is_switched: AtomicBool,
}

/// A request for another protocol, before it is answered.
pub(super) struct Asked {
    method: Method,
    upgrade: Option<OnUpgrade>,
}

impl Switch {
    /// What must be told of a request for another protocol.
    pub(super) fn asked<B>(request: &Request<B>) -> Option<Asked> {
        let is_asked =
            request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
        (is_asked && request.version() <= Version::HTTP_11).then(|| Asked {
            method: request.method().clone(),
            upgrade: request.extensions().get().cloned(),
        })
    }

    /// The answer; of one connection they come in order.
    pub(super) fn tell<B>(&self, asked: Asked, response: &Response<B>) {
        let status = response.status();
        let is_switched = status == StatusCode::SWITCHING_PROTOCOLS
            || (asked.method == Method::CONNECT && status.is_success());
        let answer = if is_switched {
            self.is_switched.store(true, Ordering::Release);
            Answer::Switched
        } else {
            *self.declined.lock() = asked.upgrade;
            Answer::Stays
        };
        *self.answer.lock() = Some(answer);
        self.reader.wake();
    }

    /// Ends a connection that hyper has served and given away unfinished, because a request on it once asked for another
    /// protocol; left alone it would be reset, and the last answer with it.
    pub(super) async fn finish(&self) {
        let declined = self.declined.lock().take();
        if let Some(upgrade) = declined
            && let Ok(connection) = upgrade.await
            && let Err(error) = TokioIo::new(connection).shutdown().await
        {
            debug!(%error, "HTTP connection did not end in order");
        }
    }
}

/// A connection whose requests have one length each.
#[derive(Debug)]
pub(super) struct Framed {
    io: HboneIo,
    scanner: Scanner,
    switch: Arc<Switch>,
    /// A head that is not complete, or what could not be handed on yet.
    kept: BytesMut,
    /// Bytes of it that may be handed on.
    cleared: usize,
    ending: Ending,
}

/// How far the end of a connection has got.
#[derive(Debug)]
enum Ending {
    NotYet,
    /// Our side is over, and the client's is read to its end.
    Lingers {
        left: usize,
        until: Pin<Box<Sleep>>,
    },
    Over,
}

impl Framed {
    pub(super) fn new(io: HboneIo, switch: Arc<Switch>) -> Self {
        Self {
            io,
            switch,
            scanner: Scanner::default(),
            kept: BytesMut::new(),
            cleared: 0,
            ending: Ending::NotYet,
        }
    }

    /// Reads behind what is kept. Whether there was anything.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.kept))?;
        if read == 0 {
            // The head has no end: as much of it as there is, for hyper to judge.
            self.cleared = self.kept.len();
            return Poll::Ready(Ok(false));
        }
        self.cleared = self.scanner.clear(&mut self.kept);
        Poll::Ready(Ok(true))
    }
}

impl AsyncRead for Framed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.cleared > 0 {
                let count = this.cleared.min(buf.remaining());
                buf.put_slice(this.kept.get(..count).unwrap_or_default());
                this.kept.advance(count);
                this.cleared -= count;
                return Poll::Ready(Ok(()));
            }
            if this.scanner.awaits_answer() {
                this.switch.reader.register(cx.waker());
                let answer = this.switch.answer.lock().take();
                if let Some(answer) = answer {
                    this.scanner.answered(answer);
                    this.cleared = this.scanner.clear(&mut this.kept);
                    continue;
                }
                if !this.kept.is_empty() {
                    return Poll::Pending;
                }
            } else if !this.kept.is_empty() {
                if !ready!(this.poll_more(cx))? && this.cleared == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // Nothing is kept: as a rule whole heads come at once, and nothing is copied.
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = buf.filled_mut().get_mut(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let cleared = this.scanner.clear(fresh);
            let rest = fresh.get(cleared..).unwrap_or_default();
            if !rest.is_empty() {
                this.kept.extend_from_slice(rest);
                buf.set_filled(before + cleared);
            }
            if cleared > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Framed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.ending {
                Ending::NotYet => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    // Of another protocol somebody else reads, and each side ends for itself.
                    this.ending = if this.switch.is_switched.load(Ordering::Acquire) {
                        Ending::Over
                    } else {
                        Ending::Lingers {
                            left: LINGER_BYTES,
                            until: Box::pin(sleep(LINGER)),
                        }
                    };
                }
                Ending::Lingers { left, until } => {
                    let mut unwanted = [0; 4096];
                    let mut unwanted = ReadBuf::new(&mut unwanted);
                    let is_late = until.poll_unpin(cx).is_ready();
                    let read = match Pin::new(&mut this.io).poll_read(cx, &mut unwanted) {
                        Poll::Pending if !is_late => return Poll::Pending,
                        Poll::Ready(Ok(())) => unwanted.filled().len(),
                        Poll::Pending | Poll::Ready(Err(_)) => 0,
                    };
                    *left = left.saturating_sub(read);
                    if read == 0 || *left == 0 || is_late {
                        this.ending = Ending::Over;
                    }
                }
                Ending::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}
