//! The one cryptography provider of the process: which suites and groups Leyline speaks, on every kind of connection.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{self, cipher_suite, kx_group},
};

/// Protocol name of HTTP/2 in ALPN, the only protocol inside mesh TLS (RFC 9113 section 3.2).
pub(crate) const ALPN_H2: &[u8] = b"h2";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // The order is our preference. The hybrid group carries an X25519 share that a classical peer can use as it
        // is, so that preferring it never costs a round trip.
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        // Suites of TLS 1.3 only, which also switches TLS 1.2 off wherever this provider is used.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The provider of every mesh configuration.
pub(crate) fn mesh_provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Makes Leyline's provider the default of the process, for tonic and other users of rustls. Call it first in `main`;
/// calling it again does nothing.
pub fn install_crypto_provider() {
    if CryptoProvider::get_default().is_some() {
        return;
    }
    if CryptoProvider::clone(&PROVIDER).install_default().is_err() {
        tracing::debug!("another thread installed a cryptography provider first");
    }
}
