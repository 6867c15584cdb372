//! Who calls a gRPC method: the bearer token of the request, or a refusal with its reason.

use std::time::SystemTime;

use leyline_types::NamespacedName;
use tonic::{Status, metadata::MetadataMap};

use crate::token::{Caller, TokenError, TokenKey};

/// Why a call is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No header.
    #[error("no authorization header")]
    Missing,
    /// Another scheme than Bearer, or not text.
    #[error("authorization header is not a bearer token")]
    Scheme,
    /// A token that does not hold.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Checks tokens.
pub(crate) struct Authenticator {
    key: TokenKey,
    node_accounts: Vec<NamespacedName>,
}

impl Authenticator {
    /// Accepts tokens of `key`; `node_accounts` are those of node proxies.
    pub(crate) fn new(key: TokenKey, node_accounts: Vec<NamespacedName>) -> Self {
        Self { key, node_accounts }
    }

    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Caller, AuthError> {
        let header = metadata.get("authorization").ok_or(AuthError::Missing)?;
        let Ok(text) = header.to_str() else {
            return Err(AuthError::Scheme);
        };
        let (scheme, token) = text.split_once(' ').ok_or(AuthError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthError::Scheme);
        }
        Ok(self.key.verify(token.trim(), SystemTime::now())?)
    }

    /// The caller, or the gRPC answer to a stranger.
    pub(crate) fn require(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
    ) -> Result<Caller, Box<Status>> {
        self.caller(metadata).map_err(|error| {
            metrics::counter!("leyline_controlplane_unauthenticated_total", "method" => method)
                .increment(1);
            tracing::warn!(method, %error, "call refused");
            Box::new(Status::unauthenticated(error.to_string()))
        })
    }

    /// The node that a node proxy speaks for; `None` for anyone else.
    pub(crate) fn node_of<'a>(&self, caller: &'a Caller) -> Option<&'a str> {
        let trusted = self.node_accounts.iter().any(|account| {
            account.namespace == *caller.namespace && account.name == *caller.service_account
        });
        caller.node.as_deref().filter(|_| trusted)
    }
}
