//! Requests per second of connections that each send the next request when the reply is there.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use tokio::{
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    SILENCE, connect,
    exchange::Protocol,
    timing::{Latencies, Repeated, cpu_seconds},
};

/// `leyline-load closed`.
#[derive(Clone, Copy, Debug, Args)]
pub struct ClosedArgs {
    /// The server.
    pub server: IpAddr,
    /// Connections.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// How requests look.
    #[arg(long, value_enum, default_value = "raw")]
    pub protocol: Protocol,
}

/// Sends requests as fast as replies come, all connections in one event loop.
pub fn run(args: &ClosedArgs) -> Result<Repeated> {
    let target = SocketAddr::new(args.server, args.protocol.port());
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let mut stream = connect(target)?;
        args.protocol
            .ask(&mut stream)
            .context("the first request")?;
        stream.set_nonblocking(true)?;
        streams.push(stream);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let duration = Duration::from_secs_f64(args.seconds);
    let cpu_before = cpu_seconds()?;
    let (latencies, took) = runtime.block_on(async {
        let start = Instant::now();
        let mut loops = JoinSet::new();
        for stream in streams {
            let stream = TcpStream::from_std(stream)?;
            loops.spawn(repeat(args.protocol, stream, start + duration));
        }
        let mut all = Latencies::default();
        // A silent peer would hold this up for ever.
        while let Some(one) = timeout(duration + SILENCE, loops.join_next())
            .await
            .context("no reply")?
        {
            all.append(one??);
        }
        anyhow::Ok((all, start.elapsed()))
    })?;
    Ok(Repeated {
        count: latencies.count(),
        failed: 0,
        seconds: took.as_secs_f64(),
        latency: latencies.quantiles(),
        cpu_seconds: cpu_seconds()? - cpu_before,
    })
}

async fn repeat(protocol: Protocol, mut stream: TcpStream, end: Instant) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut now = Instant::now();
    while now < end {
        protocol.ask_in_loop(&mut stream).await?;
        let sent = std::mem::replace(&mut now, Instant::now());
        latencies.add(now - sent);
    }
    Ok(latencies)
}
