//! Secrets that the control plane sends (SDS): certificates with their keys, and roots with revocation lists. A cluster names
//! them and is compiled with what they hold; while one has not come, its connections are refused.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret as Proto, TlsCertificate, secret::Type,
    },
};
use imbl::HashMap;
use leyline_tls::Pem;
use leyline_types::Str;

use super::error::{At, Compiled, Unsupported};

/// All by name.
pub(crate) type Secrets = HashMap<Str, Arc<Secret>>;

/// One secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Secret {
    Certificate { chain: Pem, key: Pem },
    Roots { roots: Pem, revoked: Option<Pem> },
}

impl Secret {
    pub(super) fn compile(proto: &Proto) -> Compiled<Self> {
        match &proto.r#type {
            Some(Type::TlsCertificate(certificate)) => certificate_of(certificate),
            Some(Type::ValidationContext(context)) => roots_of(context),
            Some(Type::SessionTicketKeys(_) | Type::GenericSecret(_)) | None => {
                Err(Unsupported::new("secret of this kind"))
            }
        }
    }
}

fn certificate_of(proto: &TlsCertificate) -> Compiled<Secret> {
    let known = TlsCertificate {
        certificate_chain: proto.certificate_chain.clone(),
        private_key: proto.private_key.clone(),
        ..TlsCertificate::default()
    };
    if *proto != known {
        return Err(Unsupported::new("certificate with more than chain and key"));
    }
    Ok(Secret::Certificate {
        chain: needed(proto.certificate_chain.as_ref(), "certificate_chain")?,
        key: needed(proto.private_key.as_ref(), "private_key")?,
    })
}

fn roots_of(proto: &CertificateValidationContext) -> Compiled<Secret> {
    let known = CertificateValidationContext {
        trusted_ca: proto.trusted_ca.clone(),
        crl: proto.crl.clone(),
        ..CertificateValidationContext::default()
    };
    if *proto != known {
        return Err(Unsupported::new(
            "validation context with more than roots and lists",
        ));
    }
    Ok(Secret::Roots {
        roots: needed(proto.trusted_ca.as_ref(), "trusted_ca")?,
        revoked: proto.crl.as_ref().map(pem).transpose().at("crl")?,
    })
}

fn needed(source: Option<&DataSource>, field: &str) -> Compiled<Pem> {
    let source = source.ok_or_else(|| Unsupported::missing(field))?;
    pem(source).at(field)
}

/// Where a text is.
pub(super) fn pem(source: &DataSource) -> Compiled<Pem> {
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(Pem::Sent(bytes.as_slice().into())),
        Some(Specifier::InlineString(text)) => Ok(Pem::Sent(text.as_bytes().into())),
        Some(Specifier::Filename(path)) => Ok(Pem::File(path.into())),
        Some(Specifier::EnvironmentVariable(_)) | None => {
            Err(Unsupported::new("data source of this kind"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &str) -> Option<DataSource> {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
            ..DataSource::default()
        })
    }

    fn compiled(of: Type) -> Result<Secret, String> {
        let proto = Proto {
            name: "kubernetes://a".to_owned(),
            r#type: Some(of),
        };
        Secret::compile(&proto).map_err(|error| error.to_string())
    }

    #[test]
    fn certificates_and_roots_are_taken_and_nothing_else() {
        let sent = |text: &str| Pem::Sent(text.as_bytes().into());
        let certificate = TlsCertificate {
            certificate_chain: inline("chain"),
            private_key: inline("key"),
            ..TlsCertificate::default()
        };
        let expected = Secret::Certificate {
            chain: sent("chain"),
            key: sent("key"),
        };
        let found = compiled(Type::TlsCertificate(certificate.clone()));
        assert_eq!(found, Ok(expected.clone()));
        assert!(!format!("{expected:?}").contains("key\""), "keys are shown");

        let without = TlsCertificate {
            private_key: None,
            ..certificate.clone()
        };
        let more = TlsCertificate {
            password: inline("x"),
            ..certificate
        };
        assert_eq!(
            compiled(Type::TlsCertificate(without)),
            Err("private_key is missing".to_owned())
        );
        assert!(compiled(Type::TlsCertificate(more)).is_err());

        let roots = CertificateValidationContext {
            trusted_ca: inline("roots"),
            crl: inline("lists"),
            ..CertificateValidationContext::default()
        };
        let strict = CertificateValidationContext {
            verify_certificate_hash: vec!["a".to_owned()],
            ..roots.clone()
        };
        let expected = Secret::Roots {
            roots: sent("roots"),
            revoked: Some(sent("lists")),
        };
        assert_eq!(compiled(Type::ValidationContext(roots)), Ok(expected));
        assert!(compiled(Type::ValidationContext(strict)).is_err());
    }
}
