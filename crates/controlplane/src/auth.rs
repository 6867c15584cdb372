//! Who calls a gRPC method: the bearer token of the request, or a refusal with its reason.
//!
//! A stream lasts no longer than the token that opened it, so that a token that was taken back by its end is of no use to
//! who still has a connection.

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use leyline_types::NamespacedName;
use tokio::time::Instant;
use tonic::{Extensions, Status, metadata::MetadataMap};

use crate::token::{Caller, TokenError, TokenKey, Verified};

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

impl AuthError {
    /// For metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Scheme => "scheme",
            Self::Token(TokenError::Malformed) => "malformed",
            Self::Token(TokenError::Algorithm) => "algorithm",
            Self::Token(TokenError::Signature) => "signature",
            Self::Token(TokenError::Expired) => "expired",
            Self::Token(TokenError::Audience) => "audience",
            Self::Token(TokenError::Subject) => "subject",
        }
    }
}

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Whether somebody with a valid token has used the connection.
    trusted: Arc<AtomicBool>,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            trusted: Arc::default(),
        }
    }

    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }
}

/// Who calls, proven.
pub(crate) struct Authenticated {
    caller: Caller,
    expiry: Instant,
}

impl Authenticated {
    /// When a stream of the caller ends.
    pub(crate) fn expiry(&self) -> Instant {
        self.expiry
    }
}

impl Deref for Authenticated {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
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

    pub(crate) fn caller(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Authenticated, AuthError> {
        let header = metadata.get("authorization").ok_or(AuthError::Missing)?;
        let Ok(text) = header.to_str() else {
            return Err(AuthError::Scheme);
        };
        let (scheme, token) = text.split_once(' ').ok_or(AuthError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthError::Scheme);
        }
        let now = SystemTime::now();
        let Verified { caller, expires } = self.key.verify_until(token.trim(), now)?;
        if let Some(peer) = extensions.get::<Peer>() {
            peer.trusted.store(true, Ordering::Relaxed);
        }
        let left = expires.duration_since(now).unwrap_or_default();
        Ok(Authenticated {
            caller,
            expiry: Instant::now() + left,
        })
    }

    /// The caller, or the gRPC answer to a stranger.
    pub(crate) fn require(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Authenticated, Box<Status>> {
        self.caller(metadata, extensions).map_err(|error| {
            metrics::counter!(
                "leyline_controlplane_unauthenticated_total", "method" => method, "reason" => error.label()
            )
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

/// Counts and logs that an authenticated caller does not get what it asks for.
pub(crate) fn refuse(method: &'static str, status: &Status) {
    let code = match status.code() {
        tonic::Code::PermissionDenied => "permission_denied",
        tonic::Code::ResourceExhausted => "resource_exhausted",
        tonic::Code::InvalidArgument => "invalid_argument",
        tonic::Code::DeadlineExceeded => "deadline_exceeded",
        tonic::Code::Unauthenticated => "unauthenticated",
        _ => "other",
    };
    metrics::counter!("leyline_controlplane_refused_total", "method" => method, "code" => code)
        .increment(1);
    tracing::warn!(method, code, reason = status.message(), "caller refused");
}
