//! A stream as tokio's `AsyncRead` and `AsyncWrite`, for who speaks a protocol of its own inside of it: the waypoint's
//! HTTP server and client. What only passes bytes on uses the halves, which do not copy.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::Reason;
use leyline_net::copy::Writer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{HboneReader, HboneStream, HboneWriter, WriterState};
use crate::error::stream_error;

/// Both directions of a stream as one byte stream. Dropping it before both have ended resets the stream.
#[derive(Debug)]
pub struct HboneIo {
    reader: HboneReader,
    writer: HboneWriter,
    /// Received and not yet read.
    unread: Bytes,
}

impl HboneStream {
    /// The stream as bytes.
    pub fn into_io(self) -> HboneIo {
        HboneIo {
            reader: self.reader,
            writer: self.writer,
            unread: Bytes::new(),
        }
    }
}

impl HboneIo {
    /// Puts bytes back that were read, so that they are read again first.
    pub fn unread(&mut self, bytes: Bytes) {
        self.unread = if self.unread.is_empty() {
            bytes
        } else {
            [bytes, std::mem::take(&mut self.unread)].concat().into()
        };
    }

    /// Ends the stream so that the peer knows it is incomplete.
    pub fn abort(&mut self) {
        self.writer.abort();
    }

    /// The halves again, and what was put back and not read.
    pub fn into_split(self) -> (Bytes, HboneReader, HboneWriter) {
        (self.unread, self.reader, self.writer)
    }
}

impl AsyncRead for HboneIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            this.reader.release()?;
            match ready!(this.reader.poll_read(cx))? {
                Some(data) => this.unread = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writer.poll_send(cx, buf.len(), |room| {
            Bytes::copy_from_slice(prefix(buf, room))
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = bufs.iter().map(|buf| buf.len()).sum();
        self.get_mut().writer.poll_send(cx, total, |room| {
            let mut data = bytes::BytesMut::with_capacity(room);
            for buf in bufs {
                data.extend_from_slice(prefix(buf, room - data.len()));
            }
            data.freeze()
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was taken is on its way: the tunnel flushes by itself.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer.poll_finish(cx)
    }
}

fn prefix(buf: &[u8], most: usize) -> &[u8] {
    buf.get(..most).unwrap_or(buf)
}

impl HboneWriter {
    /// Sends as much as there is room for of `wanted` bytes, which `take` gives.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        take: impl FnOnce(usize) -> Bytes,
    ) -> Poll<io::Result<usize>> {
        self.open()?;
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        self.stream.reserve_capacity(wanted);
        let room = ready!(self.poll_room(cx, wanted))?;
        let data = take(room);
        let sent = data.remaining();
        match self.stream.send_data(data, false) {
            Ok(()) => Poll::Ready(Ok(sent)),
            Err(_) => Poll::Ready(Err(self.broken(cx).1)),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == WriterState::Finished {
            return Poll::Ready(Ok(()));
        }
        self.open()?;
        self.state = WriterState::Finished;
        match self.stream.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => match self.broken(cx) {
                // The peer has answered in full and wants no more (RFC 9113, 8.1).
                (Some(Reason::NO_ERROR), _) => Poll::Ready(Ok(())),
                (Some(_), broken) => Poll::Ready(Err(broken)),
                (None, _) => Poll::Ready(Err(stream_error(error))),
            },
        }
    }
}
