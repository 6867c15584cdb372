//! A CONNECT request that waits for its answer.

use std::{fmt, future::poll_fn, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, ext::Protocol, server::SendResponse};
use http::{
    HeaderMap, Method, Response, StatusCode,
    header::{HeaderName, HeaderValue},
    request::Parts,
};
use leyline_types::{HboneAuthority, Network};

use super::answer;
use crate::{
    config::HboneConfig,
    error::HboneError,
    headers::{
        self, BAGGAGE, Baggage, FORWARDED, FORWARDED_NETWORK, Forwarded, HeaderError, TRACEPARENT,
        Traceparent,
    },
    stream::HboneStream,
    usage::StreamGuard,
};

/// A request that was answered without the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadRequest {
    /// Not CONNECT: 400.
    Method,
    /// Extended CONNECT, which we do not offer (RFC 8441): 400.
    Protocol,
    /// No `:authority`, or one that is neither an address nor a host name, with a port: 400.
    Authority,
    /// A header list larger than [`HboneConfig::request_headers`]: 431.
    Headers,
    /// More streams at once than allowed, counting those that were reset: REFUSED_STREAM.
    TooMany,
}

impl BadRequest {
    /// A metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Protocol => "protocol",
            Self::Authority => "authority",
            Self::Headers => "headers",
            Self::TooMany => "too_many",
        }
    }
}

/// A valid CONNECT. Dropping it without an answer resets the stream.
pub struct Request {
    authority: HboneAuthority,
    headers: HeaderMap,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
    release_batch: usize,
    guard: Arc<StreamGuard>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Request {
    pub(super) fn parse(
        head: Parts,
        receive: RecvStream,
        respond: SendResponse<Bytes>,
        cfg: &HboneConfig,
        guard: Arc<StreamGuard>,
    ) -> Result<Self, BadRequest> {
        match authority(&head) {
            Ok(authority) => Ok(Self {
                authority,
                headers: head.headers,
                receive,
                respond,
                release_batch: cfg.release_batch(),
                guard,
            }),
            Err(reason) => {
                answer(respond, StatusCode::BAD_REQUEST);
                Err(reason)
            }
        }
    }

    pub(super) fn guard(&self) -> &Arc<StreamGuard> {
        &self.guard
    }

    /// Where the peer asks to be connected to.
    pub fn authority(&self) -> &HboneAuthority {
        &self.authority
    }

    /// What the source says of itself; telemetry only.
    ///
    /// # Errors
    /// When the header is malformed.
    pub fn baggage(&self) -> Result<Option<Baggage>, HeaderError> {
        self.header(&BAGGAGE, Baggage::parse)
    }

    /// The client's address and the service it called; telemetry only, as far as the peer is not trusted with it.
    ///
    /// # Errors
    /// When the header is malformed.
    pub fn forwarded(&self) -> Result<Option<Forwarded>, HeaderError> {
        self.header(&FORWARDED, Forwarded::parse)
    }

    /// The network of the source, as a peer in another one says; telemetry only, as far as the peer is trusted with it.
    ///
    /// # Errors
    /// When the header is malformed.
    pub fn forwarded_network(&self) -> Result<Option<Network>, HeaderError> {
        self.header(&FORWARDED_NETWORK, headers::network)
    }

    /// The connection's trace id.
    ///
    /// # Errors
    /// When the header is malformed.
    pub fn traceparent(&self) -> Result<Option<Traceparent>, HeaderError> {
        self.header(&TRACEPARENT, Traceparent::parse)
    }

    fn header<T>(
        &self,
        name: &HeaderName,
        parse: impl Fn(&[u8]) -> Result<T, HeaderError>,
    ) -> Result<Option<T>, HeaderError> {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => parse(value.as_bytes()).map(Some),
            (Some(_), Some(_)) => Err(HeaderError::Repeated),
        }
    }

    /// Resolves when the peer has given the request up: no need to connect for it any more. Cancel safe.
    pub async fn cancelled(&mut self) {
        // An error is an end too: that of the connection.
        let _reason = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers 200, with baggage of the destination, and opens the stream.
    ///
    /// # Errors
    /// When `baggage` cannot be a header, or the peer has given the request up.
    pub fn accept(mut self, baggage: Option<&str>) -> Result<HboneStream, HboneError> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            let value = HeaderValue::from_str(baggage)
                .map_err(|error| HboneError::Request(Arc::new(error.into())))?;
            response.headers_mut().insert(BAGGAGE, value);
        }
        let send = self
            .respond
            .send_response(response, false)
            .map_err(HboneError::tunnel)?;
        Ok(HboneStream::new(
            self.receive,
            send,
            self.release_batch,
            self.guard,
        ))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(self, status: StatusCode) {
        answer(self.respond, status);
    }
}

fn authority(head: &Parts) -> Result<HboneAuthority, BadRequest> {
    if head.method != Method::CONNECT {
        return Err(BadRequest::Method);
    }
    if head.extensions.get::<Protocol>().is_some() {
        return Err(BadRequest::Protocol);
    }
    let authority = head.uri.authority().ok_or(BadRequest::Authority)?;
    authority
        .as_str()
        .parse()
        .map_err(|_not_an_authority| BadRequest::Authority)
}
