//! The request and the reply that clients and servers of the load generator exchange, raw or as HTTP/1.1. Both have a
//! known length, so that neither side spends time on parsing.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    sync::LazyLock,
};

use clap::ValueEnum;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net,
};

use super::ports;

/// Bytes of a reply's body.
const BODY: usize = 1024;
/// Room for a reply and one byte more: a read that does not fill its buffer tells the event loop that there is no more.
const BUFFER: usize = 2 * BODY;

static RAW_REPLY: [u8; BODY] = [b'r'; BODY];
static RAW_REQUEST: [u8; 64] = [b'q'; 64];
static HTTP_REQUEST: &[u8] = b"GET /load HTTP/1.1\r\nhost: leyline-load\r\naccept: */*\r\n\r\n";
static HTTP_REPLY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
    reply.extend_from_slice(&RAW_REPLY);
    reply
});

/// How requests look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// 64 bytes for 1 KiB.
    Raw,
    /// HTTP/1.1 with keep-alive, 1 KiB bodies.
    Http,
}

impl Protocol {
    /// The server's port.
    pub fn port(self) -> u16 {
        match self {
            Self::Raw => ports::REQUESTS,
            Self::Http => ports::HTTP,
        }
    }

    fn request(self) -> &'static [u8] {
        match self {
            Self::Raw => &RAW_REQUEST,
            Self::Http => HTTP_REQUEST,
        }
    }

    fn reply(self) -> &'static [u8] {
        match self {
            Self::Raw => &RAW_REPLY,
            Self::Http => &HTTP_REPLY,
        }
    }

    /// One request and its reply.
    pub(super) fn ask(self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(self.request())?;
        let mut buffer = [0; BUFFER];
        let mut left = self.reply().len();
        while left > 0 {
            left = received(left, stream.read(&mut buffer)?)?;
        }
        Ok(())
    }

    /// One request and its reply, in an event loop.
    pub(super) async fn ask_in_loop(self, stream: &mut net::TcpStream) -> io::Result<()> {
        stream.write_all(self.request()).await?;
        let mut buffer = [0; BUFFER];
        let mut left = self.reply().len();
        while left > 0 {
            left = received(left, stream.read(&mut buffer).await?)?;
        }
        Ok(())
    }

    /// Answers requests until the client goes. Requests are counted by their length, which all have in common.
    pub(super) async fn serve(self, mut stream: net::TcpStream) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        let mut pending = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                read => pending += read,
            }
            while pending >= self.request().len() {
                pending -= self.request().len();
                stream.write_all(self.reply()).await?;
            }
        }
    }
}

fn received(left: usize, read: usize) -> io::Result<usize> {
    match read {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        read => left
            .checked_sub(read)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "more than one reply")),
    }
}
