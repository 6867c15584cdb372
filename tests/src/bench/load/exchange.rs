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
    /// The same through proxies, which write heads of their own.
    Proxied,
}

impl Protocol {
    /// The server's port.
    pub fn port(self) -> u16 {
        match self {
            Self::Raw => ports::REQUESTS,
            Self::Http | Self::Proxied => ports::HTTP,
        }
    }

    fn request(self) -> &'static [u8] {
        match self {
            Self::Raw => &RAW_REQUEST,
            Self::Http | Self::Proxied => HTTP_REQUEST,
        }
    }

    fn reply(self) -> &'static [u8] {
        match self {
            Self::Raw => &RAW_REPLY,
            Self::Http | Self::Proxied => &HTTP_REPLY,
        }
    }

    /// One request and its reply.
    pub(super) fn ask(self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(self.request())?;
        let mut reply = Reply::of(self);
        while !reply.is_whole()? {
            let read = stream.read(&mut reply.buffer[reply.kept..])?;
            reply.received(read)?;
        }
        Ok(())
    }

    /// One request and its reply, in an event loop.
    pub(super) async fn ask_in_loop(self, stream: &mut net::TcpStream) -> io::Result<()> {
        stream.write_all(self.request()).await?;
        let mut reply = Reply::of(self);
        while !reply.is_whole()? {
            let read = stream.read(&mut reply.buffer[reply.kept..]).await?;
            reply.received(read)?;
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

/// A reply that is being read.
struct Reply {
    buffer: [u8; BUFFER],
    /// Bytes of the head that are there, until its end is.
    kept: usize,
    /// Bytes that are to come, once that is known.
    left: Option<usize>,
}

impl Reply {
    fn of(protocol: Protocol) -> Self {
        Self {
            buffer: [0; BUFFER],
            kept: 0,
            left: match protocol {
                Protocol::Raw | Protocol::Http => Some(protocol.reply().len()),
                Protocol::Proxied => None,
            },
        }
    }

    fn is_whole(&self) -> io::Result<bool> {
        match self.left {
            Some(left) => Ok(left == 0),
            None if self.kept == self.buffer.len() => Err(invalid("a head without an end")),
            None => Ok(false),
        }
    }

    fn received(&mut self, read: usize) -> io::Result<()> {
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match self.left {
            Some(left) => self.left = Some(less(left, read)?),
            None => {
                self.kept += read;
                let received = &self.buffer[..self.kept];
                if let Some(whole) = whole_length(received)? {
                    self.left = Some(less(whole, self.kept)?);
                    self.kept = 0;
                }
            }
        }
        Ok(())
    }
}

fn less(left: usize, read: usize) -> io::Result<usize> {
    left.checked_sub(read)
        .ok_or_else(|| invalid("more than one reply"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Length of a reply with its head, once the head is there. Anything but 200 with a known length is no reply to count.
fn whole_length(received: &[u8]) -> io::Result<Option<usize>> {
    let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&received[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(invalid(status));
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.ok_or_else(|| invalid("a reply without a length"))?;
    Ok(Some(end + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_through_a_proxy_is_as_long_as_it_says() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx-a: b\r\n\r\nabc";
        assert_eq!(whole_length(reply).unwrap(), Some(reply.len()));
        assert_eq!(whole_length(&reply[..30]).unwrap(), None);
        for bad in [
            &b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(whole_length(bad).is_err());
        }
    }
}
