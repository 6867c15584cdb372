//! The CONNECT request that opens a stream.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderValue, Method, Request, Uri};
use leyline_types::{HboneAuthority, Network, Str};

use crate::{
    error::HboneError,
    headers::{BAGGAGE, FORWARDED, FORWARDED_NETWORK, Forwarded, TRACEPARENT, Traceparent},
};

/// What a stream is opened with. A random `traceparent` is added.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// Where the peer is to connect.
    pub authority: HboneAuthority,
    /// Who connected to us.
    pub forwarded_for: SocketAddr,
    /// The host name of the service that was called, if it was one.
    pub forwarded_host: Option<Str>,
    /// What the source says of itself, from [`crate::Baggage::encode`].
    pub baggage: Option<String>,
    /// The network of the source, for a peer in another one.
    pub forwarded_network: Option<Network>,
}

impl ConnectRequest {
    pub(super) fn into_http(self) -> Result<Request<()>, HboneError> {
        self.build()
            .map_err(|error| HboneError::Request(Arc::new(error)))
    }

    fn build(self) -> Result<Request<()>, http::Error> {
        let uri = Uri::builder()
            .authority(self.authority.to_string())
            .build()?;
        let forwarded = Forwarded {
            client: self.forwarded_for,
            host: self.forwarded_host,
        };
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        if let Some(baggage) = self.baggage {
            request = request.header(BAGGAGE, HeaderValue::try_from(baggage)?);
        }
        if let Some(network) = self.forwarded_network {
            request = request.header(FORWARDED_NETWORK, HeaderValue::try_from(network.as_str())?);
        }
        request
            .header(FORWARDED, HeaderValue::try_from(forwarded.to_string())?)
            .header(
                TRACEPARENT,
                HeaderValue::try_from(Traceparent::random().to_string())?,
            )
            .body(())
    }
}
