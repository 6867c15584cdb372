//! Certificates and what connections are secured with.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use leyline_runtime::env::Reader;
use leyline_tls::{CryptoPolicy, KeyExchange, OldestVersion};
use leyline_types::TrustDomain;

use super::duration;

/// Certificates are renewed at half of their life, at most once a second.
const SECRET_TTL: RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(365 * 24 * 3600);

pub(super) fn secret_ttl(env: &mut Reader<'_>) -> Duration {
    let day = Duration::from_secs(24 * 3600);
    duration(env, "SECRET_TTL", day, SECRET_TTL)
}

/// Longer than a rotation of a root takes would be no withdrawal.
const WITHDRAWAL_GRACE: RangeInclusive<Duration> =
    Duration::ZERO..=Duration::from_secs(30 * 24 * 3600);

pub(super) fn withdrawal_grace(env: &mut Reader<'_>) -> Duration {
    let name = "LEYLINE_WITHDRAWN_ROOT_GRACE";
    duration(env, name, Duration::from_secs(5), WITHDRAWAL_GRACE)
}

pub(super) fn crl_path(env: &mut Reader<'_>) -> Option<PathBuf> {
    let path = env.optional("CRL_PATH");
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Of the process's own identity.
pub(super) fn trust_domain(env: &mut Reader<'_>) -> Option<TrustDomain> {
    let read = |text: &str| {
        let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
        parsed.map_err(|error| format!("{error}"))
    };
    env.parse_with("TRUST_DOMAIN", read).flatten()
}

/// By the name that the SPIFFE standard has for it.
pub(super) fn spiffe_endpoint(env: &mut Reader<'_>) -> Option<String> {
    let address = env.optional("SPIFFE_ENDPOINT_SOCKET");
    address.filter(|address| !address.is_empty())
}

/// Policies other than `pqc` are for other proxies, and Istio sets one variable for all of them.
pub(super) fn crypto(env: &mut Reader<'_>) -> CryptoPolicy {
    let key_exchange = match env.string("COMPLIANCE_POLICY", "").as_str() {
        "pqc" => KeyExchange::HybridOnly,
        _ => KeyExchange::PreferHybrid,
    };
    let oldest = if env.bool("TLS12_ENABLED", false) {
        OldestVersion::Tls12
    } else {
        OldestVersion::Tls13
    };
    CryptoPolicy {
        key_exchange,
        oldest,
    }
}
