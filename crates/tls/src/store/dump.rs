//! The certificates as `/config_dump` shows them, in the form that `istioctl ztunnel-config certificate` reads.

use base64::{Engine, prelude::BASE64_STANDARD};
use leyline_types::Identity;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    time::ASN1Time,
};

use super::State;

/// Line length of PEM (RFC 7468 section 2).
const PEM_LINE: usize = 64;

/// One identity and its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    /// Whose certificate.
    pub identity: Identity,
    /// `Available`, `Initializing`, or `Unavailable: <why>`.
    pub state: String,
    /// The leaf and its intermediates.
    pub cert_chain: Vec<CertificateEntry>,
    /// What peers are judged by.
    pub root_certs: Vec<CertificateEntry>,
}

/// One certificate of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateEntry {
    /// Base64 of the PEM text.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}

pub(super) fn describe(identity: &Identity, state: &State) -> CertificateDump {
    let (state, chain, roots) = match state {
        State::Initializing => ("Initializing".to_owned(), &[][..], &[][..]),
        State::Unavailable(error) => (format!("Unavailable: {error}"), &[][..], &[][..]),
        State::Available(lease) => (
            "Available".to_owned(),
            lease.cert.chain(),
            lease.cert.roots(),
        ),
    };
    CertificateDump {
        identity: identity.clone(),
        state,
        cert_chain: chain.iter().map(entry).collect(),
        root_certs: roots.iter().map(entry).collect(),
    }
}

/// A root that we keep without being able to read it has its PEM and nothing else.
fn entry(der: &CertificateDer<'_>) -> CertificateEntry {
    let parsed = X509Certificate::from_der(der).ok();
    let parsed = parsed.as_ref().map(|(_rest, parsed)| parsed);
    let text = |part: fn(&X509Certificate<'_>) -> String| parsed.map(part).unwrap_or_default();
    CertificateEntry {
        pem: BASE64_STANDARD.encode(pem(der)),
        serial_number: text(|cert| cert.tbs_certificate.serial.to_string()),
        valid_from: text(|cert| rfc3339(cert.validity().not_before)),
        expiration_time: text(|cert| rfc3339(cert.validity().not_after)),
    }
}

fn rfc3339(at: ASN1Time) -> String {
    at.to_datetime().format(&Rfc3339).unwrap_or_default()
}

fn pem(der: &CertificateDer<'_>) -> String {
    let encoded = BASE64_STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % PEM_LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text + "\n-----END CERTIFICATE-----\n"
}
