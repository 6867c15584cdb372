//! An HTTP/1.1 connection of an application that keeps it for many requests.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{task::JoinSet, time::timeout};

use crate::{client::Client, echo::Description};

/// A connection on which one request follows the other.
#[derive(Debug)]
pub struct Session {
    sender: SendRequest<Full<Bytes>>,
    target: SocketAddr,
    deadline: Duration,
    /// Ends with the session.
    _driver: JoinSet<hyper::Result<()>>,
}

/// A response with its headers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Whole body.
    pub body: Bytes,
}

impl Answer {
    /// What the echo app says of the request.
    pub fn description(&self) -> Result<Description> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}, and no reply of the echo app", self.status))
    }

    /// The version that answered.
    pub fn version(&self) -> Result<String> {
        Ok(self.description()?.version)
    }
}

impl Session {
    /// Connects; `deadline` is also that of each request.
    pub async fn open(client: &Client, target: SocketAddr, deadline: Duration) -> Result<Self> {
        let stream = client.connect(target, deadline).await?.into_stream();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            sender,
            target,
            deadline,
            _driver: driver,
        })
    }

    /// `GET path` with these headers.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.request("GET", path, headers, Bytes::new()).await
    }

    /// Any request.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == header::HOST) {
            request = request.header(header::HOST, self.target.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        timeout(self.deadline, exchange)
            .await
            .with_context(|| format!("no answer within {:?}", self.deadline))?
            .with_context(|| format!("{method} http://{}{path}", self.target))
    }
}
