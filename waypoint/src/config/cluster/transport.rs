//! How the bytes of an upstream connection are wrapped: Envoy's transport sockets. What is not understood is refused, so
//! that nothing is sent in another form than it should be.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3 as proto,
        core::v3::{proxy_protocol_config::Version, transport_socket::ConfigType},
    },
    extensions::transport_sockets::{
        internal_upstream::v3::InternalUpstreamTransport,
        proxy_protocol::v3::ProxyProtocolUpstreamTransport,
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
            common_tls_context::ValidationContextType,
        },
    },
    r#type::matcher::v3::string_matcher::MatchPattern,
};
use leyline_tls::{Origination, OriginationConfig, Pem, Trust};
use leyline_types::Str;
use prost::Name;

use crate::config::{
    any::decode,
    error::{At, Compiled, Unsupported},
    secrets::{self, Secret, Secrets},
};

/// The wrapping, inside of the tunnel of the mesh where there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transport {
    /// The same as long as the rest is: a connection of another number was wrapped in another way, and must not be used.
    pub(crate) id: u64,
    /// First of all, in plain text.
    pub(crate) announce: Option<Announce>,
    pub(crate) tls: Option<Arc<Origination>>,
    /// What the control plane is asked for.
    pub(crate) secrets: Vec<Str>,
}

/// Whom connections of a cluster are for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Server<'a> {
    Named(&'a str),
    OfEachRequest,
    Unknown,
}

/// Looks secrets up, and keeps in mind which.
struct Lookup<'a> {
    known: &'a Secrets,
    asked: Vec<Str>,
}

/// The PROXY header that tells who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    V1,
    V2,
}

impl Transport {
    /// What was read of certificates is kept where `before` had the same ones. `server` is asked for where no name is given.
    pub(super) fn compile(
        proto: &proto::Cluster,
        server: Server<'_>,
        before: Option<&Self>,
        secrets: &Secrets,
    ) -> Compiled<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if !proto.transport_socket_matches.is_empty() {
            return Err(Unsupported::new("transport_socket_matches"));
        }
        let mut transport = Self::default();
        let mut socket = proto.transport_socket.clone();
        while let Some(current) = socket {
            let Some(ConfigType::TypedConfig(any)) = current.config_type else {
                return Err(Unsupported::missing("transport_socket.typed_config"));
            };
            if any.type_url == RawBuffer::type_url() {
                break;
            }
            if any.type_url == UpstreamTlsContext::type_url() {
                let mut lookup = Lookup {
                    known: secrets,
                    asked: Vec::new(),
                };
                let config = tls(&decode(&any)?, server, &mut lookup).at("transport_socket")?;
                transport.secrets = lookup.asked;
                let known = before.and_then(|before| before.tls.as_ref());
                let known = known.filter(|known| *known.config() == config);
                let made = || Arc::new(Origination::new(config.clone()));
                transport.tls = Some(known.cloned().unwrap_or_else(made));
                break;
            }
            if any.type_url == ProxyProtocolUpstreamTransport::type_url() {
                let outer: ProxyProtocolUpstreamTransport = decode(&any)?;
                transport.announce = Some(announce(&outer).at("transport_socket")?);
                socket = outer.transport_socket;
                continue;
            }
            let internal: InternalUpstreamTransport = decode(&any).at("transport_socket")?;
            socket = internal.transport_socket;
        }
        transport.id = match before.filter(|before| transport.is_as(before)) {
            Some(before) => before.id,
            None => NEXT.fetch_add(1, Ordering::Relaxed),
        };
        Ok(transport)
    }

    fn is_as(&self, other: &Self) -> bool {
        let tls = match (&self.tls, &other.tls) {
            (Some(one), Some(other)) => one.config() == other.config(),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        tls && self.announce == other.announce
    }
}

fn announce(proto: &ProxyProtocolUpstreamTransport) -> Compiled<Announce> {
    let config = proto.config.as_ref();
    if config.is_some_and(|config| !config.added_tlvs.is_empty()) {
        return Err(Unsupported::new("added_tlvs"));
    }
    let version = config.map_or(0, |config| config.version);
    match Version::try_from(version) {
        Ok(Version::V1) => Ok(Announce::V1),
        Ok(Version::V2) => Ok(Announce::V2),
        Err(_) => Err(Unsupported::new("version of the PROXY protocol")),
    }
}

fn tls(
    proto: &UpstreamTlsContext,
    server: Server<'_>,
    lookup: &mut Lookup<'_>,
) -> Compiled<OriginationConfig> {
    let none = CommonTlsContext::default();
    let common = proto.common_tls_context.as_ref().unwrap_or(&none);
    if !common.tls_certificates.is_empty() {
        return Err(Unsupported::new("tls_certificates"));
    }
    let client = match common.tls_certificate_sds_secret_configs.as_slice() {
        [] => None,
        [one] => Some(lookup.certificate(&one.name)?),
        _ => return Err(Unsupported::new("several client certificates")),
    };
    let (trust, revoked, subject_alt_names) = match &common.validation_context_type {
        None => (Trust::Anybody, None, Vec::new()),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let secret = combined.validation_context_sds_secret_config.as_ref();
            let secret =
                secret.ok_or_else(|| Unsupported::missing("validation context's secret"))?;
            let (trust, sent) = lookup.roots(&secret.name)?;
            let default = combined.default_validation_context.as_ref();
            let names = default.map(subject_alt_names).transpose()?;
            let lists = default.and_then(|default| default.crl.as_ref());
            let lists = lists.map(secrets::pem).transpose().at("crl")?;
            (trust, lists.or(sent), names.unwrap_or_default())
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            let (trust, revoked) = lookup.roots(&secret.name)?;
            (trust, revoked, Vec::new())
        }
        // What has neither roots nor names lets everybody in; that is Istio's `insecureSkipVerify`.
        Some(ValidationContextType::ValidationContext(context))
            if *context == CertificateValidationContext::default() =>
        {
            (Trust::Anybody, None, Vec::new())
        }
        Some(_) => return Err(Unsupported::new("validation context of this kind")),
    };
    let server_name = match (proto.sni.as_str(), server) {
        ("", Server::Named(host)) => Some(host),
        ("", Server::OfEachRequest) => None,
        ("", Server::Unknown) => return Err(Unsupported::missing("sni")),
        (sni, _) => Some(sni),
    };
    Ok(OriginationConfig {
        trust,
        revoked,
        client,
        server_name: server_name.map(str::to_owned),
        subject_alt_names,
        alpn: common.alpn_protocols.clone(),
    })
}

impl Lookup<'_> {
    /// `file-cert:CHAIN~KEY`, as istiod names files, or a secret of the control plane.
    fn certificate(&mut self, secret: &str) -> Compiled<(Pem, Pem)> {
        if let Some(files) = secret.strip_prefix("file-cert:") {
            let (chain, key) = files
                .split_once('~')
                .ok_or_else(|| Unsupported::new(format!("secret {secret}")))?;
            return Ok((Pem::File(chain.into()), Pem::File(key.into())));
        }
        let awaited = || Pem::Awaited(secret.to_owned());
        match self.find(secret) {
            Some(Secret::Certificate { chain, key }) => Ok((chain.clone(), key.clone())),
            // It may still become one with a key.
            Some(Secret::Roots { .. }) | None => Ok((awaited(), awaited())),
        }
    }

    /// `file-root:FILE`, where `system` is the system's, or a secret of the control plane, which may bring revocation lists.
    fn roots(&mut self, secret: &str) -> Compiled<(Trust, Option<Pem>)> {
        match secret.strip_prefix("file-root:") {
            Some("system") => return Ok((Trust::System, None)),
            Some(file) => return Ok((Trust::Roots(Pem::File(file.into())), None)),
            None => {}
        }
        match self.find(secret) {
            Some(Secret::Roots { roots, revoked }) => {
                Ok((Trust::Roots(roots.clone()), revoked.clone()))
            }
            Some(Secret::Certificate { .. }) | None => {
                Ok((Trust::Roots(Pem::Awaited(secret.to_owned())), None))
            }
        }
    }

    fn find(&mut self, secret: &str) -> Option<&Secret> {
        self.asked.push(secret.into());
        self.known.get(secret).map(|secret| &**secret)
    }
}

fn subject_alt_names(context: &CertificateValidationContext) -> Compiled<Vec<String>> {
    let known = CertificateValidationContext {
        match_typed_subject_alt_names: context.match_typed_subject_alt_names.clone(),
        crl: context.crl.clone(),
        ..CertificateValidationContext::default()
    };
    if *context != known {
        return Err(Unsupported::new(
            "validation context with more than names and revocation lists",
        ));
    }
    let mut names = Vec::new();
    for matcher in &context.match_typed_subject_alt_names {
        let pattern = matcher.matcher.as_ref();
        match pattern.and_then(|matcher| matcher.match_pattern.as_ref()) {
            Some(MatchPattern::Exact(name)) => names.push(name.clone()),
            _ => {
                return Err(Unsupported::new(
                    "subject alternative name that is not exact",
                ));
            }
        }
    }
    names.dedup();
    Ok(names)
}
