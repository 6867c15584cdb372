//! A TCP connection as the two halves that [`crate::copy`] moves bytes between.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tracing::debug;

use crate::{
    copy::{Reader, Writer},
    sockopt,
};

/// Size of a connection's first read: a small request or reply.
const READ_MIN: usize = 4 << 10;
/// Largest read: with the 9 bytes of an HTTP/2 frame head exactly 16 TLS records, still within the L2 cache.
const READ_MAX: usize = (256 << 10) - 9;

/// Splits a connection.
pub fn into_split(stream: TcpStream) -> (TcpReader, TcpWriter) {
    into_split_reading(stream, READ_MAX)
}

/// Splits a connection that reads at most `most` bytes at once. A connection whose other side does not take what was read
/// holds that much, so a process that has many of them makes it small.
pub fn into_split_reading(stream: TcpStream, most: usize) -> (TcpReader, TcpWriter) {
    let (read, write) = stream.into_split();
    (
        TcpReader {
            half: read,
            size: READ_MIN,
            most: most.clamp(READ_MIN, READ_MAX),
        },
        TcpWriter {
            half: Some(write),
            finished: false,
        },
    )
}

/// The receiving half. Holds no buffer while it waits, and reads in larger pieces as long as they are filled.
#[derive(Debug)]
pub struct TcpReader {
    half: OwnedReadHalf,
    size: usize,
    most: usize,
}

impl Reader for TcpReader {
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        self.half.readable().await?;
        let mut buffer = BytesMut::with_capacity(self.size);
        if self.half.read_buf(&mut buffer).await? == 0 {
            return Ok(None);
        }
        if buffer.len() >= self.size {
            self.size = (self.size * 4).min(self.most);
        }
        let chunk = buffer.freeze();
        Ok(Some(chunk))
    }
}

/// The sending half. Dropping it before it was finished resets the connection: a task that is cut must not look like an
/// end to the peer.
#[derive(Debug)]
pub struct TcpWriter {
    /// Absent once aborted.
    half: Option<OwnedWriteHalf>,
    /// The peer has been told that nothing follows.
    finished: bool,
}

impl Writer for TcpWriter {
    async fn write(&mut self, data: Bytes) -> io::Result<()> {
        self.half()?.write_all(&data).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.half()?.shutdown().await?;
        self.finished = true;
        Ok(())
    }

    fn abort(&mut self) {
        if let Some(half) = self.half.take() {
            if let Err(error) = sockopt::reset_on_close(half.as_ref()) {
                debug!(%error, "a connection was gone before it could be reset");
            }
            // Dropping it would send FIN first.
            half.forget();
        }
    }
}

impl TcpWriter {
    fn half(&mut self) -> io::Result<&mut OwnedWriteHalf> {
        self.half
            .as_mut()
            .ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }
}

impl Drop for TcpWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{net::TcpListener, net::TcpSocket};

    use super::*;
    use crate::copy::{self, Side};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpSocket::new_v4()
            .unwrap()
            .connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// An application, the relay between two connections, and a server.
    async fn relay() -> (
        TcpStream,
        TcpStream,
        tokio::task::JoinSet<Result<(), copy::CopyError>>,
    ) {
        let (app, downstream) = pair().await;
        let (upstream, server) = pair().await;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let (mut dr, mut dw) = into_split(downstream);
            let (mut ur, mut uw) = into_split(upstream);
            copy::bidirectional((&mut dr, &mut dw), (&mut ur, &mut uw), |_, _| {}).await
        });
        (app, server, tasks)
    }

    #[tokio::test]
    async fn half_close_leaves_the_other_direction_open() {
        let (mut app, mut server, mut tasks) = relay().await;
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        let mut seen = Vec::new();
        server.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"question");
        server.write_all(&vec![7; 1 << 20]).await.unwrap();
        drop(server);
        seen.clear();
        app.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen.len(), 1 << 20);
        assert!(tasks.join_next().await.unwrap().unwrap().is_ok());
    }

    #[tokio::test]
    async fn reset_is_passed_on_as_reset() {
        let (mut app, server, mut tasks) = relay().await;
        sockopt::reset_on_close(&server).unwrap();
        drop(server);
        let error = app.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let error = tasks.join_next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.side, Side::Upstream);
    }

    #[tokio::test]
    async fn reads_grow_to_what_was_allowed() {
        let (mut app, stream) = pair().await;
        let (mut reader, _writer) = into_split_reading(stream, 20_000);
        let sent = vec![7; 400_000];
        let send = async { app.write_all(&sent).await };
        let receive = async {
            let (mut got, mut largest) = (0, 0);
            while got < sent.len() {
                let chunk = reader.read().await?.unwrap();
                got += chunk.len();
                largest = largest.max(chunk.len());
            }
            Ok::<_, io::Error>(largest)
        };
        let ((), largest) = tokio::try_join!(send, receive).unwrap();
        assert!(largest > READ_MIN && largest <= 20_000, "{largest}");
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_is_reset() {
        let (mut app, mut server, mut tasks) = relay().await;
        app.write_all(b"under way").await.unwrap();
        let mut seen = [0; 9];
        server.read_exact(&mut seen).await.unwrap();
        tasks.shutdown().await;
        for mut end in [app, server] {
            let error = end.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_finished_connection_ends_politely() {
        let (mut app, mut server, mut tasks) = relay().await;
        server.write_all(b"last words").await.unwrap();
        app.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
        assert!(tasks.join_next().await.unwrap().unwrap().is_ok());
        let mut seen = Vec::new();
        app.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"last words");
    }
}
