//! Throughput of long streams, counted where the data arrives and from its first byte on: what lies in buffers on the
//! way is not counted, and neither is the time that it takes to connect.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{connect, join, ports, timing::cpu_seconds};

/// Bytes of a write.
const CHUNK: usize = 128 << 10;
/// Bytes of a read.
const READ: usize = 256 << 10;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// `leyline-load bulk`.
#[derive(Clone, Copy, Debug, Args)]
pub struct BulkArgs {
    /// The server.
    pub server: IpAddr,
    /// Which way the data goes.
    #[arg(long, value_enum, default_value = "up")]
    pub direction: Direction,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

/// Result of [`run`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Moved {
    /// That arrived.
    pub bytes: u64,
    /// Sum of the streams' own rates.
    pub gbit_per_second: f64,
    /// CPU time of the client.
    pub cpu_seconds: f64,
}

/// What arrived on one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    bytes: u64,
    nanos: u64,
}

/// Moves data for the time that was asked for.
pub fn run(args: &BulkArgs) -> Result<Moved> {
    let duration = Duration::from_secs_f64(args.seconds);
    let cpu_before = cpu_seconds()?;
    let arrived = thread::scope(|scope| {
        let streams: Vec<_> = (0..args.streams)
            .map(|_| {
                scope.spawn(move || match args.direction {
                    Direction::Up => up(args.server, duration),
                    Direction::Down => down(args.server, duration),
                })
            })
            .collect();
        streams.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    Ok(Moved {
        bytes: arrived.iter().map(|stream| stream.bytes).sum(),
        // Bits per nanosecond are Gbit/s.
        gbit_per_second: arrived
            .iter()
            .map(|stream| stream.bytes as f64 * 8.0 / stream.nanos.max(1) as f64)
            .sum(),
        cpu_seconds: cpu_seconds()? - cpu_before,
    })
}

fn up(server: IpAddr, duration: Duration) -> Result<Arrived> {
    let mut stream = connect(SocketAddr::new(server, ports::SINK))?;
    let chunk = vec![b'd'; CHUNK];
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&chunk).context("sending")?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut bytes = [0; 8];
    stream
        .read_exact(&mut bytes)
        .context("waiting for the count")?;
    let mut nanos = [0; 8];
    stream
        .read_exact(&mut nanos)
        .context("waiting for the time")?;
    Ok(Arrived {
        bytes: u64::from_be_bytes(bytes),
        nanos: u64::from_be_bytes(nanos),
    })
}

fn down(server: IpAddr, duration: Duration) -> Result<Arrived> {
    let mut stream = connect(SocketAddr::new(server, ports::SOURCE))?;
    // Some proxies open nothing before they have something to send.
    stream.write_all(b"d")?;
    receive(&mut stream, Some(duration)).context("receiving")
}

/// Reads until the end, or for some time after the first byte.
fn receive(stream: &mut TcpStream, duration: Option<Duration>) -> io::Result<Arrived> {
    let mut buffer = vec![0; READ];
    let mut arrived = Arrived::default();
    let mut first = None;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(arrived),
            Ok(read) => {
                arrived.bytes += read as u64;
                let elapsed = first.get_or_insert_with(Instant::now).elapsed();
                arrived.nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
                if duration.is_some_and(|duration| elapsed >= duration) {
                    return Ok(arrived);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The server's side of an upload.
pub(super) fn sink(mut stream: TcpStream) -> io::Result<()> {
    let arrived = receive(&mut stream, None)?;
    let mut answer = arrived.bytes.to_be_bytes().to_vec();
    answer.extend(arrived.nanos.to_be_bytes());
    stream.write_all(&answer)
}

/// The server's side of a download.
pub(super) fn source(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    let chunk = vec![b'd'; CHUNK];
    loop {
        stream.write_all(&chunk)?;
    }
}
