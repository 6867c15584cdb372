//! Bearer tokens of local mode, in the shape of Kubernetes' projected service account tokens and signed with a key of
//! the state directory (JWT, HMAC-SHA256; RFC 7519). They bind a caller to its service account and node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::state_dir::{StateDir, StateError};

const KEY_FILE: &str = "token-key";
/// As long as the digest; longer adds nothing (RFC 2104).
const KEY_BYTES: usize = 32;
/// What Istio's proxies ask for.
const AUDIENCE: &str = "istio-ca";
const ISSUER: &str = "leyline";
const SUBJECT_PREFIX: &str = "system:serviceaccount:";
/// As far as anybody looks ahead.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A token is some hundred bytes; this bounds what is decoded for a stranger.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Who calls, as its token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The node that the token is bound to.
    pub node: Option<String>,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
}

/// A caller and until when it is that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) caller: Caller,
    pub(crate) expires: SystemTime,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64 and JSON.
    #[error("token is malformed")]
    Malformed,
    /// Signed otherwise than HS256.
    #[error("token is signed with an algorithm that is not accepted")]
    Algorithm,
    /// Signed with another key, or changed.
    #[error("token signature is not valid")]
    Signature,
    /// Too old.
    #[error("token has expired")]
    Expired,
    /// For somebody else.
    #[error("token is for another audience")]
    Audience,
    /// Not of a service account.
    #[error("token is not of a service account")]
    Subject,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// It cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Not of our making.
    #[error(
        "token key has {0} bytes instead of {KEY_BYTES}; remove the file {KEY_FILE} to get a new one"
    )]
    Length(usize),
}

#[derive(Deserialize, Serialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: String,
}

#[derive(Deserialize, Serialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize, Serialize)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
}

#[derive(Deserialize, Serialize)]
struct Named {
    name: String,
}

/// Signs and verifies tokens.
pub struct TokenKey {
    mac: Hmac<Sha256>,
}

impl TokenKey {
    /// Takes the key of the state directory; makes it first if there is none.
    ///
    /// # Errors
    /// When it cannot be read or made, or is not a key.
    pub fn open(state: &StateDir) -> Result<Self, TokenKeyError> {
        if state.read_secret(KEY_FILE)?.is_none() {
            state.create_secret(KEY_FILE, &rand::random::<[u8; KEY_BYTES]>())?;
        }
        let key = state.read_secret(KEY_FILE)?.unwrap_or_default();
        if key.len() != KEY_BYTES {
            return Err(TokenKeyError::Length(key.len()));
        }
        let mac = Hmac::new_from_slice(&key).map_err(|_length| TokenKeyError::Length(key.len()))?;
        Ok(Self { mac })
    }

    /// A token for `caller`.
    pub fn issue(&self, caller: &Caller, lifetime: Duration, now: SystemTime) -> String {
        let now = seconds(now);
        let named = |name: &String| Named { name: name.clone() };
        let claims = Claims {
            aud: vec![AUDIENCE.to_owned()],
            exp: now.saturating_add(lifetime.as_secs()),
            iat: now,
            iss: ISSUER.to_owned(),
            sub: format!(
                "{SUBJECT_PREFIX}{}:{}",
                caller.namespace, caller.service_account
            ),
            kubernetes: Bound {
                namespace: caller.namespace.clone(),
                serviceaccount: named(&caller.service_account),
                node: caller.node.as_ref().map(named),
                pod: caller.pod.as_ref().map(named),
            },
        };
        let header = Header {
            alg: "HS256".to_owned(),
            typ: "JWT".to_owned(),
        };
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let mac = self
            .mac
            .clone()
            .chain_update(&signed)
            .finalize()
            .into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Who a token stands for. The signature is compared in constant time, and before anything else is looked at.
    ///
    /// # Errors
    /// When it is not a valid token now.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Caller, TokenError> {
        self.verify_until(token, now)
            .map(|verified| verified.caller)
    }

    /// The same, with its end.
    pub(crate) fn verify_until(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<Verified, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if decode::<Header>(header)?.alg != "HS256" {
            return Err(TokenError::Algorithm);
        }
        let signature = bytes(signature)?;
        let mac = self.mac.clone().chain_update(signed);
        mac.verify_slice(&signature)
            .map_err(|_differs| TokenError::Signature)?;
        let claims: Claims = decode(claims)?;
        if claims.exp <= seconds(now) {
            return Err(TokenError::Expired);
        }
        if !claims.aud.iter().any(|audience| audience == AUDIENCE) {
            return Err(TokenError::Audience);
        }
        let subject = claims
            .sub
            .strip_prefix(SUBJECT_PREFIX)
            .and_then(|rest| rest.split_once(':'));
        let (namespace, service_account) = subject.ok_or(TokenError::Subject)?;
        let caller = Caller {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            node: claims.kubernetes.node.map(|node| node.name),
            pod: claims.kubernetes.pod.map(|pod| pod.name),
        };
        let left = Duration::from_secs(claims.exp.saturating_sub(seconds(now)));
        Ok(Verified {
            caller,
            // A token without an end in practice; a year keeps every clock finite.
            expires: now + left.min(MAX_LIFETIME),
        })
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn encode(value: &impl Serialize) -> String {
    // Plain structs of text and numbers always serialize.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).unwrap_or_default())
}

fn bytes(text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_malformed| TokenError::Malformed)
}

fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&bytes(text)?).map_err(|_malformed| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            node: Some("a".to_owned()),
            pod: None,
        }
    }

    fn key() -> (tempfile::TempDir, TokenKey) {
        let directory = tempfile::TempDir::new().unwrap();
        let key =
            TokenKey::open(&StateDir::open(&directory.path().join("state")).unwrap()).unwrap();
        (directory, key)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_says_who_calls_until_it_expires() {
        let (directory, key) = key();
        let now = SystemTime::now();
        let token = key.issue(&caller(), HOUR, now);
        assert_eq!(key.verify(&token, now), Ok(caller()));
        assert_eq!(key.verify(&token, now + HOUR), Err(TokenError::Expired));
        let state = StateDir::open(&directory.path().join("state")).unwrap();
        let reopened = TokenKey::open(&state).unwrap();
        assert_eq!(reopened.verify(&token, now), Ok(caller()));
    }

    #[test]
    fn nothing_else_is_accepted() {
        let ((_one, key), (_other, foreign)) = (key(), key());
        let now = SystemTime::now();
        let token = key.issue(&caller(), HOUR, now);
        assert_eq!(foreign.verify(&token, now), Err(TokenError::Signature));
        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let other_node =
            URL_SAFE_NO_PAD.encode(claims.replace(r#"{"name":"a"}"#, r#"{"name":"b"}"#));
        for (bad, error) in [
            (String::new(), TokenError::Malformed),
            ("a.b".to_owned(), TokenError::Malformed),
            ("x".repeat(10_000), TokenError::Malformed),
            (format!("{none}.{}.", parts[1]), TokenError::Algorithm),
            (
                format!("{}.{other_node}.{}", parts[0], parts[2]),
                TokenError::Signature,
            ),
            (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
            (
                format!("{}.{}.{}x", parts[0], parts[1], &parts[2][..40]),
                TokenError::Malformed,
            ),
        ] {
            assert_eq!(key.verify(&bad, now), Err(error), "{bad}");
        }
    }

    #[test]
    fn other_audiences_and_subjects_are_refused() {
        let (_directory, key) = key();
        let signed = |aud: &str, sub: &str| {
            let header = Header {
                alg: "HS256".to_owned(),
                typ: String::new(),
            };
            let claims = serde_json::json!({"aud": [aud], "exp": u64::MAX, "iat": 0, "iss": "x", "sub": sub,
                "kubernetes.io": {"namespace": "n", "serviceaccount": {"name": "s"}}});
            let signed = format!("{}.{}", encode(&header), encode(&claims));
            let mac = key
                .mac
                .clone()
                .chain_update(&signed)
                .finalize()
                .into_bytes();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
        };
        let verify = |aud, sub| key.verify(&signed(aud, sub), SystemTime::now());
        assert!(verify(AUDIENCE, "system:serviceaccount:n:s").is_ok());
        assert_eq!(
            verify("vault", "system:serviceaccount:n:s"),
            Err(TokenError::Audience)
        );
        assert_eq!(verify(AUDIENCE, "admin"), Err(TokenError::Subject));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, _key) = key();
        let state = StateDir::open(&directory.path().join("state")).unwrap();
        let file = state.file(KEY_FILE);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = TokenKey::open(&state).err().unwrap().to_string();
        assert!(error.contains("0640"), "{error}");
    }
}
