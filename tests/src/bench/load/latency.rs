//! Request latency at a given rate. Requests have a fixed schedule, and latency counts from the scheduled time: when a
//! reply is late, the requests that it holds up are late too, and the figures say so (no coordinated omission).

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use tokio::time::Instant;

use super::{
    connect,
    exchange::Protocol,
    join,
    timing::{Latencies, Repeated, cpu_seconds},
};

/// The connections are open and have been used by then.
const LEAD: Duration = Duration::from_millis(20);

/// `leyline-load latency`.
#[derive(Clone, Copy, Debug, Args)]
pub struct LatencyArgs {
    /// The server.
    pub server: IpAddr,
    /// Requests per second, over all connections.
    #[arg(long, default_value_t = 2000)]
    pub rate: u32,
    /// Connections.
    #[arg(long, default_value_t = 16)]
    pub connections: u32,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// How requests look.
    #[arg(long, value_enum, default_value = "raw")]
    pub protocol: Protocol,
    /// The server's port, where it is not that of the protocol.
    #[arg(long)]
    pub port: Option<u16>,
}

/// When one connection sends.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    first: Instant,
    period: Duration,
    end: Instant,
}

/// Sends requests on schedule. A thread per connection: the kernel's timers are finer than an event loop's.
pub fn run(args: &LatencyArgs) -> Result<Repeated> {
    // Threads inherit it. The default of 50 us would be part of every latency.
    nix::sys::prctl::set_timerslack(1)?;
    let target = SocketAddr::new(
        args.server,
        args.port.unwrap_or_else(|| args.protocol.port()),
    );
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let mut stream = connect(target)?;
        args.protocol
            .ask(&mut stream)
            .context("the first request")?;
        streams.push(stream);
    }
    let cpu_before = cpu_seconds()?;
    let start = Instant::now() + LEAD;
    let gap = Duration::from_secs(1) / args.rate.max(1);
    let end = start + Duration::from_secs_f64(args.seconds);
    let all = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .zip(streams)
            .map(|(number, stream)| {
                let schedule = Schedule {
                    first: start + gap * number,
                    period: gap * args.connections,
                    end,
                };
                scope.spawn(move || keep_to(schedule, stream, args.protocol))
            })
            .collect();
        let mut all = Latencies::default();
        for thread in threads {
            all.append(join(thread)?);
        }
        anyhow::Ok(all)
    })?;
    Ok(Repeated {
        count: all.count(),
        failed: 0,
        seconds: args.seconds,
        latency: all.quantiles(),
        cpu_seconds: cpu_seconds()? - cpu_before,
    })
}

fn keep_to(schedule: Schedule, mut stream: TcpStream, protocol: Protocol) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut due = schedule.first;
    while due < schedule.end {
        sleep_until(due);
        protocol.ask(&mut stream)?;
        latencies.add(due.elapsed());
        due += schedule.period;
    }
    Ok(latencies)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the thread serves one connection and has nothing else to do"
)]
fn sleep_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}
