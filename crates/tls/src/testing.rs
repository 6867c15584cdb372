//! Certificate authorities and sockets for the tests of this crate.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use leyline_types::Identity;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    certificate::WorkloadCertificate, csr, install_crypto_provider, revocation::Revocation,
};

/// A certificate authority, a root or an intermediate of one.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    /// From this one up to, and without, the root.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

/// What a leaf says.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    /// As a CA of a mesh issues it.
    pub(crate) fn workload(uri: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![uri.to_owned()],
            dns: vec![],
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(3600),
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }

    pub(crate) fn server(dns: &str) -> Self {
        Self {
            uris: vec![],
            dns: vec![dns.to_owned()],
            ..Self::workload("")
        }
    }

    /// Whatever the request says, the leaf says this, as with a real CA.
    fn apply(&self, params: &mut CertificateParams) {
        let uris = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        let dns = self
            .dns
            .iter()
            .map(|dns| SanType::DnsName(dns.as_str().try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.extended_key_usages = self.usages.clone();
        params.use_authority_key_identifier_extension = true;
    }
}

impl TestCa {
    pub(crate) fn new() -> Self {
        install_crypto_provider();
        let (params, key) = ca_params("root");
        let root = params.self_signed(&key).unwrap();
        Self {
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
            intermediates: vec![],
        }
    }

    pub(crate) fn intermediate(&self) -> Self {
        self.intermediate_of(ca_params("intermediate"))
    }

    /// One that expires then.
    pub(crate) fn intermediate_until(&self, end: SystemTime) -> Self {
        let (mut params, key) = ca_params("intermediate");
        params.not_after = end.into();
        self.intermediate_of((params, key))
    }

    fn intermediate_of(&self, (params, key): (CertificateParams, KeyPair)) -> Self {
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let mut intermediates = vec![cert.der().clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self {
            issuer: Issuer::new(params, key),
            intermediates,
            root: self.root.clone(),
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(crate) fn root_pem(&self) -> String {
        pem(&self.root)
    }

    /// Signs a request as the CA service does: PEM, the leaf, the intermediates, the root.
    pub(crate) fn sign(&self, csr_pem: &str, leaf: &Leaf) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        leaf.apply(&mut request.params);
        let cert = request.signed_by(&self.issuer).unwrap();
        let mut chain = vec![cert.pem()];
        chain.extend(self.intermediates.iter().map(|der| pem(der)));
        chain.push(self.root_pem());
        chain
    }

    /// A leaf with its intermediates, and its key.
    pub(crate) fn issue(
        &self,
        leaf: &Leaf,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.issue_with(leaf, CertificateParams::default())
    }

    /// As SPIRE issues it.
    pub(crate) fn issue_svid(
        &self,
        id: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.issue_with(&Leaf::workload(id), params)
    }

    fn issue_with(
        &self,
        leaf: &Leaf,
        mut params: CertificateParams,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        leaf.apply(&mut params);
        let cert: Certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// A certificate as the store would hold it, through the whole path of request and answer.
    pub(crate) fn workload(&self, uri: &str) -> Arc<WorkloadCertificate> {
        let identity: Identity = uri.parse().unwrap();
        let request = csr::generate(&identity).unwrap();
        let chain = self.sign(&request.pem, &Leaf::workload(uri));
        Arc::new(
            WorkloadCertificate::from_pem(&identity, &chain, request.key, &Revocation::off())
                .unwrap(),
        )
    }

    /// The same for somebody who holds peers against revocation lists.
    pub(crate) fn wary(&self, uri: &str, revocation: &Arc<Revocation>) -> Arc<WorkloadCertificate> {
        let (chain, key) = self.issue(&Leaf::workload(uri));
        Arc::new(WorkloadCertificate::assemble(chain, vec![self.root()], key, revocation).unwrap())
    }

    /// A list of this authority that revokes certificates of it, PEM; out of date if it ends before now.
    pub(crate) fn revoke(&self, certificates: &[&CertificateDer<'_>], end: SystemTime) -> String {
        let revoked = |der: &&CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(der).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: SystemTime::now().into(),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }
        };
        let list = CertificateRevocationListParams {
            this_update: (end - Duration::from_secs(3600)).into(),
            next_update: end.into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: certificates.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A certificate that the store would refuse, or that trusts other roots than its own.
    pub(crate) fn unchecked(&self, leaf: &Leaf, roots: &[&Self]) -> Arc<WorkloadCertificate> {
        let (chain, key) = self.issue(leaf);
        let roots = roots.iter().map(|ca| ca.root()).collect();
        Arc::new(WorkloadCertificate::assemble(chain, roots, key, &Revocation::off()).unwrap())
    }
}

/// All roots here have one name, as the roots of many meshes do.
fn ca_params(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "cluster.local");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    (params, KeyPair::generate().unwrap())
}

pub(crate) fn pem(der: &[u8]) -> String {
    armour("CERTIFICATE", der)
}

pub(crate) fn key_pem(key: &PrivateKeyDer<'_>) -> String {
    armour("PRIVATE KEY", key.secret_der())
}

fn armour(label: &str, der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let encoded = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = encoded
        .as_bytes()
        .chunks(64)
        .map(|l| str::from_utf8(l).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// Both ends of a loopback connection: the side that connected, the side that accepted.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    let (client, server) = tokio::join!(socket.connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}
