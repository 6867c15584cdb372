//! What waypoints originate TLS with: Kubernetes Secrets with certificates and keys, and ConfigMaps with roots.
//!
//! Istio's two forms are read: that of `kubernetes.io/tls` (`tls.crt`, `tls.key`, `ca.crt`, `ca.crl`), and the generic one
//! (`cert`, `key`, `cacert`, `crl`). Invariant: what is in a Secret is never shown, be it in a log, a status or an error.

use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

/// Keys of a Secret or ConfigMap, any of which makes it of use.
pub(crate) const USED_KEYS: [&str; 4] = ["tls.crt", "ca.crt", "cert", "cacert"];
/// The roots of a ConfigMap.
pub(crate) const ROOTS_KEY: &str = "ca.crt";
/// Its revocation lists.
pub(crate) const REVOKED_KEY: &str = "ca.crl";

/// Certificate chain, private key.
pub type KeyPair = (Vec<u8>, Vec<u8>);

/// All in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsSecret {
    /// To prove who we are.
    pub certificate: Option<KeyPair>,
    /// To believe others.
    pub roots: Option<Vec<u8>>,
    /// Not to believe them.
    pub revoked: Option<Vec<u8>>,
}

impl fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSecret").finish_non_exhaustive()
    }
}

impl TlsSecret {
    pub(crate) fn of_secret(secret: &Secret) -> Self {
        let value = |key: &str| {
            // As the API server does it: text stands over data.
            let text = secret.string_data.as_ref().and_then(|all| all.get(key));
            let data = secret.data.as_ref().and_then(|all| all.get(key));
            let text = text.map(|text| text.clone().into_bytes());
            let found = text.or_else(|| data.map(|bytes| bytes.0.clone()));
            found.filter(|bytes| !bytes.is_empty())
        };
        let either = |tls: &str, generic: &str| value(generic).or_else(|| value(tls));
        let pair = |chain: &str, key: &str| Some((value(chain)?, value(key)?));
        Self {
            certificate: pair("cert", "key").or_else(|| pair("tls.crt", "tls.key")),
            roots: either(ROOTS_KEY, "cacert"),
            revoked: either(REVOKED_KEY, "crl"),
        }
    }

    pub(crate) fn of_config_map(map: &ConfigMap) -> Self {
        let value = |key: &str| {
            let text = map.data.as_ref()?.get(key)?;
            (!text.is_empty()).then(|| text.clone().into_bytes())
        };
        Self {
            certificate: None,
            roots: value(ROOTS_KEY),
            revoked: value(REVOKED_KEY),
        }
    }
}
