//! Requests one after another on one connection of the client, as applications that keep connections send them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use leyline_tests::{client::Connection, echo::Description, mesh::Mesh};

use crate::support::SOON;

/// An HTTP/1.1 connection of `shop/client`.
pub(crate) struct Session {
    connection: Connection,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Session {
    pub(crate) async fn open(mesh: &Mesh, target: SocketAddr) -> Result<Self> {
        let client = mesh.cluster().client("shop/client")?;
        let connection = client.connect(target, SOON).await?;
        Ok(Self { connection })
    }

    /// One request.
    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: canary\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        self.connection.write(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.connection.read(1).await?);
            ensure!(head.len() < 1 << 16, "the head has no end");
        }
        let head = String::from_utf8(head)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.context("no status")?.parse()?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        let length = answer.header("content-length").unwrap_or("0").parse()?;
        answer.body = self.connection.read(length).await?;
        Ok(answer)
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// What the echo app says.
    pub(crate) fn description(&self) -> Result<Description> {
        let body = String::from_utf8_lossy(&self.body);
        ensure!(self.status == 200, "{}: {body}", self.status);
        serde_json::from_slice(&self.body).context("reading the reply of the echo app")
    }

    /// The version that answered.
    pub(crate) fn version(&self) -> Result<String> {
        Ok(self.description()?.version)
    }
}
