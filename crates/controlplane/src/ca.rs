//! The certificate authority: one self-signed P-256 root, made on first start and kept in the state directory, or that of
//! an operator (`operator`), which may be replaced while it signs (`current`).
//!
//! It signs what it is told to; who may have which identity is decided in `service`.

mod current;
mod operator;
mod service;

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use leyline_types::{Identity, TrustDomain};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    der_parser::Oid,
    oid_registry::{
        OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
        OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
    },
    pem::{Pem, parse_x509_pem},
    prelude::FromDer,
    public_key::PublicKey,
};

use crate::state_dir::{Creation, StateDir, StateError};

pub(crate) use current::{Current, Follower, fixed};
pub(crate) use service::CertificateService;

const KEY_FILE: &str = "ca-key.pem";
/// RFC 7468, 2.
const PEM_LINE: usize = 64;
const PEM_END: &str = "-----END CERTIFICATE-----";
/// What peers trust; also what proxies are given as their root.
pub const ROOT_FILE: &str = "root-cert.pem";
/// Ten years, as Istio's self-signed root.
const ROOT_LIFETIME: time::Duration = time::Duration::days(3650);
/// What a certificate gets when the request names no lifetime.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// No certificate lives longer (Istio's default cap).
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clocks of peers may be behind by this much (as Istio allows).
const CLOCK_SKEW: time::Duration = time::Duration::minutes(2);
/// A CSR is well below 4 KiB, even with RSA.
const MAX_CSR_BYTES: usize = 16 * 1024;
/// Smaller RSA keys are broken (NIST SP 800-131A).
const MIN_RSA_BITS: usize = 2048;
/// Larger ones only cost time, which a stranger's request must not; no profile asks for more.
const MAX_RSA_BITS: usize = 4096;
/// SHA-1 proves nothing any more (NIST SP 800-131A).
const SIGNATURES: [Oid<'static>; 6] = [
    OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384,
    OID_SIG_ECDSA_WITH_SHA512,
    OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA,
];

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written, or others can read the key.
    #[error(transparent)]
    State(#[from] StateError),
    /// Only one of key and certificate is there.
    #[error(
        "{0} is there without {1}; restore it, or remove both to start with a new root that nobody trusts yet"
    )]
    Incomplete(&'static str, &'static str),
    /// Not what the name says.
    #[error("{file} cannot be used: {reason}")]
    Unusable {
        /// The file.
        file: &'static str,
        /// Why.
        reason: String,
    },
    /// A file of the operator cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Key and certificate are of different authorities.
    #[error("{0} is not the key of {1}; one of them is foreign")]
    Foreign(&'static str, &'static str),
    /// The operator's certificate leads nowhere.
    #[error("the chain leads to none of the roots of {ROOT_FILE}: there is no certificate of {0}")]
    NoPath(String),
    /// Which of them signs, and what becomes of those who trust the other?
    #[error(
        "{0} is given, and the state directory has a CA of its own; to rotate from that one, move its {KEY_FILE} and {ROOT_FILE} to {0}, with {ROOT_FILE} as ca-cert.pem, too"
    )]
    TwoAuthorities(PathBuf),
    /// Past its end.
    #[error("a certificate of {0} expired at {1}; a new root has to be given to the proxies, too")]
    Expired(&'static str, OffsetDateTime),
    /// Before its start.
    #[error("a certificate of {0} is valid only from {1}; check the clock")]
    NotYetValid(&'static str, OffsetDateTime),
    /// Signing failed.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

/// Why a certificate signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Beyond any CSR.
    #[error("request is larger than {MAX_CSR_BYTES} bytes")]
    TooLarge,
    /// Not PEM of PKCS#10.
    #[error("request is not a PEM certificate signing request")]
    Malformed,
    /// The caller does not hold the key.
    #[error("request signature is not valid")]
    Signature,
    /// A key that is too weak or unknown.
    #[error("request key is not accepted: {0}")]
    Key(String),
    /// The identity does not fit into a certificate.
    #[error("identity cannot be written into a certificate")]
    Identity,
    /// Our own failure.
    #[error("signing failed")]
    Sign(#[from] rcgen::Error),
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// From the issuer up to, and without, the root, DER; none if the root signs itself.
    intermediates: Vec<Vec<u8>>,
    /// The first of them is that of the issuer.
    roots_pem: String,
    /// When the first of issuer, intermediates and root ends.
    end: OffsetDateTime,
}

/// A certificate of the control plane itself.
pub(crate) struct ServerIdentity {
    /// Leaf first, without the root.
    pub(crate) chain_der: Vec<Vec<u8>>,
    pub(crate) key_der: Vec<u8>,
}

impl Authority {
    /// Takes the root of the state directory; makes it first if there is none.
    ///
    /// # Errors
    /// When it is expired, foreign, unreadable, incomplete, or readable by others.
    pub fn open(
        state: &StateDir,
        trust_domain: &TrustDomain,
        now: OffsetDateTime,
    ) -> Result<Self, CaError> {
        let key = state.read_secret(KEY_FILE)?;
        let root = state.read(ROOT_FILE)?;
        match (key, root) {
            (Some(key), Some(root)) => {
                Self::load(&text(KEY_FILE, key)?, text(ROOT_FILE, root)?, now)
            }
            (None, None) => {
                let (key, root) = new_root(trust_domain, now)?;
                if state.create_secret(KEY_FILE, key.as_bytes())? == Creation::Existing {
                    // Another process was first; its certificate follows its key.
                    return Err(CaError::Incomplete(KEY_FILE, ROOT_FILE));
                }
                state.replace(ROOT_FILE, root.as_bytes())?;
                Self::load(&key, root, now)
            }
            (Some(_), None) => Err(CaError::Incomplete(KEY_FILE, ROOT_FILE)),
            (None, Some(_)) => Err(CaError::Incomplete(ROOT_FILE, KEY_FILE)),
        }
    }

    fn load(key_pem: &str, root_pem: String, now: OffsetDateTime) -> Result<Self, CaError> {
        let unusable = |file, reason: &dyn ToString| CaError::Unusable {
            file,
            reason: reason.to_string(),
        };
        let key = KeyPair::from_pem(key_pem).map_err(|error| unusable(KEY_FILE, &error))?;
        let pem = first_pem(&root_pem).map_err(|reason| unusable(ROOT_FILE, &reason))?;
        let (_, root) = X509Certificate::from_der(&pem.contents)
            .map_err(|error| unusable(ROOT_FILE, &error))?;
        if !root.is_ca() {
            return Err(unusable(ROOT_FILE, &"not a CA certificate"));
        }
        if root.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Foreign(KEY_FILE, ROOT_FILE));
        }
        root.verify_signature(None)
            .map_err(|error| unusable(ROOT_FILE, &format!("not self-signed: {error}")))?;
        let (start, end) = (root.validity().not_before, root.validity().not_after);
        let (start, end) = (start.to_datetime(), end.to_datetime());
        if now >= end {
            return Err(CaError::Expired(ROOT_FILE, end));
        }
        if now < start {
            return Err(CaError::NotYetValid(ROOT_FILE, start));
        }
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key)?;
        Ok(Self {
            issuer,
            intermediates: Vec::new(),
            roots_pem: root_pem,
            end,
        })
    }

    /// All roots that peers are to trust, PEM, that of the issuer first.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The first of them.
    pub(crate) fn signing_root(&self) -> &str {
        let first = self.roots_pem.split_inclusive(PEM_END).next();
        first.unwrap_or_default().trim()
    }

    /// Signs a workload's certificate: the chain as the CA service returns it, leaf first, root last. Nothing of the
    /// request but its key is used.
    ///
    /// # Errors
    /// When the request is not one that is signed.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        lifetime: Option<Duration>,
        now: OffsetDateTime,
    ) -> Result<Vec<String>, CsrError> {
        let key = key_of_request(csr_pem)?;
        let leaf = self.workload(&key, identity, lifetime, now)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.iter().map(|der| pem_text(der)));
        chain.push(self.roots_pem.clone());
        Ok(chain)
    }

    fn workload(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        lifetime: Option<Duration>,
        now: OffsetDateTime,
    ) -> Result<Certificate, CsrError> {
        let mut params = self.leaf(lifetime, now);
        let name = identity
            .to_string()
            .try_into()
            .map_err(|_not_ascii| CsrError::Identity)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Ok(params.signed_by(key, &self.issuer)?)
    }

    /// Signs a certificate for the control plane's own listener.
    pub(crate) fn server_identity(
        &self,
        names: &[String],
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<ServerIdentity, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = self.leaf(Some(lifetime), now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut chain_der = vec![certificate.der().to_vec()];
        chain_der.extend(self.intermediates.iter().cloned());
        Ok(ServerIdentity {
            chain_der,
            key_der: key.serialize_der(),
        })
    }

    /// No subject, so that the names are critical (RFC 5280, 4.1.2.6).
    fn leaf(&self, lifetime: Option<Duration>, now: OffsetDateTime) -> CertificateParams {
        let lifetime = lifetime.unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial());
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + lifetime).min(self.end);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
    }
}

/// 126 random bits, so that the number is positive and of constant length.
fn serial() -> SerialNumber {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn new_root(trust_domain: &TrustDomain, now: OffsetDateTime) -> Result<(String, String), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain.as_str());
    name.push(DnType::CommonName, "Leyline root CA");
    params.distinguished_name = name;
    params.serial_number = Some(serial());
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key)?;
    Ok((key.serialize_pem(), root.pem()))
}

fn text(file: &'static str, bytes: Vec<u8>) -> Result<String, CaError> {
    String::from_utf8(bytes).map_err(|error| CaError::Unusable {
        file,
        reason: error.utf8_error().to_string(),
    })
}

fn first_pem(text: &str) -> Result<Pem, String> {
    match parse_x509_pem(text.as_bytes()) {
        Ok((_, pem)) => Ok(pem),
        Err(error) => Err(error.to_string()),
    }
}

fn pem_text(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % PEM_LINE == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n" + PEM_END + "\n"
}

/// The public key of a request whose signature holds.
fn key_of_request(csr_pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLarge);
    }
    let malformed = |_| CsrError::Malformed;
    let pem = first_pem(csr_pem).map_err(malformed)?;
    if pem.label != "CERTIFICATE REQUEST" && pem.label != "NEW CERTIFICATE REQUEST" {
        return Err(CsrError::Malformed);
    }
    let Ok((_, request)) = X509CertificationRequest::from_der(&pem.contents) else {
        return Err(CsrError::Malformed);
    };
    let spki = &request.certification_request_info.subject_pki;
    match spki.parsed() {
        Ok(PublicKey::EC(_)) => {}
        Ok(PublicKey::RSA(key)) if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&key.key_size()) => {}
        Ok(PublicKey::RSA(key)) => {
            return Err(CsrError::Key(format!("RSA of {} bits", key.key_size())));
        }
        Ok(_) | Err(_) => return Err(CsrError::Key("neither EC nor RSA".to_owned())),
    }
    let algorithm = &request.signature_algorithm.algorithm;
    if !SIGNATURES.contains(algorithm) {
        return Err(CsrError::Key(format!("signed with {algorithm}")));
    }
    request
        .verify_signature()
        .map_err(|_invalid| CsrError::Signature)?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|error| CsrError::Key(error.to_string()))
}

#[cfg(test)]
mod tests;
