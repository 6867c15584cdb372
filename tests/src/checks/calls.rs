//! Calls from pod to pod, and what is expected of them.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use tokio::time::Instant;

use super::names;
use crate::{echo::Description, eventually::eventually, mesh::Mesh};

/// What should become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// It is answered.
    Answer,
    /// It is refused or cut, and soon.
    Refusal,
}

/// A call by a pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) from: &'static str,
    pub(super) to: SocketAddr,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from, self.to)
    }
}

impl Call {
    /// Makes the call, over HTTP or on the echo port by the port's number, and holds it against what is expected.
    async fn try_once(&self, mesh: &Mesh, expected: Expected) -> Result<()> {
        let deadline = match expected {
            Expected::Answer => mesh.limits().call,
            Expected::Refusal => mesh.limits().refusal,
        };
        let start = Instant::now();
        let outcome = if self.to.port() == names::TCP {
            self.echo(mesh, deadline).await
        } else {
            self.get(mesh, deadline).await.map(drop)
        };
        match (outcome, expected) {
            (Ok(()), Expected::Answer) => Ok(()),
            (Err(_refused), Expected::Refusal) if start.elapsed() < deadline => Ok(()),
            (Ok(()), Expected::Refusal) => bail!("{self} was answered"),
            (Err(e), Expected::Answer) => Err(e.context(format!("{self} was not answered"))),
            (Err(e), Expected::Refusal) => {
                Err(e.context(format!("{self} was neither answered nor refused")))
            }
        }
    }

    /// `GET /`, and what the app says of it.
    pub(super) async fn get(&self, mesh: &Mesh, deadline: Duration) -> Result<Description> {
        let client = mesh.cluster().client(self.from)?;
        let reply = client.get(self.to, "/", deadline).await?;
        ensure!(reply.status == StatusCode::OK, "status {}", reply.status);
        reply.description()
    }

    async fn echo(&self, mesh: &Mesh, deadline: Duration) -> Result<()> {
        let client = mesh.cluster().client(self.from)?;
        client
            .connect(self.to, deadline)
            .await?
            .echo(b"is anybody there")
            .await
    }
}

/// A call that must be answered at once.
pub(super) async fn answered(
    mesh: &Mesh,
    from: &'static str,
    to: SocketAddr,
) -> Result<Description> {
    let call = Call { from, to };
    call.get(mesh, mesh.limits().call)
        .await
        .with_context(|| format!("{call}"))
}

/// A call that must be refused at once.
pub(super) async fn refused(mesh: &Mesh, from: &'static str, to: SocketAddr) -> Result<()> {
    Call { from, to }.try_once(mesh, Expected::Refusal).await
}

/// Waits until all calls come out as expected in one round, as long as an edit may take. Returns how long it took.
pub(super) async fn settle(
    mesh: &Mesh,
    what: impl fmt::Display,
    calls: &[(Call, Expected)],
) -> Result<Duration> {
    // An edit that is late is told apart from one call of the last round that takes its time.
    let allowed = mesh.limits().edit;
    let deadline = allowed + mesh.limits().call;
    let start = Instant::now();
    let (began, ended) = eventually(what, deadline, || async {
        let began = start.elapsed();
        let round = calls
            .iter()
            .map(|(call, expected)| call.try_once(mesh, *expected));
        futures::future::try_join_all(round).await?;
        Ok(began)
    })
    .await?;
    ensure!(
        began <= allowed,
        "in force only after {began:?}, not within {allowed:?}"
    );
    Ok(ended)
}
