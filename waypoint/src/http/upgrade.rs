//! WebSocket and other protocols that an HTTP/1.1 request switches to: once both sides have agreed, bytes are copied.

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use leyline_runtime::spawn;
use tracing::{Span, debug};

use super::{
    body::Body,
    pipeline::Exchange,
    reply::{Flag, Reply},
};
use crate::app::Shared;

/// A switch that the client asked for.
pub(crate) struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// What the client asks for, if it is allowed. Take it before the headers of this hop are removed.
pub(crate) fn requested(
    exchange: &mut Exchange,
    allowed: &[String],
) -> Result<Option<Upgrade>, Reply> {
    let Some(protocol) = exchange.head.headers.get(UPGRADE).cloned() else {
        return Ok(None);
    };
    let name = protocol.to_str().unwrap_or_default().to_ascii_lowercase();
    // An offer of HTTP/2 in clear text (RFC 7540, 3.2) is only an offer; the client goes on without.
    if name == "h2c" {
        return Ok(None);
    }
    if !allowed.contains(&name) {
        let details = "upgrade_failed";
        let mut reply = Reply::new(StatusCode::FORBIDDEN, Flag::None, details, "");
        // What the client sends after it may be of the other protocol already.
        let close = HeaderValue::from_static("close");
        reply.headers.push((CONNECTION, close));
        return Err(reply);
    }
    let client = exchange.head.extensions.remove::<OnUpgrade>();
    Ok(client.map(|client| Upgrade { protocol, client }))
}

impl Upgrade {
    /// Asks the upstream for the same.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
    }

    /// Joins both sides, once the response has gone to the client.
    pub(crate) fn join(self, shared: &Shared, response: &mut Response<Body>) {
        let upstream = hyper::upgrade::on(response);
        let client = self.client;
        let copy = async move {
            let (client, upstream) = match tokio::try_join!(client, upstream) {
                Ok(both) => both,
                Err(error) => return debug!(%error, "no upgrade"),
            };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
                debug!(%error, "upgraded connection broke");
            }
        };
        drop(spawn(
            "upgraded connection",
            Span::current(),
            &shared.drain,
            copy,
        ));
    }
}
