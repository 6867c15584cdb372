//! A fresh key and the request to have it certified. Called by the certificate store for each fetch.
//! The key never leaves the process; only the request is sent.

use leyline_types::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A P-256 key and its PKCS#10 request.
pub struct CertificateRequest {
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// The request, PEM.
    pub pem: String,
}

/// Why no key or request could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key and certificate request: {0}")]
pub struct CsrError(#[from] rcgen::Error);

/// Makes a key and a request with an empty subject and the identity as the only, critical, alternative name.
///
/// # Errors
/// When the cryptography library fails.
pub fn generate(identity: &Identity) -> Result<CertificateRequest, CsrError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    Ok(CertificateRequest {
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        pem: request.pem()?,
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use super::*;

    #[test]
    fn openssl_accepts_the_request() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let request = generate(&identity).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(request.pem.as_bytes()).unwrap();

        let output = Command::new("openssl")
            .args(["req", "-verify", "-noout", "-text", "-in"])
            .arg(file.path())
            .output()
            .unwrap();

        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap() + &text;
        assert!(said.contains("verify OK"), "{said}");
        for expected in [
            "Subject: \n",
            "NIST CURVE: P-256",
            "ecdsa-with-SHA256",
            "X509v3 Subject Alternative Name: critical",
            "URI:spiffe://cluster.local/ns/shop/sa/web",
        ] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
    }

    #[test]
    fn each_request_has_its_own_key() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let (one, other) = (generate(&identity).unwrap(), generate(&identity).unwrap());
        assert_ne!(one.key.secret_der(), other.key.secret_der());
    }
}
