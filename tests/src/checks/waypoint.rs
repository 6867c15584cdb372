//! What a waypoint does for the services of manifests/demo/bookstore that name it. The documents that a check puts in force are
//! those of manifests/demo/bookstore/routes.

mod canary;
mod change;
mod ejection;
mod jwt;
mod limit;
mod policy;
mod protocols;
mod resilience;

use std::{fmt::Display, future::Future, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use tokio::time::Instant;

use crate::{
    cluster::Family,
    eventually::eventually,
    mesh::Mesh,
    session::{Answer, Session},
};

pub(super) use canary::{check as canary, mirror};
pub(super) use change::{killed, live as change, mistake};
pub(super) use ejection::check as ejection;
pub(super) use jwt::check as jwt;
pub(super) use limit::{global as global_limit, local as local_limit};
pub(super) use policy::check as policy;
pub(super) use protocols::check as protocols;
pub(super) use resilience::{check as resilience, faults};

/// Calls.
const FRONTEND: &str = "bookstore/frontend";
/// Serve `reviews`, in two versions.
const REVIEWS_V2: &str = "bookstore/reviews-v2";
/// The Gateway.
const WAYPOINT: &str = "bookstore/waypoint";
/// Connections over which many requests are spread.
const PARALLEL: usize = 20;

/// A document of manifests/demo/bookstore/routes.
struct Document {
    kind: &'static str,
    yaml: &'static str,
}

macro_rules! document {
    ($kind:literal, $file:literal) => {
        $crate::checks::waypoint::Document {
            kind: $kind,
            yaml: include_str!(concat!(
                "../../../../manifests/demo/bookstore/routes/",
                $file
            )),
        }
    };
}
use document;

impl Document {
    /// Puts it in force in place of the last one, and waits until `probe` holds.
    async fn apply<F, Fut>(&self, mesh: &Mesh, probe: F) -> Result<Duration>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        mesh.write_check_file("route", self.yaml)?;
        in_force(mesh, self.kind, probe).await
    }
}

/// Waits until `probe` holds, as long as an edit may take. Returns after how long the first one began that holds.
async fn in_force<F, Fut>(mesh: &Mesh, what: impl Display, mut probe: F) -> Result<Duration>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let limits = mesh.limits();
    let what = format!("{what} is in force");
    let start = Instant::now();
    let (after, _) = eventually(what, limits.edit + limits.call, || {
        let began = start.elapsed();
        let probe = probe();
        async move { probe.await.map(|()| began) }
    })
    .await?;
    ensure!(
        after <= limits.edit,
        "in force only after {after:?}, not within {:?}",
        limits.edit
    );
    Ok(after)
}

fn service(mesh: &Mesh, name: &str) -> Result<SocketAddr> {
    mesh.cluster()
        .vip(&format!("bookstore/{name}"), Family::V4, 80)
}

async fn session(mesh: &Mesh, name: &str) -> Result<Session> {
    let client = mesh.cluster().client(FRONTEND)?;
    Session::open(&client, service(mesh, name)?, mesh.limits().call).await
}

/// One request of the frontend on a connection of its own.
async fn get(mesh: &Mesh, name: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    session(mesh, name).await?.get(path, headers).await
}

/// The version that answers a request of the frontend.
async fn version(mesh: &Mesh, name: &str, headers: &[(&str, &str)]) -> Result<String> {
    let answer = get(mesh, name, "/", headers).await?;
    ensure!(answer.status == StatusCode::OK, "status {}", answer.status);
    answer.version()
}

/// An answer and how long it took.
struct Timed {
    answer: Answer,
    took: Duration,
}

/// Many requests of the frontend, over [`PARALLEL`] connections.
async fn many(mesh: &Mesh, name: &str, requests: usize) -> Result<Vec<Timed>> {
    let workers = (0..PARALLEL).map(|worker| async move {
        let mut session = session(mesh, name).await?;
        let mut answers = Vec::new();
        for _ in (worker..requests).step_by(PARALLEL) {
            let start = Instant::now();
            let answer = session.get("/", &[]).await?;
            let took = start.elapsed();
            answers.push(Timed { answer, took });
        }
        anyhow::Ok(answers)
    });
    let answers = futures::future::try_join_all(workers).await?;
    Ok(answers.into_iter().flatten().collect())
}

/// How many requests a pod was sent until now, asked past the waypoint.
async fn requests_of(mesh: &Mesh, pod: &str) -> Result<u64> {
    let target = mesh
        .cluster()
        .pod_addr(pod, Family::V4, super::names::HTTP)?;
    let client = mesh.cluster().client(FRONTEND)?;
    let reply = client.get(target, "/", mesh.limits().call).await?;
    let seen = reply.description();
    Ok(seen.with_context(|| format!("asking {pod}"))?.requests)
}

/// Expects a share of requests, within five standard deviations: out of them by chance once in a million runs.
fn check_share(what: &str, count: usize, of: usize, percent: usize) -> Result<()> {
    let variance = of * percent * (100 - percent) / 10_000;
    let mean = of * percent / 100;
    ensure!(
        count.abs_diff(mean).pow(2) <= 25 * variance,
        "{what}: {count} of {of} and not {percent} %"
    );
    Ok(())
}
