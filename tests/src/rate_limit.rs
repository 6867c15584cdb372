//! A rate limit service of Envoy's protocol in the namespace of a pod: Python on PyPI's `limits`, which counts in a real
//! Redis. It shares no code with Leyline.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use leyline_net::NetNs;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::{
    peers::{Peers, install_package, run_to_end},
    process::{Process, Program, output},
    run::Run,
};

/// The port of the service, on all addresses of its pod.
pub const PORT: u16 = 8081;
/// Only the service beside it asks.
const REDIS_PORT: u16 = 6379;
/// What to import, and what to install for it; the versions are those that were tried (facts/components.md).
const PYTHON: (&str, &[&str]) = (
    "import limits, redis; from envoy.service.ratelimit.v3 import rls_pb2_grpc",
    &[
        "grpcio==1.85.1",
        "xds-protos==1.85.0",
        "limits==5.8.0",
        "redis==8.1.0",
    ],
);
/// Redis starts with nothing to load.
const REDIS_DEADLINE: Duration = Duration::from_secs(10);

/// What was installed.
#[derive(Clone, Debug)]
pub struct Installed {
    peers: Peers,
    /// Whether there is a Redis to count in; else the service counts in its memory.
    pub has_redis: bool,
}

/// A running service.
#[derive(Debug)]
pub struct RateLimitService {
    /// None after it was ended.
    service: Option<Process>,
    redis: Option<Process>,
    namespace: NetNs,
}

impl Installed {
    /// Installs what is missing.
    pub async fn new(peers: &Path) -> Result<Self> {
        let peers = Peers::install_with(peers, PYTHON)
            .await
            .context("installing a rate limit service for Python")?;
        let there = || async { run_to_end(Command::new("redis-server").arg("--version")).await };
        if there().await.is_err()
            && let Err(e) = install_package("redis-server").await
        {
            tracing::warn!(
                error = format!("{e:#}"),
                "Redis cannot be installed; the rate limit service counts in its memory"
            );
        }
        let has_redis = there().await.is_ok();
        Ok(Self { peers, has_redis })
    }

    /// Starts the service in the namespace of a pod. `limit` is for descriptors that say none.
    pub async fn start(
        &self,
        run: &Run,
        namespace: &NetNs,
        limit: &str,
    ) -> Result<RateLimitService> {
        let redis = if self.has_redis {
            Some(start_redis(run, namespace).await?)
        } else {
            None
        };
        let storage = match redis {
            Some(_) => format!("redis://127.0.0.1:{REDIS_PORT}"),
            None => "memory://".to_owned(),
        };
        let listen = format!("0.0.0.0:{PORT}");
        let args = ["--listen", &listen, "--storage", &storage, "--limit", limit];
        let script = "rate_limit_service.py";
        let service = self.peers.start_script(run, namespace, script, &args);
        Ok(RateLimitService {
            service: Some(service.await?),
            redis,
            namespace: namespace.clone(),
        })
    }
}

impl RateLimitService {
    /// Lets it answer nobody, and its connections stay.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let service = self.service.as_ref();
        service.context("the service was ended")?.signal(signal)
    }

    /// Whether it counts in a Redis.
    pub fn has_redis(&self) -> bool {
        self.redis.is_some()
    }

    /// Ends the service; what Redis has counted stays.
    pub async fn kill_service(&mut self) -> Result<()> {
        match self.service.take() {
            Some(mut service) => service.kill().await,
            None => Ok(()),
        }
    }

    /// Ends everything.
    pub async fn kill(&mut self) -> Result<()> {
        self.kill_service().await?;
        if let Some(redis) = &mut self.redis {
            redis.kill().await?;
        }
        Ok(())
    }

    /// What Redis has counted, by key.
    pub async fn counted(&self) -> Result<BTreeMap<String, u64>> {
        let ask = |args: Vec<String>| async move {
            let program = Program {
                name: "redis-cli".to_owned(),
                path: "/usr/bin/redis-cli".into(),
                args: args.into_iter().map(Into::into).collect(),
                env: BTreeMap::new(),
                namespace: self.namespace.clone(),
            };
            output(&program, REDIS_DEADLINE).await
        };
        let mut counted = BTreeMap::new();
        for key in ask(vec!["--scan".to_owned()]).await?.lines() {
            let value = ask(vec!["get".to_owned(), key.to_owned()]).await?;
            counted.insert(key.to_owned(), value.trim().parse()?);
        }
        Ok(counted)
    }
}

async fn start_redis(run: &Run, namespace: &NetNs) -> Result<Process> {
    let port = REDIS_PORT.to_string();
    // In memory only: what was counted is gone with the run.
    let args = ["--port", &port, "--bind", "127.0.0.1", "--save", ""];
    let program = Program {
        name: "redis".to_owned(),
        path: "/usr/bin/redis-server".into(),
        args: args.into_iter().map(Into::into).collect(),
        env: BTreeMap::new(),
        namespace: namespace.clone(),
    };
    let mut process = Process::start(run, &program)?;
    let ready = "Ready to accept connections";
    process.wait_for_line(ready, REDIS_DEADLINE).await?;
    Ok(process)
}
