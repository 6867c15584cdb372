//! One GET of a small JSON document, over HTTP or HTTPS with the system's roots.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use leyline_net::{ConnectOptions, NetNs, Source};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::translate::KeySource;

/// Bytes of a document. The largest issuers have some dozens of keys of a kilobyte, some with certificates.
const MAX_DOCUMENT: usize = 512 << 10;
/// Where an issuer describes itself (OpenID Connect Discovery 1.0, 4).
const DESCRIPTION: &str = "/.well-known/openid-configuration";

/// The keys of a source, as text.
pub(super) async fn keys(source: &KeySource, deadline: Duration) -> Result<String, String> {
    let fetching = async {
        let uri = match source {
            KeySource::KeySet(uri) => uri.clone(),
            KeySource::Discovery(issuer) => {
                let place = format!("{}{DESCRIPTION}", issuer.trim_end_matches('/'));
                let description = json(&Box::pin(get(&place, deadline)).await?)?;
                let uri = description.get("jwks_uri").and_then(Value::as_str);
                uri.ok_or("the issuer's description has no jwks_uri")?
                    .to_owned()
            }
        };
        let text = Box::pin(get(&uri, deadline)).await?;
        match json(&text)?.get("keys") {
            Some(Value::Array(_)) => Ok(text),
            Some(_) | None => Err("not a JSON Web Key Set (RFC 7517)".to_owned()),
        }
    };
    timeout(deadline, fetching)
        .await
        .unwrap_or_else(|_elapsed| Err(format!("no answer within {deadline:?}")))
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

/// Redirects are not followed: where the keys are is for the object to say.
async fn get(uri: &str, deadline: Duration) -> Result<String, String> {
    let parsed: Uri = uri.parse().map_err(|error| format!("`{uri}`: {error}"))?;
    let host = parsed
        .host()
        .ok_or_else(|| format!("`{uri}` has no host"))?;
    let tls = match parsed.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(format!("`{uri}` is not an http or https address")),
    };
    let port = parsed.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = host.trim_matches(['[', ']']);
    let stream = connect(host, port, deadline).await?;
    if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connecting = TlsConnector::from(roots()?).connect(name, stream);
        let stream = connecting.await.map_err(|error| error.to_string())?;
        Box::pin(exchange(stream, &parsed)).await
    } else {
        Box::pin(exchange(stream, &parsed)).await
    }
}

/// The first address that answers.
async fn connect(host: &str, port: u16, deadline: Duration) -> Result<TcpStream, String> {
    let found = lookup_host((host, port)).await;
    let found = found.map_err(|error| format!("{host}: {error}"))?;
    let namespace = NetNs::current().map_err(|error| error.to_string())?;
    let options = ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline,
        keepalive: None,
        announce: None,
    };
    let mut failure = format!("{host} has no address");
    for address in found {
        match leyline_net::connect(&namespace, address, &options).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("{address}: {error}"),
        }
    }
    Err(failure)
}

fn roots() -> Result<Arc<ClientConfig>, String> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        return Err("the system has no trusted roots".to_owned());
    }
    let config = ClientConfig::builder().with_root_certificates(store);
    Ok(Arc::new(config.with_no_client_auth()))
}

async fn exchange<S>(stream: S, uri: &Uri) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let text = |error: hyper::Error| error.to_string();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "leyline-controlplane")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let answering = async {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != StatusCode::OK {
            return Err(format!("{uri} answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_DOCUMENT);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        String::from_utf8(body.to_bytes().into()).map_err(|error| error.to_string())
    };
    // The connection is driven here and not in a task of its own: it ends with the answer. Both are polled in this
    // function only, and neither is used again, so that either may be dropped at any point.
    tokio::pin!(answering);
    tokio::select! {
        answer = &mut answering => answer,
        ended = connection => match ended {
            Ok(()) => answering.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    const KEYS: &str = r#"{"keys":[{"kty":"new"}]}"#;
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Answers each connection by its path, until dropped.
    async fn issuer() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (status, body) = match path {
                    "/keys" => ("200 OK", KEYS.to_owned()),
                    "/large" => ("200 OK", format!("{{\"keys\":[{}]}}", " ".repeat(1 << 20))),
                    "/html" => ("200 OK", "<html>".to_owned()),
                    "/other" => ("200 OK", "{\"keys\":1}".to_owned()),
                    "/moved" => ("302 Found", String::new()),
                    "/silent" => {
                        // Until the client gives up.
                        stream.read_to_end(&mut Vec::new()).await.unwrap();
                        continue;
                    }
                    "/good/.well-known/openid-configuration" => {
                        let uri = format!("{{\"jwks_uri\":\"http://{address}/keys\"}}");
                        ("200 OK", uri)
                    }
                    "/bad/.well-known/openid-configuration" => ("200 OK", "{}".to_owned()),
                    _ => ("404 Not Found", String::new()),
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                // The client may have seen enough.
                let _sent = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn keys_are_fetched_and_everything_else_is_refused() {
        let (address, _serving) = issuer().await;
        let at = |path: &str| KeySource::KeySet(format!("http://{address}{path}"));
        let of = |path: &str| KeySource::Discovery(format!("http://{address}{path}"));
        for source in [at("/keys"), of("/good"), of("/good/")] {
            let found = keys(&source, DEADLINE).await;
            assert_eq!(found.as_deref(), Ok(KEYS), "{source}");
        }
        for (source, reason) in [
            (at("/large"), "length limit exceeded"),
            (at("/html"), "not JSON"),
            (at("/other"), "not a JSON Web Key Set"),
            (at("/moved"), "answers 302"),
            (at("/none"), "answers 404"),
            (of("/bad"), "no jwks_uri"),
            (of("/none"), "answers 404"),
            (KeySource::KeySet("ftp://a/".to_owned()), "not an http"),
            (KeySource::Discovery("me".to_owned()), "invalid format"),
        ] {
            let error = keys(&source, DEADLINE).await.unwrap_err();
            assert!(error.contains(reason), "{source}: {error}");
        }
        let error = keys(&at("/silent"), Duration::from_millis(50)).await;
        assert!(error.unwrap_err().contains("no answer within 50ms"));
    }
}
