//! One gRPC call of the waypoint's own. Always HTTP/2, to one endpoint, within a deadline.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use tokio::time::timeout;

use super::{
    call::{CallFailure, MAX_ANSWER, Target},
    send::send_http2,
};
use crate::{
    app::Shared,
    config::{Config, cluster::Cluster},
    http::body::Body,
};

/// Bytes before the message.
const PREFIX: usize = 5;

/// Calls a method that takes one message and gives one.
pub(crate) async fn call<A: Message + Default>(
    shared: &Arc<Shared>,
    config: &Config,
    target: &Target,
    method: &'static str,
    question: &impl Message,
) -> Result<A, CallFailure> {
    let answer = ask(shared, config, target, method, question).await?;
    answer.ok_or_else(|| CallFailure::Answer("no message".to_owned()))
}

/// The same with a method that may end without an answer, as those do that take a stream of messages: they are given one.
pub(crate) async fn ask<A: Message + Default>(
    shared: &Arc<Shared>,
    config: &Config,
    target: &Target,
    method: &'static str,
    question: &impl Message,
) -> Result<Option<A>, CallFailure> {
    let call = exchange(shared, config, target, method, question);
    match timeout(target.timeout, call).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(CallFailure::Timeout(target.timeout)),
    }
}

async fn exchange<A: Message + Default>(
    shared: &Arc<Shared>,
    config: &Config,
    target: &Target,
    method: &'static str,
    question: &impl Message,
) -> Result<Option<A>, CallFailure> {
    let (cluster, endpoint) = target.endpoint(shared, config)?;
    let request = request(cluster, target, method, question)?;
    let response = Box::pin(send_http2(shared, cluster, &endpoint, request)).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(CallFailure::Http(head.status));
    }
    check_status(&head.headers)?;
    let unreadable = |reason: String| CallFailure::Answer(reason);
    let collected = Limited::new(body, MAX_ANSWER).collect().await;
    let collected = collected.map_err(|error| unreadable(error.to_string()))?;
    if let Some(trailers) = collected.trailers() {
        check_status(trailers)?;
    }
    let bytes = collected.to_bytes();
    let message = match bytes.split_at_checked(PREFIX) {
        Some(([0, ..], message)) => message,
        Some(_) => return Err(unreadable("compressed, which was not asked for".to_owned())),
        None if bytes.is_empty() => return Ok(None),
        None => return Err(unreadable("a part of a message".to_owned())),
    };
    let message = A::decode(message).map_err(|error| unreadable(error.to_string()))?;
    Ok(Some(message))
}

fn request(
    cluster: &Cluster,
    target: &Target,
    method: &'static str,
    question: &impl Message,
) -> Result<Request<Body>, CallFailure> {
    let host = cluster
        .service
        .as_ref()
        .map(|service| service.host.as_str());
    let authority = match target.authority.as_str() {
        "" => host.unwrap_or("localhost"),
        authority => authority,
    };
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(method)
        .build()
        .map_err(|error| CallFailure::Answer(error.to_string()))?;
    let mut request = Request::new(Body::full(framed(question)));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    let kind = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    for (name, value) in &target.metadata {
        headers.insert(name.clone(), value.clone());
    }
    let millis = u64::try_from(target.timeout.as_millis()).unwrap_or(u64::MAX);
    if let Ok(timeout) = HeaderValue::try_from(format!("{}m", millis.min(99_999_999))) {
        headers.insert("grpc-timeout", timeout);
    }
    Ok(request)
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room: it was made for this length.
    message.encode(&mut bytes).ok();
    bytes.freeze()
}

fn check_status(headers: &HeaderMap) -> Result<(), CallFailure> {
    let text = |name: &str| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status").as_deref() {
        None | Some("0") => Ok(()),
        Some(status) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(CallFailure::Status(format!("{status} {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_before_it() {
        let framed = framed(&"abc".to_owned());
        let expected = [0, 0, 0, 0, 5, 10, 3, b'a', b'b', b'c'];
        assert_eq!(framed.as_ref(), expected);
    }

    #[test]
    fn a_status_that_is_not_ok_is_a_failure() {
        let mut headers = HeaderMap::new();
        check_status(&headers).unwrap();
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        check_status(&headers).unwrap();
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("gone"));
        let failure = check_status(&headers).unwrap_err();
        assert_eq!(failure.to_string(), "gRPC status 14 gone");
    }
}
