//! Reads ahead of a consumer that asks for small pieces, as rustls does (4 KiB at a time), while data is plenty.
//!
//! A quiet connection holds no buffer: one is taken when a piece was filled to the brim, and given back at the first
//! read that found less than it asked for.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// Four TLS records: one system call instead of sixteen, and still within the L1 and L2 caches.
const AHEAD: usize = 64 << 10;

/// A TCP connection whose reads are served from memory where that saves system calls. Writes go straight through.
#[derive(Debug)]
pub struct ReadAhead {
    stream: TcpStream,
    /// Read and not yet taken; has no memory while the connection is quiet.
    buffer: BytesMut,
    /// Whether the last read got all it asked for.
    busy: bool,
}

impl ReadAhead {
    /// Wraps a connection.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            busy: false,
        }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// The connection alone; what was read ahead is lost.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn take(&mut self, into: &mut ReadBuf<'_>) {
        let length = self.buffer.len().min(into.remaining());
        into.put_slice(&self.buffer[..length]);
        self.buffer.advance(length);
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.buffer.is_empty() {
            this.take(into);
            return Poll::Ready(Ok(()));
        }
        let stream = Pin::new(&mut this.stream);
        if !this.busy {
            ready!(stream.poll_read(cx, into))?;
            this.busy = into.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        this.buffer.reserve(AHEAD);
        match poll_read_buf(stream, cx, &mut this.buffer) {
            Poll::Ready(result) => this.busy = result? > into.remaining(),
            Poll::Pending => {
                this.busy = false;
                this.buffer = BytesMut::new();
                return Poll::Pending;
            }
        }
        this.take(into);
        if !this.busy && this.buffer.is_empty() {
            this.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    #[tokio::test]
    async fn small_reads_get_every_byte_in_order() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        let mut sender = TcpSocket::new_v4().unwrap().connect(target).await.unwrap();
        let mut reader = ReadAhead::new(listener.accept().await.unwrap().0);
        let sent: Vec<u8> = (0..500_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let send = async move {
            sender.write_all(&sent).await.unwrap();
            sender.shutdown().await.unwrap();
        };
        let receive = async {
            let mut got = Vec::new();
            let mut piece = [0; 1000];
            loop {
                match reader.read(&mut piece).await.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
            got
        };
        let ((), got) = tokio::join!(send, receive);
        assert!(got == expected, "got {} bytes", got.len());
    }
}
