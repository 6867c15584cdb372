//! New tunnels per second: TCP, mutual TLS, HTTP/2, CONNECT, one byte each way, close. The client is made of the same
//! crates as the node proxy, so its CPU time is that of the outbound end.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use leyline_hbone::{ConnectRequest, DialError, HboneConfig, HboneStream, Pool, PoolKey};
use leyline_net::{
    ConnectOptions, NetNs, Source, connect,
    copy::{Reader, Writer},
};
use leyline_runtime::Drain;
use leyline_tls::{Revocation, WorkloadCertificate};
use leyline_types::{HboneAuthority, Identity, WorkloadUid};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    SILENCE,
    hold::Held,
    ports,
    timing::{Latencies, Repeated, cpu_seconds},
};

/// Threads of the client: handshakes are computation, and the server has as much of it to do.
const THREADS: usize = 2;

/// `leyline-load tunnels`.
#[derive(Clone, Debug, Args)]
pub struct TunnelsArgs {
    /// The proxy's HBONE port.
    pub proxy: SocketAddr,
    /// SPIFFE ID of the caller.
    #[arg(long)]
    pub identity: Identity,
    /// SPIFFE ID that the proxy must have.
    #[arg(long)]
    pub expected: Identity,
    /// Certificate of the caller, PEM.
    #[arg(long)]
    pub certificate: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    pub key: PathBuf,
    /// Roots, PEM.
    #[arg(long)]
    pub root: PathBuf,
    /// Tunnels that are made at the same time.
    #[arg(long, default_value_t = 16)]
    pub workers: usize,
    /// For how long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Make so many tunnels and keep each with one stream until killed, instead.
    #[arg(long)]
    pub hold: Option<usize>,
}

/// Tunnels that are open and idle.
pub struct Holding {
    /// They end with it.
    _runtime: tokio::runtime::Runtime,
    _tunnels: Vec<(Pool, HboneStream)>,
    /// What to tell.
    pub held: Held,
}

/// Opens so many tunnels.
pub fn hold(args: &TunnelsArgs, tunnels: usize) -> Result<Holding> {
    leyline_tls::install_crypto_provider();
    leyline_runtime::threads::raise_open_files_limit()?;
    let caller = Arc::new(Caller::new(args)?);
    let runtime = leyline_runtime::threads::worker_runtime(THREADS, "tunnels")?;
    let start = Instant::now();
    let tunnels = runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..tunnels {
            open.push(timeout(SILENCE, caller.open(ports::ECHO)).await??);
        }
        anyhow::Ok(open)
    })?;
    Ok(Holding {
        held: Held {
            held: tunnels.len(),
            seconds: start.elapsed().as_secs_f64(),
        },
        _runtime: runtime,
        _tunnels: tunnels,
    })
}

/// What every tunnel needs.
struct Caller {
    netns: NetNs,
    certificate: Arc<WorkloadCertificate>,
    key: PoolKey,
    drain: Drain,
}

/// Makes tunnels one after the other in every worker. Those that fail are counted.
pub fn run(args: &TunnelsArgs) -> Result<Repeated> {
    leyline_tls::install_crypto_provider();
    let caller = Arc::new(Caller::new(args)?);
    let runtime = leyline_runtime::threads::worker_runtime(THREADS, "tunnels")?;
    runtime.block_on(async {
        caller.once().await.context("the first tunnel")?;
        let cpu_before = cpu_seconds()?;
        let start = Instant::now();
        let duration = Duration::from_secs_f64(args.seconds);
        let mut workers = JoinSet::new();
        for _ in 0..args.workers {
            workers.spawn(Arc::clone(&caller).repeat(start + duration));
        }
        let (mut all, mut failed) = (Latencies::default(), 0);
        while let Some(worker) = workers.join_next().await {
            let (one, failures) = worker?;
            all.append(one);
            failed += failures;
        }
        Ok(Repeated {
            count: all.count(),
            failed,
            seconds: start.elapsed().as_secs_f64(),
            latency: all.quantiles(),
            cpu_seconds: cpu_seconds()? - cpu_before,
        })
    })
}

impl Caller {
    fn new(args: &TunnelsArgs) -> Result<Self> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let chain = [read(&args.certificate)?, read(&args.root)?];
        let key = PrivateKeyDer::from_pem_slice(read(&args.key)?.as_bytes())
            .with_context(|| format!("reading {}", args.key.display()))?;
        Ok(Self {
            netns: NetNs::current()?,
            certificate: Arc::new(WorkloadCertificate::from_pem(
                &args.identity,
                &chain,
                key,
                &Revocation::off(),
            )?),
            key: PoolKey {
                source: args.identity.clone(),
                destinations: vec![args.expected.clone()],
                target: args.proxy,
                source_ip: args.proxy.ip(),
                workload: WorkloadUid::new("bench"),
            },
            drain: Drain::new(),
        })
    }

    async fn repeat(self: Arc<Self>, end: Instant) -> (Latencies, u64) {
        let (mut latencies, mut failed) = (Latencies::default(), 0);
        let mut now = Instant::now();
        while now < end {
            let result = timeout(SILENCE, self.once()).await;
            let began = std::mem::replace(&mut now, Instant::now());
            match result {
                Ok(Ok(())) => latencies.add(now - began),
                Ok(Err(_)) | Err(_) => failed += 1,
            }
        }
        (latencies, failed)
    }

    /// A stream in a pool of its own, so that no tunnel is there yet. Without the pool the tunnel closes after the stream.
    async fn open(self: &Arc<Self>, port: u16) -> Result<(Pool, HboneStream)> {
        let pool = Pool::new(HboneConfig::default(), self.drain.clone());
        let request = ConnectRequest {
            authority: HboneAuthority::Address(SocketAddr::new(self.key.target.ip(), port)),
            forwarded_for: self.key.target,
            forwarded_host: None,
            baggage: None,
            forwarded_network: None,
        };
        let caller = Arc::clone(self);
        let opened = pool
            .open(&self.key, request, move || async move {
                caller.dial().await.map_err(failed)
            })
            .await?;
        Ok((pool, opened.stream))
    }

    async fn once(self: &Arc<Self>) -> Result<()> {
        let (_pool, stream) = self.open(ports::SHORT).await?;
        let (mut reader, mut writer) = stream.into_split();
        writer.write(Bytes::from_static(b"t")).await?;
        let back = reader.read().await?;
        ensure!(
            back.is_some_and(|data| data.len() == 1),
            "one byte was to come back"
        );
        ensure!(reader.read().await?.is_none(), "the stream was to end");
        writer.finish().await?;
        Ok(())
    }

    async fn dial(&self) -> Result<leyline_tls::ClientTls> {
        let options = ConnectOptions {
            mark: None,
            source: Source::Routed,
            deadline: SILENCE,
            keepalive: None,
            announce: None,
        };
        let stream = connect(&self.netns, self.key.target, &options).await?;
        let expected = &self.key.destinations;
        let (tls, _peer) =
            leyline_tls::connect(&self.certificate, stream, expected, SILENCE).await?;
        Ok(tls)
    }
}

fn failed(error: anyhow::Error) -> DialError {
    DialError::new(error)
}
