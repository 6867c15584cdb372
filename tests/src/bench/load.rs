//! The load generator behind `leyline-load`: servers that cost little, and clients that measure.
//!
//! It shares two cores with the proxies under test, so everything here is made to be cheap: bulk data and timed requests
//! use blocking threads, requests in a closed loop use one event loop. A client prints its result as one JSON object.

pub mod bulk;
pub mod closed;
pub mod connections;
pub mod exchange;
pub mod hold;
pub mod latency;
pub mod server;
pub mod timing;
pub mod tunnels;

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

/// Ports of `leyline-load server`.
pub mod ports {
    /// Fixed-size requests, 1 KiB replies.
    pub const REQUESTS: u16 = 7001;
    /// The same as HTTP/1.1 with keep-alive.
    pub const HTTP: u16 = 7002;
    /// Reads to the end and tells how much came in which time.
    pub const SINK: u16 = 7003;
    /// Sends until the client goes.
    pub const SOURCE: u16 = 7004;
    /// Answers one byte and closes.
    pub const SHORT: u16 = 7005;
    /// Sends back what it is sent.
    pub const ECHO: u16 = 7006;
    /// All of them.
    pub const ALL: [u16; 6] = [REQUESTS, HTTP, SINK, SOURCE, SHORT, ECHO];
}

/// A peer that is silent for so long ends a measurement with an error: far above any latency worth measuring.
const SILENCE: Duration = Duration::from_secs(10);

/// A blocking connection without Nagle's delay.
fn connect(target: SocketAddr) -> Result<TcpStream> {
    let connected = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&target, SILENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(stream)
    };
    connected().with_context(|| format!("connecting to {target}"))
}

/// The result of a thread.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
