//! The answer in gRPC-Web: trailers become a last frame of the body, and what is no gRPC an error of gRPC.

use std::{
    fmt::Write,
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Duration, timeout};

use super::{Encoding, spoken};
use crate::http::{
    body::{Body, BodyError},
    grpc::{is_grpc, status_of_http},
};

/// A status of gRPC.
const UNKNOWN: u16 = 2;
/// Marks the frame of the trailers.
const TRAILERS: u8 = 0x80;
/// Bytes of an answer that is no gRPC that the client is told: each may take three, and clients take heads of some 16 KiB.
const MAX_MESSAGE: usize = 4 << 10;
/// For them: who sends a page of an error sends it at once.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);

/// The head of the answer. Where that is no gRPC, the client is told its status, and its body in `grpc-message`.
pub(super) async fn translate(response: Response<Body>, encoding: Encoding) -> Response<Body> {
    let (mut head, mut body) = response.into_parts();
    if !is_framed(&head) {
        let message = beginning(body).await;
        body = Body::empty();
        let status = match head.status {
            // Without a status of gRPC it is no success.
            StatusCode::OK => UNKNOWN,
            status => status_of_http(status),
        };
        head.headers.insert("grpc-status", status.into());
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&message)) {
            head.headers.insert("grpc-message", message);
        }
    }
    let kind = match encoding {
        Encoding::Binary => "application/grpc-web+proto",
        Encoding::Text => "application/grpc-web-text+proto",
    };
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // Bodies do not keep their length.
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, body)
}

/// Whether the body is in frames of gRPC, or of gRPC-Web if the upstream speaks that by itself.
fn is_framed(head: &Parts) -> bool {
    let is_web = || matches!(spoken(&head.headers), Some((Encoding::Binary, _)));
    head.status == StatusCode::OK && (is_grpc(&head.headers) || is_web())
}

/// As much of a body as a client is told.
async fn beginning(mut body: Body) -> BytesMut {
    let mut message = BytesMut::new();
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { break };
            let room = MAX_MESSAGE - message.len();
            message.extend_from_slice(data.get(..room).unwrap_or(&data));
            if message.len() == MAX_MESSAGE {
                break;
            }
        }
    };
    // What has come by then is told.
    timeout(MESSAGE_DEADLINE, reading).await.ok();
    message
}

/// The form of `grpc-message` (gRPC over HTTP2, "Status-Message").
fn percent_encoded(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b' '..=b'~' if *byte != b'%' => text.push(char::from(*byte)),
            // Writing to a string does not fail.
            _ => write!(text, "%{byte:02X}").unwrap_or_default(),
        }
    }
    text
}

/// The body of the answer.
pub(super) fn encode(body: Body, encoding: Encoding) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Encoded {
        body,
        encoding,
        ended: false,
    })
}

struct Encoded {
    body: Body,
    encoding: Encoding,
    ended: bool,
}

impl Encoded {
    /// Each piece is padded by itself, so that none waits for the next.
    fn written(&self, bytes: Bytes) -> Bytes {
        match self.encoding {
            Encoding::Binary => bytes,
            Encoding::Text => BASE64_STANDARD.encode(bytes).into(),
        }
    }
}

/// Lines as in a head of HTTP/1.1, with the names in lower case.
fn frame_of(trailers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    let mut frame = BytesMut::with_capacity(5 + lines.len());
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
        let Some(frame) = frame else {
            this.ended = true;
            return Poll::Ready(None);
        };
        let bytes = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                this.ended = true;
                frame.trailers_ref().map(frame_of).unwrap_or_default()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(this.written(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    const MESSAGE: &[u8] = b"\0\0\0\0\x02hi";

    fn response(status: u16, kind: &'static str, frames: Vec<Frame<Bytes>>) -> Response<Body> {
        let frames = frames.into_iter().map(Ok::<_, BodyError>);
        let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
        let response = Response::builder().status(status);
        let response = response.header(CONTENT_TYPE, kind);
        response.header(CONTENT_LENGTH, 7).body(body).unwrap()
    }

    fn trailers() -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.insert("x-server", HeaderValue::from_static("v1"));
        Frame::trailers(trailers)
    }

    /// The content type, the body, and the status of gRPC in the head.
    async fn answered(response: Response<Body>, encoding: Encoding) -> (String, Bytes, String) {
        let (head, body) = translate(response, encoding).await.into_parts();
        assert!(!head.headers.contains_key(CONTENT_LENGTH));
        let text = |name: &str| {
            let value = head.headers.get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        let body = encode(body, encoding).collect().await.unwrap();
        assert!(body.trailers().is_none());
        let status = format!("{} {}", text("grpc-status"), text("grpc-message"));
        (text("content-type"), body.to_bytes(), status)
    }

    #[tokio::test]
    async fn trailers_are_the_last_frame() {
        let frames = || vec![Frame::data(Bytes::from_static(MESSAGE)), trailers()];
        let mut whole = MESSAGE.to_vec();
        whole.extend(b"\x80\0\0\0\x1egrpc-status: 0\r\nx-server: v1\r\n");
        let sent = response(200, "application/grpc", frames());
        let (kind, body, status) = answered(sent, Encoding::Binary).await;
        assert_eq!(
            (kind.as_str(), status.as_str()),
            ("application/grpc-web+proto", " ")
        );
        assert_eq!(body, whole);

        let sent = response(200, "application/grpc+proto", frames());
        let (kind, body, _) = answered(sent, Encoding::Text).await;
        assert_eq!(kind, "application/grpc-web-text+proto");
        let [message, trailers] =
            [&whole[..7], &whole[7..]].map(|part| BASE64_STANDARD.encode(part));
        assert_eq!(body, message + &trailers);
    }

    #[tokio::test]
    async fn what_is_no_grpc_becomes_an_error_of_grpc() {
        let page = |length: usize| vec![Frame::data(Bytes::from(vec![b'%'; length]))];
        let sent = response(503, "text/html", vec![Frame::data("a\nb é".into())]);
        let (kind, body, status) = answered(sent, Encoding::Binary).await;
        assert_eq!(kind, "application/grpc-web+proto");
        assert_eq!((status.as_str(), body.len()), ("14 a%0Ab %C3%A9", 0));
        let sent = response(200, "text/html", page(MAX_MESSAGE + 1));
        let (_, _, status) = answered(sent, Encoding::Text).await;
        assert_eq!(status, format!("2 {}", "%25".repeat(MAX_MESSAGE)));
    }

    #[tokio::test]
    async fn a_status_alone_stays_in_the_head() {
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        let response = response
            .header("grpc-status", 9)
            .body(Body::empty())
            .unwrap();
        let (kind, body, status) = answered(response, Encoding::Text).await;
        assert_eq!(kind, "application/grpc-web-text+proto");
        assert_eq!((status.as_str(), body.len()), ("9 ", 0));
    }
}
