//! Who the client is, in a header of its requests (facts A.4.2): TLS ends at the waypoint, so that the application would
//! see no more than the waypoint.

use envoy_types::pb::envoy::{
    config::{
        common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
        core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
    },
    extensions::filters::{
        http::header_mutation::v3::{HeaderMutation, Mutations},
        network::http_connection_manager::v3::{
            HttpFilter, http_connection_manager::ForwardClientCertDetails,
        },
    },
};

use super::{super::pb, http_filter};
use crate::objects::Gateway;

const ANNOTATION: &str = "ambient.istio.io/xfcc-include-client-identity";
const HEADER: &str = "x-forwarded-client-cert";
const VALUE: &str = "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%";

/// Whether applications are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum ClientIdentity {
    Hidden,
    InHeader,
}

impl ClientIdentity {
    /// As the Gateway of a waypoint says.
    pub(in super::super) fn of(gateway: Option<&Gateway>) -> Self {
        let annotations = gateway.and_then(|gateway| gateway.metadata.annotations.as_ref());
        let wanted = annotations.and_then(|all| all.get(ANNOTATION));
        if wanted.is_some_and(|wanted| wanted == "true") {
            Self::InHeader
        } else {
            Self::Hidden
        }
    }

    /// The first filter of a chain.
    pub(super) fn filter(self) -> Option<HttpFilter> {
        if self == Self::Hidden {
            return None;
        }
        let option = HeaderValueOption {
            header: Some(HeaderValue {
                key: HEADER.to_owned(),
                value: VALUE.to_owned(),
                ..HeaderValue::default()
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        };
        let mutations = Mutations {
            request_mutations: vec![Mutation {
                action: Some(Action::Append(option)),
            }],
            ..Mutations::default()
        };
        let config = HeaderMutation {
            mutations: Some(mutations),
            ..HeaderMutation::default()
        };
        let name = "istio.waypoint.xfcc_client_identity";
        Some(http_filter(name, pb::any(&config)))
    }

    /// What becomes of the header else.
    pub(super) fn forwarding(self) -> ForwardClientCertDetails {
        match self {
            Self::Hidden => ForwardClientCertDetails::Sanitize,
            Self::InHeader => ForwardClientCertDetails::AlwaysForwardOnly,
        }
    }
}
