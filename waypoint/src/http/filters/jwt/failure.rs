//! Why a token is not good, in Envoy's words: clients and their libraries know them.

use http::{StatusCode, header::WWW_AUTHENTICATE};

use crate::http::{
    pipeline::Exchange,
    reply::{Flag, Reply},
};

/// Bytes of the request's address in the challenge; Envoy's limit.
const MAX_REALM: usize = 256;

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Missing,
    Format,
    HeaderBase64,
    HeaderJson,
    /// No `alg`.
    Algorithm,
    /// An `alg` that is not known, `none` among them.
    AlgorithmUnknown,
    KeyId,
    PayloadBase64,
    PayloadJson,
    /// A registered claim of another type than RFC 7519 has.
    Claim(&'static str),
    SignatureBase64,
    UnknownIssuer,
    Audience,
    NotYet,
    Expired,
    /// No `exp`, and one is required; or it is too far away.
    Lifetime,
    Subject,
    /// The issuer's keys are not known.
    NoKeys,
    /// They were to be fetched, and were not.
    NotFetched,
    NoFittingKey,
    Signature,
}

impl Failure {
    fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::Format => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::Algorithm => "Jwt header [alg] field is required and must be a string",
            Self::AlgorithmUnknown => "Jwt header [alg] is not supported",
            Self::KeyId => "Jwt header [kid] field is not a string",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Claim("aud") => "Jwt payload [aud] field is not a string or string list",
            Self::Claim("iss") => "Jwt payload [iss] field is not a string",
            Self::Claim("sub") => "Jwt payload [sub] field is not a string",
            Self::Claim("exp") => "Jwt payload [exp] field is not an integer",
            Self::Claim("nbf") => "Jwt payload [nbf] field is not an integer",
            Self::Claim(_) => "Jwt payload [iat] field is not an integer",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NotYet => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::Lifetime => "Jwt expiration is missing or too far away",
            Self::Subject => "Jwt subject is not allowed",
            Self::NoKeys => "Jwks doesn't have any valid public key",
            Self::NotFetched => "Jwks remote fetch is failed",
            Self::NoFittingKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Signature => "Jwt verification fails",
        }
    }

    /// The one of two that says more: that a token is not another provider's is no news.
    pub(super) fn or_rather(self, before: Option<Self>) -> Self {
        match before {
            None | Some(Self::Missing | Self::UnknownIssuer) => self,
            Some(before) => before,
        }
    }

    /// Whether newer keys of the issuer could help.
    pub(super) fn is_about_keys(self) -> bool {
        matches!(self, Self::NotFetched | Self::NoFittingKey)
    }

    pub(super) fn reply(self, exchange: &Exchange) -> Reply {
        let text = self.text();
        // RFC 6750, 3.1: the token is good, and not for here.
        let status = match self {
            Self::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
        let mut reply = Reply::new(status, Flag::None, details, text);
        let error = match self {
            Self::Missing => "",
            _ => ", error=\"invalid_token\"",
        };
        let challenge = format!("Bearer realm=\"{}\"{error}", realm(exchange));
        if let Ok(challenge) = challenge.try_into() {
            reply.headers.push((WWW_AUTHENTICATE, challenge));
        }
        reply
    }
}

/// What was asked for, without its query: a token may be in it.
fn realm(exchange: &Exchange) -> String {
    let head = exchange.request_head();
    let text = format!("http://{}{}", exchange.authority, head.path_only());
    let mut realm = String::with_capacity(text.len().min(MAX_REALM));
    for c in text.chars() {
        let c = match c {
            '"' => "%22".into(),
            '\\' => "%5C".into(),
            c if c.is_ascii_graphic() => std::borrow::Cow::from(c.to_string()),
            _ => "?".into(),
        };
        if realm.len() + c.len() > MAX_REALM {
            break;
        }
        realm.push_str(&c);
    }
    realm
}
