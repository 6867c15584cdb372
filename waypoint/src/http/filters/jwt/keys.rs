//! The keys of an issuer (RFC 7517) and signatures by them (RFC 7515).

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
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

/// Bytes of a coordinate of P-521 (RFC 7518, 6.2.1.2).
const P521_COORDINATE: usize = 66;
/// Begins a point that is not compressed (SEC 1, 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// How a token says that it is signed (RFC 7518, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signing {
    Known(Algorithm),
    /// ECDSA on P-521, which `jsonwebtoken` has no name for, and its crypto provider has.
    Es512,
}

impl Signing {
    /// `None`: no such algorithm, or one that is none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "ES512" => Some(Self::Es512),
            name => name.parse().ok().map(Self::Known),
        }
    }
}

/// Public keys. Secret ones (`oct`) are not taken: who has the key set of an issuer could sign with them.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only one that the key is for, if it says so.
    algorithm: Option<Signing>,
    material: Material,
}

enum Material {
    Known(Box<DecodingKey>),
    /// A point of P-521, not compressed.
    P521(Vec<u8>),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

impl Keys {
    /// Keys that cannot be used are left out; a text that is no key set has none, so that no token is good.
    pub(super) fn parse(text: &str) -> Self {
        let keys = Self::usable(text);
        if keys.is_empty() {
            warn!("a token issuer has no usable keys: all of its tokens are refused");
        }
        keys
    }

    /// The same, for who tells himself that there are none.
    pub(super) fn usable(text: &str) -> Self {
        let set: Value = serde_json::from_str(text).unwrap_or_default();
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.into_iter().flatten().take(MAX_KEYS);
        Self(keys.filter_map(Key::parse).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the keys made the signature.
    pub(super) fn verify(
        &self,
        algorithm: Signing,
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
        let good = fitting.any(|key| key.made(algorithm, message, signature));
        if good {
            Ok(())
        } else {
            Err(Failure::Signature)
        }
    }
}

impl Key {
    fn parse(value: &Value) -> Option<Self> {
        if value.get("use").and_then(Value::as_str) == Some("enc") {
            return None;
        }
        // A key for an algorithm that is not known here is for none.
        let algorithm = match value.get("alg") {
            Some(Value::String(name)) => Some(Signing::parse(name)?),
            _ => None,
        };
        if value.get("crv").and_then(Value::as_str) == Some("P-521") {
            let id = value.get("kid").and_then(Value::as_str);
            return Some(Self {
                id: id.map(str::to_owned),
                algorithm,
                material: Material::P521(p521_point(value)?),
            });
        }
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        if key.family() == AlgorithmFamily::Hmac {
            return None;
        }
        Some(Self {
            id: jwk.common.key_id,
            algorithm,
            material: Material::Known(Box::new(key)),
        })
    }

    /// The family is of the key and not of the token: a public key is never taken for a secret one.
    fn fits(&self, algorithm: Signing, id: Option<&str>) -> bool {
        let same_id = match (id, self.id.as_deref()) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        };
        let same_family = match (&self.material, algorithm) {
            (Material::Known(key), Signing::Known(algorithm)) => {
                key.family().algorithms().contains(&algorithm)
            }
            (Material::P521(_), Signing::Es512) => true,
            (Material::Known(_), Signing::Es512) | (Material::P521(_), Signing::Known(_)) => false,
        };
        same_id && self.algorithm.is_none_or(|own| own == algorithm) && same_family
    }

    /// Whether the signature is of this key.
    fn made(&self, algorithm: Signing, message: &str, signature: &str) -> bool {
        match (&self.material, algorithm) {
            (Material::Known(key), Signing::Known(algorithm)) => {
                verify(signature, message.as_bytes(), key, algorithm) == Ok(true)
            }
            (Material::P521(point), Signing::Es512) => {
                let key = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point);
                let signature = URL_SAFE_NO_PAD.decode(signature);
                signature.is_ok_and(|signature| key.verify(message.as_bytes(), &signature).is_ok())
            }
            (Material::Known(_), Signing::Es512) | (Material::P521(_), Signing::Known(_)) => false,
        }
    }
}

/// The point of a key on P-521 (RFC 7518, 6.2.1).
fn p521_point(key: &Value) -> Option<Vec<u8>> {
    if key.get("kty")?.as_str()? != "EC" {
        return None;
    }
    let mut point = vec![UNCOMPRESSED];
    for name in ["x", "y"] {
        let coordinate = URL_SAFE_NO_PAD.decode(key.get(name)?.as_str()?).ok()?;
        if coordinate.len() != P521_COORDINATE {
            return None;
        }
        point.extend(coordinate);
    }
    Some(point)
}
