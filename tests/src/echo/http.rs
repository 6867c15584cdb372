//! The HTTP port of the echo app, HTTP/1 and HTTP/2. `/bytes/N` downloads N bytes of the pattern, `/slow/MS` answers after a while,
//! `/fail/VERSION/STATUS` fails where the version is the app's, and every path describes the request, with the hash of its body.
//! An app that is told to fail says the same under its status.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpStream, time::sleep};

use super::{Description, Me};
use crate::payload::{Hash, pattern};

pub(super) async fn serve(stream: TcpStream, me: Arc<Me>) -> Result<()> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    let ends = (canonical(peer), canonical(local));
    let service = service_fn(move |request| {
        let me = me.clone();
        async move {
            let reply = answer(request, &me, ends).await;
            Ok::<_, Infallible>(reply.unwrap_or_else(|e| {
                let mut reply = Response::new(Full::from(format!("{e:#}\n")));
                *reply.status_mut() = StatusCode::BAD_REQUEST;
                reply
            }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A client that has sent its request may close its half.
    builder.http1().half_close(true);
    builder
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(anyhow::Error::from_boxed)
        .context("serving HTTP")
}

async fn answer(
    request: Request<Incoming>,
    me: &Me,
    (peer, local): (SocketAddr, SocketAddr),
) -> Result<Response<Full<Bytes>>> {
    let requests = me.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let (head, mut body) = request.into_parts();
    let mut hash = Hash::default();
    let mut body_bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            hash.update(&data);
            body_bytes += data.len() as u64;
        }
    }
    let path = head.uri.path();
    if let Some(length) = path.strip_prefix("/bytes/") {
        let length = length.parse().context("/bytes/ takes a number")?;
        return Ok(Response::new(Full::new(pattern(length))));
    }
    if let Some(millis) = path.strip_prefix("/slow/") {
        sleep(Duration::from_millis(
            millis.parse().context("/slow/ takes milliseconds")?,
        ))
        .await;
    }
    if let Some(failure) = path.strip_prefix("/fail/") {
        let failure = failure
            .split_once('/')
            .context("/fail/ takes a version and a status")?;
        if failure.0 == me.version {
            let mut reply = Response::new(Full::default());
            *reply.status_mut() = failure.1.parse()?;
            return Ok(reply);
        }
    }
    let description = Description {
        pod: me.pod.clone(),
        namespace: me.namespace.clone(),
        version: me.version.clone(),
        requests,
        peer,
        local,
        protocol: format!("{:?}", head.version),
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: pairs(&head.headers),
        body_bytes,
        body_sha256: hash.finish(),
    };
    let mut text = serde_json::to_vec_pretty(&description)?;
    text.push(b'\n');
    Ok(Response::builder()
        .status(me.fail.unwrap_or(200))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(text))?)
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    leyline_types::canonical(addr)
}
