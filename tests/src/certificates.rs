//! Certificates for peers that are not ours, good and bad ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A certificate authority of a test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Credential {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Authority {
    /// The mesh's own: with its key any certificate can be made, also those that it would not sign.
    pub fn of_mesh(state_dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = state_dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?).context("reading ca-key.pem")?;
        let issuer = Issuer::from_ca_cert_pem(&read("root-cert.pem")?, key)
            .context("reading root-cert.pem")?;
        Ok(Self { issuer })
    }

    /// One that nobody in the mesh trusts.
    pub fn foreign() -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "another mesh");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self {
            issuer: Issuer::new(params, KeyPair::generate()?),
        })
    }

    /// Issues a certificate for a SPIFFE ID and writes it as `<name>.crt` and `<name>.key`.
    pub fn issue(&self, dir: &Path, name: &str, spiffe_id: &str) -> Result<Credential> {
        self.issue_to(dir, name, SanType::URI(spiffe_id.try_into()?))
    }

    /// The same for a host name.
    pub fn issue_to_host(&self, dir: &Path, name: &str, host: &str) -> Result<Credential> {
        self.issue_to(dir, name, SanType::DnsName(host.try_into()?))
    }

    fn issue_to(&self, dir: &Path, name: &str, subject: SanType) -> Result<Credential> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![subject];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let credential = Credential {
            certificate: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        };
        fs::write(&credential.certificate, certificate.pem())?;
        fs::write(&credential.key, key.serialize_pem())?;
        Ok(credential)
    }
}
