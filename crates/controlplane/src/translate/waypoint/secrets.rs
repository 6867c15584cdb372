//! What the clusters of a waypoint are to find under the names of their secrets (facts A.1): Secrets of the waypoint's own
//! namespace, and roots of ConfigMaps. Nothing else is told to it.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret::Type,
    },
};
use leyline_types::NamespacedName;

use super::clusters::{CONFIG_MAP, ROOTS_SUFFIX, SECRET};
use crate::objects::{Objects, TlsSecret};

/// Those of `names` that there are.
pub(super) fn resolve(
    objects: &Objects,
    gateway: &NamespacedName,
    names: BTreeSet<String>,
) -> BTreeMap<String, Secret> {
    let found = names.into_iter().filter_map(|name| {
        let of = find(objects, gateway.namespace.as_str(), &name)?;
        let secret = Secret {
            name: name.clone(),
            r#type: Some(of),
        };
        Some((name, secret))
    });
    found.collect()
}

/// What is under a name, for a waypoint of `namespace`; `None` where it is not there or lacks what is wanted of it.
pub(super) fn find(objects: &Objects, namespace: &str, name: &str) -> Option<Type> {
    if let Some(place) = name.strip_prefix(CONFIG_MAP) {
        let (namespace, name) = place.strip_suffix(ROOTS_SUFFIX)?.split_once('/')?;
        return roots(objects.ca_bundles.get(&named(namespace, name))?);
    }
    let secret = |name: &str| objects.secrets.get(&named(namespace, name));
    let name = name.strip_prefix(SECRET)?;
    match name.strip_suffix(ROOTS_SUFFIX) {
        // A Secret of its own, or that with the certificate.
        Some(both) => secret(name)
            .and_then(|secret| roots(secret))
            .or_else(|| roots(secret(both)?)),
        None => certificate(secret(name)?),
    }
}

fn named(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn certificate(secret: &TlsSecret) -> Option<Type> {
    let (chain, key) = secret.certificate.as_ref()?;
    Some(Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    }))
}

fn roots(secret: &TlsSecret) -> Option<Type> {
    Some(Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(secret.roots.as_ref()?)),
        crl: secret.revoked.as_deref().map(inline),
        ..CertificateValidationContext::default()
    }))
}

fn inline(text: &[u8]) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(text.to_vec())),
        ..DataSource::default()
    }
}
