//! Load for `cargo xtask bench`: a server, and clients that each print one JSON object.

use std::{io::Write, thread};

use anyhow::Result;
use clap::{Parser, Subcommand};
use leyline_tests::bench::load::{
    bulk::{self, BulkArgs},
    closed::{self, ClosedArgs},
    connections::{self, ConnectionsArgs},
    hold::{self, HoldArgs},
    latency::{self, LatencyArgs},
    server,
    tunnels::{self, TunnelsArgs},
};
use serde::Serialize;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve all that the clients need, on ports 7001 to 7006.
    Server,
    /// Throughput of long streams.
    Bulk(BulkArgs),
    /// Latency of requests at a fixed rate.
    Latency(LatencyArgs),
    /// Requests per second, each connection waiting for its reply.
    Closed(ClosedArgs),
    /// New connections per second.
    Connections(ConnectionsArgs),
    /// Keep idle connections open until killed.
    Hold(HoldArgs),
    /// New HBONE tunnels per second.
    Tunnels(TunnelsArgs),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Server => server::run(),
        Command::Bulk(args) => print(&bulk::run(&args)?),
        Command::Latency(args) => print(&latency::run(&args)?),
        Command::Closed(args) => print(&closed::run(&args)?),
        Command::Connections(args) => print(&connections::run(&args)?),
        Command::Hold(args) => {
            let holding = hold::run(&args)?;
            print(&holding.held)?;
            loop {
                thread::park();
            }
        }
        Command::Tunnels(args) => match args.hold {
            None => print(&tunnels::run(&args)?),
            Some(tunnels) => {
                let holding = tunnels::hold(&args, tunnels)?;
                print(&holding.held)?;
                loop {
                    thread::park();
                }
            }
        },
    }
}

fn print(result: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
