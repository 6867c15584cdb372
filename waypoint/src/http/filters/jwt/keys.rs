//! The keys of an issuer (RFC 7517) and signatures by them (RFC 7515).

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    crypto::verify,
    jwk::{Jwk, PublicKeyUse},
};
use serde_json::Value;
use tracing::warn;

use super::failure::Failure;

/// Keys of one issuer; more are a mistake, and each is tried for a token without `kid`.
const MAX_KEYS: usize = 256;

/// Public keys. Secret ones (`oct`) are not taken: who has the key set of an issuer could sign with them.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only one that the key is for, if it says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

impl Keys {
    /// Keys that cannot be used are left out; a text that is no key set has none, so that no token is good.
    pub(super) fn parse(text: &str) -> Self {
        let set: Value = serde_json::from_str(text).unwrap_or_default();
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.into_iter().flatten().take(MAX_KEYS);
        let keys: Vec<Key> = keys.filter_map(Key::parse).collect();
        if keys.is_empty() {
            warn!("a token issuer has no usable keys: all of its tokens are refused");
        }
        Self(keys)
    }

    /// Whether one of the keys made the signature.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
        message: &str,
        signature: &str,
    ) -> Result<(), Failure> {
        if self.0.is_empty() {
            return Err(Failure::NoKeys);
        }
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.fits(algorithm, id))
            .peekable();
        if fitting.peek().is_none() {
            return Err(Failure::NoFittingKey);
        }
        let good = fitting
            .any(|key| verify(signature, message.as_bytes(), &key.key, algorithm) == Ok(true));
        if good {
            Ok(())
        } else {
            Err(Failure::Signature)
        }
    }
}

impl Key {
    fn parse(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        if key.family() == AlgorithmFamily::Hmac {
            return None;
        }
        // A key for an algorithm that is not known here is for none.
        let algorithm = match value.get("alg") {
            Some(Value::String(name)) => Some(name.parse().ok()?),
            _ => None,
        };
        Some(Self {
            id: jwk.common.key_id,
            algorithm,
            key,
        })
    }

    /// The family is of the key and not of the token: a public key is never taken for a secret one.
    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let same_id = match (id, self.id.as_deref()) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        };
        same_id
            && self.algorithm.is_none_or(|own| own == algorithm)
            && self.key.family().algorithms().contains(&algorithm)
    }
}
