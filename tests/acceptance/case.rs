//! A request and what is expected of its answer, as the tables of the rows have them.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use leyline_tests::session::{Answer, Session};

use crate::world::{SOON, World};

/// One request of a row.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    from: &'static str,
    to: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    expected: Vec<Expected>,
}

#[derive(Clone, Debug)]
enum Expected {
    Version(&'static str),
    Status(u16),
    /// The application was sent this header, or none of this name.
    Sent(&'static str, Option<&'static str>),
    /// The client was answered with this header, or none of this name.
    Answered(&'static str, Option<&'static str>),
    /// The application was spoken to in this version of HTTP.
    Protocol(&'static str),
    /// The application was asked for this path.
    Path(&'static str),
    /// No answer at all.
    Refused,
    /// Whether a waypoint has had the request in its hands: it gives each an id.
    Waypoint(bool),
}

/// `GET path` of `apps/client`.
pub(crate) fn get(to: &'static str, path: &'static str) -> Case {
    Case {
        from: "apps/client",
        to,
        method: "GET",
        path,
        headers: Vec::new(),
        expected: Vec::new(),
    }
}

impl Case {
    pub(crate) fn from(mut self, pod: &'static str) -> Self {
        self.from = pod;
        self
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn version(self, version: &'static str) -> Self {
        self.expect(Expected::Version(version))
    }

    pub(crate) fn status(self, status: u16) -> Self {
        self.expect(Expected::Status(status))
    }

    pub(crate) fn sent(self, name: &'static str, value: &'static str) -> Self {
        self.expect(Expected::Sent(name, Some(value)))
    }

    pub(crate) fn not_sent(self, name: &'static str) -> Self {
        self.expect(Expected::Sent(name, None))
    }

    pub(crate) fn answered(self, name: &'static str, value: &'static str) -> Self {
        self.expect(Expected::Answered(name, Some(value)))
    }

    pub(crate) fn not_answered(self, name: &'static str) -> Self {
        self.expect(Expected::Answered(name, None))
    }

    pub(crate) fn path(self, path: &'static str) -> Self {
        self.expect(Expected::Path(path))
    }

    pub(crate) fn refused(self) -> Self {
        self.expect(Expected::Refused)
    }

    pub(crate) fn through_waypoint(self) -> Self {
        self.expect(Expected::Waypoint(true))
    }

    pub(crate) fn past_waypoint(self) -> Self {
        self.expect(Expected::Waypoint(false))
    }

    pub(crate) fn spoken_to_in(self, protocol: &'static str) -> Self {
        self.expect(Expected::Protocol(protocol))
    }

    fn expect(mut self, expected: Expected) -> Self {
        self.expected.push(expected);
        self
    }

    /// Asks once and compares.
    pub(crate) async fn check(&self, world: &World) -> Result<()> {
        let answer = self.ask(world).await;
        if self
            .expected
            .iter()
            .any(|it| matches!(it, Expected::Refused))
        {
            ensure!(answer.is_err(), "{self:?} was answered");
            return Ok(());
        }
        let answer = answer?;
        for expected in &self.expected {
            expected.check(&answer).with_context(|| {
                let body = String::from_utf8_lossy(&answer.body);
                format!("{self:?}\n{} {:?}\n{body}", answer.status, answer.headers)
            })?;
        }
        Ok(())
    }

    /// Asks once.
    pub(crate) async fn ask(&self, world: &World) -> Result<Answer> {
        let client = world.mesh.cluster().client(self.from)?;
        let target = world.target(self.to)?;
        let mut session = Session::open(&client, target, SOON).await?;
        session
            .request(self.method, self.path, &self.headers, Bytes::new())
            .await
    }
}

impl Expected {
    fn check(&self, answer: &Answer) -> Result<()> {
        match self {
            Self::Version(version) => ensure!(answer.version()? == *version),
            Self::Status(status) => ensure!(answer.status.as_u16() == *status),
            Self::Sent(name, expected) => {
                ensure!(sent(answer, name)?.as_deref() == *expected);
            }
            Self::Answered(name, expected) => {
                let value = answer.headers.get(*name).map(|value| value.as_bytes());
                ensure!(value == expected.map(str::as_bytes));
            }
            Self::Refused => {}
            Self::Protocol(protocol) => ensure!(answer.description()?.protocol == *protocol),
            Self::Path(path) => ensure!(answer.description()?.path == *path),
            Self::Waypoint(seen) => {
                ensure!(sent(answer, "x-request-id")?.is_some() == *seen);
                // What a waypoint says to Envoys alone is for nobody else.
                ensure!(sent(answer, "x-envoy-peer-metadata")?.is_none());
                ensure!(!answer.headers.contains_key("x-envoy-peer-metadata"));
            }
        }
        Ok(())
    }
}

/// A header as the application saw it.
fn sent(answer: &Answer, name: &str) -> Result<Option<String>> {
    let headers = answer.description()?.headers;
    let found = headers.into_iter().find(|(known, _)| known == name);
    Ok(found.map(|(_, value)| value))
}
