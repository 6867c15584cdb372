//! Connections that are open and idle, for as long as the process runs.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{connect, join, ports};

/// Connections that are opened at the same time.
const OPENERS: usize = 16;

/// `leyline-load hold`.
#[derive(Clone, Copy, Debug, Args)]
pub struct HoldArgs {
    /// The server.
    pub server: IpAddr,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
}

/// What is told when all are open.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Held {
    /// Connections.
    pub held: usize,
    /// Until all were open.
    pub seconds: f64,
}

/// Open connections.
#[derive(Debug)]
pub struct Holding {
    /// Closed on drop.
    _streams: Vec<TcpStream>,
    /// What to tell.
    pub held: Held,
}

/// Opens the connections and passes one byte through each.
pub fn run(args: &HoldArgs) -> Result<Holding> {
    leyline_runtime::threads::raise_open_files_limit()?;
    let target = SocketAddr::new(args.server, ports::ECHO);
    let start = Instant::now();
    let streams = thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS)
            .map(|opener| {
                let share = (args.connections + opener) / OPENERS;
                scope.spawn(move || (0..share).map(|_| open(target)).collect::<Result<Vec<_>>>())
            })
            .collect();
        let mut streams = Vec::new();
        for opener in openers {
            streams.append(&mut join(opener)?);
        }
        anyhow::Ok(streams)
    })?;
    Ok(Holding {
        held: Held {
            held: streams.len(),
            seconds: start.elapsed().as_secs_f64(),
        },
        _streams: streams,
    })
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(target)?;
    stream.write_all(b"h")?;
    stream
        .read_exact(&mut [0])
        .context("waiting for the echo")?;
    Ok(stream)
}
