//! Why a tunnel or a stream in it could not be had.

use std::{error::Error, fmt, io, sync::Arc};

use http::StatusCode;

/// A failure of the caller's dial: connect, TLS, no certificate. Shared by all that waited for this dial.
#[derive(Clone, Debug)]
pub struct DialError(Arc<dyn Error + Send + Sync>);

impl DialError {
    /// Wraps the caller's own error, which `get_ref` and `source` give back.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The caller's error, to be downcast.
    pub fn get_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Why there is no stream, or why a tunnel ended badly.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HboneError {
    /// The transport could not be connected.
    #[error("{0}")]
    Dial(#[source] DialError),
    /// The dial did not end; the caller's deadlines should have.
    #[error("the dial did not end in time")]
    DialDeadline,
    /// The peer does not speak HTTP/2, or broke off.
    #[error("http/2 handshake failed: {0}")]
    Handshake(#[source] Arc<h2::Error>),
    /// The peer said nothing after the transport was connected.
    #[error("no http/2 preface or settings in time")]
    HandshakeDeadline,
    /// The request has a header that cannot be sent.
    #[error("the connect request is not valid: {0}")]
    Request(#[source] Arc<http::Error>),
    /// The peer refused.
    #[error("http status: {0}")]
    Status(StatusCode),
    /// The peer did not answer the request.
    #[error("no response to the connect request in time")]
    ResponseDeadline,
    /// The tunnel or the stream broke before the response.
    #[error("tunnel failed: {0}")]
    Tunnel(#[source] Arc<h2::Error>),
    /// The transport cannot be written.
    #[error("tunnel failed: {0}")]
    Transport(#[source] Arc<io::Error>),
    /// The peer did not answer a PING and sent nothing else.
    #[error("no pong in time")]
    PingDeadline,
    /// All tunnels that one key may have are full, or the peer allows no stream.
    #[error("no room in the tunnels to this destination")]
    Full,
    /// All keys that the pool may have are in use.
    #[error("tunnels to too many destinations are in use")]
    TooManyKeys,
    /// The pool, or this key of it, was closed while a tunnel was made.
    #[error("the pool was closed")]
    Closed,
}

impl HboneError {
    /// A short name of the kind, as a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dial(_) => "dial",
            Self::DialDeadline => "dial_deadline",
            Self::Handshake(_) => "handshake",
            Self::HandshakeDeadline => "handshake_deadline",
            Self::Request(_) => "request",
            Self::Status(_) => "status",
            Self::ResponseDeadline => "response_deadline",
            Self::Tunnel(_) => "tunnel",
            Self::Transport(_) => "transport",
            Self::PingDeadline => "ping_deadline",
            Self::Full => "full",
            Self::TooManyKeys => "too_many_keys",
            Self::Closed => "closed",
        }
    }

    pub(crate) fn tunnel(error: h2::Error) -> Self {
        Self::Tunnel(Arc::new(error))
    }
}

/// What a broken stream is to whoever copies it: like a TCP connection that the peer reset, with the cause inside.
pub(crate) fn stream_error(error: h2::Error) -> io::Error {
    let kind = match error.get_io() {
        Some(inner) if inner.kind() == io::ErrorKind::TimedOut => io::ErrorKind::TimedOut,
        Some(_) | None => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}
