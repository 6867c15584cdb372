//! Refuses HTTP/1.1 requests that say their length twice, by `content-length` and by `transfer-encoding`: two servers could read
//! them in two ways (RFC 9112, 6.3 and 11.2). hyper reads the latter and hides the former, so that the bytes are looked at
//! before it sees them. A head with both is spoilt, and hyper answers it as any other that is not HTTP: 400, and the end of
//! the connection.
//!
//! For that one must know where heads begin: bodies are followed, no byte of them is looked at. What is not understood is
//! left to hyper from there on, and so are other protocols: HTTP/2, tunnels, and whatever follows a request for an upgrade.

mod scan;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use leyline_hbone::HboneIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use self::scan::Scanner;

/// A connection whose requests have one length each.
#[derive(Debug)]
pub(super) struct Framed {
    io: HboneIo,
    scanner: Scanner,
    /// A head that is not complete, or what could not be handed on yet.
    kept: BytesMut,
    /// Bytes of it that may be handed on.
    cleared: usize,
}

impl Framed {
    pub(super) fn new(io: HboneIo) -> Self {
        Self {
            io,
            scanner: Scanner::default(),
            kept: BytesMut::new(),
            cleared: 0,
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
            if !this.kept.is_empty() {
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
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
