//! HTTP/2 by hand: a peer that sends exactly the frames that a test says.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `:status: 200` of the static table.
const STATUS_200: &[u8] = &[0x88];

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) struct Raw {
    io: DuplexStream,
}

impl Raw {
    /// The server's part of the handshake, with SETTINGS of these ids and values.
    pub(crate) async fn server(io: DuplexStream, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self { io };
        let mut preface = [0; 24];
        raw.io.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        raw.settings(settings).await;
        raw
    }

    /// The client's part.
    pub(crate) async fn client(io: DuplexStream) -> Self {
        let mut raw = Self { io };
        raw.io.write_all(PREFACE).await.unwrap();
        raw.settings(&[]).await;
        raw
    }

    async fn settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.send(SETTINGS, 0, 0, &payload).await;
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let _gone = self.try_send(kind, flags, stream, payload).await;
    }

    pub(crate) async fn try_send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await
    }

    /// The next frame; `None` when the connection has ended.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()) & 0x7fff_ffff,
            payload,
        })
    }

    /// The next frame of a kind; SETTINGS are acknowledged on the way.
    pub(crate) async fn next(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                self.send(SETTINGS, ACK, 0, &[]).await;
            }
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    pub(crate) async fn respond_200(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS, stream, STATUS_200).await;
    }

    /// A request with these pseudo headers, as literals.
    pub(crate) async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                // Lengths of up to 126 fit the prefix.
                block.push(u8::try_from(text.len()).unwrap());
                assert!(text.len() < 127);
                block.extend(text.as_bytes());
            }
        }
        self.send(HEADERS, END_HEADERS, stream, &block).await;
    }

    pub(crate) async fn connect(&mut self, stream: u32) {
        let fields = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        self.request(stream, &fields).await;
    }
}
