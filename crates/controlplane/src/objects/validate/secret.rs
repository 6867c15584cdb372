//! Secrets and ConfigMaps for TLS: that there is PEM where it must be. Reasons never hold what a Secret does.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject,
};

use super::{Invalid, metadata_of, push};
use crate::objects::{
    field::Field,
    key::Kind,
    secret::{REVOKED_KEY, ROOTS_KEY, TlsSecret},
};

/// Secret.
pub(crate) fn secret(object: &Secret, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Secret, &object.metadata, found);
    let field = Field::of("data");
    let has = |key: &str| {
        let data = object.data.iter().flatten().any(|(known, _)| known == key);
        let text = object.string_data.iter().flatten();
        data || text.into_iter().any(|(known, _)| known == key)
    };
    if object.type_.as_deref() == Some("kubernetes.io/tls") {
        for key in ["tls.crt", "tls.key"] {
            if !has(key) {
                push(
                    found,
                    field.key(key),
                    "is needed in one of type kubernetes.io/tls",
                );
            }
        }
    }
    for (chain, key) in [("cert", "key"), ("tls.crt", "tls.key")] {
        if has(chain) != has(key) {
            let reason = format!("{chain} and {key} need each other");
            push(
                found,
                field.key(if has(chain) { key } else { chain }),
                reason,
            );
        }
    }
    let generic = has("cert");
    contents(&TlsSecret::of_secret(object), generic, &field, found);
}

/// A ConfigMap with roots.
pub(crate) fn ca_bundle(object: &ConfigMap, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ConfigMap, &object.metadata, found);
    let contents_of = TlsSecret::of_config_map(object);
    contents(&contents_of, false, &Field::of("data"), found);
}

fn contents(secret: &TlsSecret, generic: bool, field: &Field, found: &mut Vec<Invalid>) {
    if let Some((chain, key)) = &secret.certificate {
        let (of_chain, of_key) = if generic {
            ("cert", "key")
        } else {
            ("tls.crt", "tls.key")
        };
        if !holds::<CertificateDer<'_>>(chain) {
            push(found, field.key(of_chain), "holds no certificate in PEM");
        }
        if PrivateKeyDer::from_pem_slice(key).is_err() {
            push(found, field.key(of_key), "holds no private key in PEM");
        }
    }
    if let Some(roots) = &secret.roots
        && !holds::<CertificateDer<'_>>(roots)
    {
        push(found, field.key(ROOTS_KEY), "holds no certificate in PEM");
    }
    if let Some(lists) = &secret.revoked
        && !holds::<CertificateRevocationListDer<'_>>(lists)
    {
        push(
            found,
            field.key(REVOKED_KEY),
            "holds no revocation list in PEM",
        );
    }
}

/// Whether there is at least one, and nothing broken before it.
fn holds<T: PemObject>(text: &[u8]) -> bool {
    T::pem_slice_iter(text)
        .next()
        .is_some_and(|first| first.is_ok())
}
