//! New connections per second: connect, one byte each way, close.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Args;
use tokio::time::Instant;

use super::{
    connect, join, ports,
    timing::{Latencies, Repeated, cpu_seconds},
};

/// `leyline-load connections`.
#[derive(Clone, Copy, Debug, Args)]
pub struct ConnectionsArgs {
    /// The server.
    pub server: IpAddr,
    /// Threads, each with one connection at a time.
    #[arg(long, default_value_t = 16)]
    pub workers: usize,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

/// Opens connections one after the other in every worker. Those that fail are counted.
pub fn run(args: &ConnectionsArgs) -> Result<Repeated> {
    let target = SocketAddr::new(args.server, ports::SHORT);
    once(target)?;
    let cpu_before = cpu_seconds()?;
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    let (latencies, failed) = thread::scope(|scope| {
        let workers: Vec<_> = (0..args.workers)
            .map(|_| scope.spawn(move || Ok(repeat(target, end))))
            .collect();
        let (mut all, mut failed) = (Latencies::default(), 0);
        for worker in workers {
            let (one, failures) = join(worker)?;
            all.append(one);
            failed += failures;
        }
        anyhow::Ok((all, failed))
    })?;
    Ok(Repeated {
        count: latencies.count(),
        failed,
        seconds: start.elapsed().as_secs_f64(),
        latency: latencies.quantiles(),
        cpu_seconds: cpu_seconds()? - cpu_before,
    })
}

fn repeat(target: SocketAddr, end: Instant) -> (Latencies, u64) {
    let (mut latencies, mut failed) = (Latencies::default(), 0);
    let mut now = Instant::now();
    while now < end {
        let result = once(target);
        let began = std::mem::replace(&mut now, Instant::now());
        match result {
            Ok(()) => latencies.add(now - began),
            Err(_) => failed += 1,
        }
    }
    (latencies, failed)
}

/// The server closes first, see there.
fn once(target: SocketAddr) -> Result<()> {
    let mut stream = connect(target)?;
    stream.write_all(b"c")?;
    let mut bytes = [0; 2];
    ensure!(stream.read(&mut bytes)? == 1, "one byte was to come back");
    ensure!(stream.read(&mut bytes)? == 0, "the connection was to end");
    Ok(())
}
