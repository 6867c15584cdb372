//! Certificates and what connections are secured with.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use leyline_runtime::env::Reader;
use leyline_tls::{CryptoPolicy, KeyExchange, OldestVersion};
use leyline_types::TrustDomain;

use super::{CertificatesFor, PodSource, duration};

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

/// By the name that the crate `spire-api` has for it.
pub(super) fn spire_admin_endpoint(
    env: &mut Reader<'_>,
    source: &PodSource,
    spiffe_endpoint: Option<&str>,
) -> Option<String> {
    let name = "SPIRE_ADMIN_ENDPOINT_SOCKET";
    let address = env.optional(name).filter(|address| !address.is_empty())?;
    if spiffe_endpoint.is_some() {
        let why = "not with SPIFFE_ENDPOINT_SOCKET: an agent gives certificates of all pods by the one, and of \
            this process by the other";
        env.reject(name, &address, why);
    }
    if matches!(source, PodSource::Dedicated(_)) {
        let why = "not with PROXY_MODE=dedicated: the agent gives this process the certificate of its workload by \
            SPIFFE_ENDPOINT_SOCKET";
        env.reject(name, &address, why);
    }
    Some(address)
}

/// Whose certificates are fetched before anybody asks (CRT-8).
pub(super) fn certificates_for(
    source: &PodSource,
    spire_admin_endpoint: Option<&str>,
) -> CertificatesFor {
    match source {
        PodSource::Dedicated(_) => CertificatesFor::WhoAsks,
        PodSource::ControlPlane | PodSource::Zds(_) if spire_admin_endpoint.is_some() => {
            CertificatesFor::WhoAsks
        }
        PodSource::ControlPlane | PodSource::Zds(_) => CertificatesFor::AllLocal,
    }
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

#[cfg(test)]
mod tests {
    use leyline_runtime::env::MapEnv;

    use super::*;
    use crate::config::Config;

    #[test]
    fn settings_for_agents_that_contradict_each_other_stop_the_start() {
        let check = |vars: &[(&str, &str)], expected: &str| {
            let vars = vars.iter();
            let vars = vars.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let env = MapEnv(vars.collect());
            let mut reader = Reader::new(&env);
            Config::read(&mut reader);
            let told = reader.finish().err().map(|error| error.to_string());
            let told = told.unwrap_or_default();
            assert_eq!(told.is_empty(), expected.is_empty(), "{told}");
            assert!(told.contains(expected), "{told}");
        };
        let workload = ("SPIFFE_ENDPOINT_SOCKET", "unix:///a.sock");
        let admin = ("SPIRE_ADMIN_ENDPOINT_SOCKET", "unix:///b.sock");
        check(&[workload], "");
        check(&[admin], "");
        check(&[workload, ("SPIRE_ADMIN_ENDPOINT_SOCKET", "")], "");
        check(&[workload, admin], "not with SPIFFE_ENDPOINT_SOCKET");
        let mode = ("PROXY_MODE", "dedicated");
        let info = ("PROXY_WORKLOAD_INFO", "shop/web-0/web");
        check(&[mode, info, workload], "");
        check(&[mode, info, admin], "not with PROXY_MODE=dedicated");
    }
}
