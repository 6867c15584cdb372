//! External authorizers by gRPC (`envoy.service.auth.v3.Authorization`): what is the same for requests and connections.

use envoy_types::pb::envoy::{
    config::core::v3::{
        Address, SocketAddress, address::Address as AnyAddress, socket_address::PortSpecifier,
    },
    service::auth::v3::{AttributeContext, CheckRequest, CheckResponse, attribute_context::Peer},
    r#type::matcher::v3::MetadataMatcher,
};
use leyline_authz::MetadataMatch;
use metrics::counter;
use serde_json::{Map, Value};
use std::{net::SocketAddr, sync::Arc};
use tokio::time::Duration;

use crate::{
    app::Shared,
    config::{Config, error::Compiled, rbac::metadata_match},
    http::server::Destination,
    listener::Client,
    upstream::{
        call::{CallFailure, Target},
        grpc,
    },
};

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Envoy's, where a filter says none.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(200);
/// What Envoy calls a refusal, and a refusal for lack of an answer.
pub(crate) const DENIED: &str = "ext_authz_denied";
pub(crate) const FAILED: &str = "ext_authz_error";

/// What was found out before, which says whether anybody is asked.
#[derive(Debug, Default)]
pub(crate) struct Condition(Option<(MetadataMatch, Expected)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Holds,
    HoldsNot,
}

impl Condition {
    pub(crate) fn compile(matcher: Option<&MetadataMatcher>) -> Compiled<Self> {
        let Some(matcher) = matcher else {
            return Ok(Self(None));
        };
        let expected = if matcher.invert {
            Expected::HoldsNot
        } else {
            Expected::Holds
        };
        Ok(Self(Some((metadata_match(matcher)?, expected))))
    }

    /// Without a condition it always holds.
    pub(crate) fn holds(&self, metadata: &Map<String, Value>) -> bool {
        self.0.as_ref().is_none_or(|(matched, expected)| {
            matched.holds(metadata) == (*expected == Expected::Holds)
        })
    }
}

/// What is told of the connection.
pub(crate) fn attributes(client: &Client, destination: &Destination) -> AttributeContext {
    AttributeContext {
        source: Some(Peer {
            address: Some(address(client.addr)),
            principal: client.principal.to_string(),
            ..Peer::default()
        }),
        destination: Some(Peer {
            address: destination.address().map(address),
            ..Peer::default()
        }),
        ..AttributeContext::default()
    }
}

fn address(addr: SocketAddr) -> Address {
    Address {
        address: Some(AnyAddress::SocketAddress(SocketAddress {
            address: addr.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(addr.port().into())),
            ..SocketAddress::default()
        })),
    }
}

/// Asks once.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    config: &Config,
    target: &Target,
    attributes: AttributeContext,
) -> Result<CheckResponse, CallFailure> {
    let question = CheckRequest {
        attributes: Some(attributes),
    };
    grpc::call(shared, config, target, METHOD, &question).await
}

/// Whether the answer allows: gRPC's status OK.
pub(crate) fn allows(answer: &CheckResponse) -> bool {
    answer.status.as_ref().is_none_or(|status| status.code == 0)
}

/// Counts what became of a question.
pub(crate) fn count(target: &Target, result: &'static str) {
    counter!(
        "leyline_waypoint_ext_authz_total",
        "cluster" => target.cluster.clone(), "result" => result
    )
    .increment(1);
}
