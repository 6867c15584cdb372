//! The one cryptography provider of the process: which suites and groups Leyline speaks, on every kind of connection.

use std::sync::{Arc, OnceLock};

use rustls::{
    SupportedProtocolVersion,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    version::{TLS12, TLS13},
};

/// Protocol name of HTTP/2 in ALPN, the only protocol inside mesh TLS (RFC 9113 section 3.2).
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// What an operator may ask for beyond the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CryptoPolicy {
    /// Which key exchanges are taken.
    pub key_exchange: KeyExchange,
    /// The oldest version that is spoken with other proxies and with the control plane.
    pub oldest: OldestVersion,
}

/// Key exchanges of a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519MLKEM768 first, then the classical ones.
    #[default]
    PreferHybrid,
    /// X25519MLKEM768 and nothing else: who cannot is refused (`COMPLIANCE_POLICY=pqc`).
    HybridOnly,
}

/// The oldest TLS version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldestVersion {
    /// TLS 1.3 only.
    #[default]
    Tls13,
    /// TLS 1.2 with ECDHE and AES-GCM too.
    Tls12,
}

struct Installed {
    provider: Arc<CryptoProvider>,
    policy: CryptoPolicy,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

fn installed() -> &'static Installed {
    INSTALLED.get_or_init(|| Installed::new(CryptoPolicy::default()))
}

impl Installed {
    fn new(policy: CryptoPolicy) -> Self {
        Self {
            provider: Arc::new(provider(policy)),
            policy,
        }
    }
}

fn provider(policy: CryptoPolicy) -> CryptoProvider {
    // The order is our preference. The hybrid group carries an X25519 share that a classical peer can use as it
    // is, so that preferring it never costs a round trip.
    let mut kx_groups = vec![kx_group::X25519MLKEM768];
    match policy.key_exchange {
        KeyExchange::HybridOnly => {}
        KeyExchange::PreferHybrid => {
            kx_groups.extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1])
        }
    }
    // The short key first, as browsers do: its cipher takes four fifths of the time of the long one's, and its hash,
    // which processors have instructions for, a third. A peer that wants the long one still gets it. Who demands a
    // key exchange that stands against quantum computers gets a key that does.
    let mut cipher_suites = match policy.key_exchange {
        KeyExchange::PreferHybrid => vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        KeyExchange::HybridOnly => vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
    };
    // Without suites of TLS 1.2 it is off wherever this provider is used.
    match policy.oldest {
        OldestVersion::Tls13 => {}
        OldestVersion::Tls12 => cipher_suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ]),
    }
    CryptoProvider {
        kx_groups,
        cipher_suites,
        ..aws_lc_rs::default_provider()
    }
}

/// The provider of every mesh configuration.
pub(crate) fn mesh_provider() -> &'static Arc<CryptoProvider> {
    &installed().provider
}

/// The versions of every mesh configuration.
pub(crate) fn mesh_versions() -> &'static [&'static SupportedProtocolVersion] {
    static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match installed().policy.oldest {
        OldestVersion::Tls13 => &NEWEST,
        OldestVersion::Tls12 => &BOTH,
    }
}

/// Makes Leyline's provider the default of the process, for tonic and other users of rustls. Call it, or
/// [`install_crypto_policy`], first in `main`; calling it again does nothing.
pub fn install_crypto_provider() {
    if CryptoProvider::get_default().is_some() {
        return;
    }
    if CryptoProvider::clone(mesh_provider())
        .install_default()
        .is_err()
    {
        tracing::debug!("another thread installed a cryptography provider first");
    }
}

/// As [`install_crypto_provider`], with a policy. The first policy of a process stays.
pub fn install_crypto_policy(policy: CryptoPolicy) {
    if INSTALLED.set(Installed::new(policy)).is_err() {
        tracing::debug!("another thread chose a cryptography policy first");
    }
    install_crypto_provider();
}

#[cfg(test)]
mod tests {
    use rustls::{CipherSuite, NamedGroup};

    use super::*;

    fn check(policy: CryptoPolicy, groups: &[NamedGroup], first: CipherSuite, suites: usize) {
        let provider = provider(policy);
        let names: Vec<_> = provider
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect();
        assert_eq!(names, groups, "{policy:?}");
        assert_eq!(provider.cipher_suites[0].suite(), first, "{policy:?}");
        assert_eq!(provider.cipher_suites.len(), suites, "{policy:?}");
    }

    #[test]
    fn policies() {
        use CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
        use NamedGroup::{X25519, X25519MLKEM768, secp256r1, secp384r1};
        let all = [X25519MLKEM768, X25519, secp256r1, secp384r1];
        check(CryptoPolicy::default(), &all, TLS13_AES_128_GCM_SHA256, 2);
        let hybrid_only = CryptoPolicy {
            key_exchange: KeyExchange::HybridOnly,
            ..CryptoPolicy::default()
        };
        check(hybrid_only, &[X25519MLKEM768], TLS13_AES_256_GCM_SHA384, 2);
        let older = CryptoPolicy {
            oldest: OldestVersion::Tls12,
            ..CryptoPolicy::default()
        };
        check(older, &all, TLS13_AES_128_GCM_SHA256, 6);
    }
}
