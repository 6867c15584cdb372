//! How the bytes of an upstream connection are wrapped: Envoy's transport sockets. What is not understood is refused, so
//! that nothing is sent in another form than it should be.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
use leyline_tls::{Origination, OriginationConfig, Trust};
use prost::Name;

use crate::config::{
    any::decode,
    error::{At, Compiled, Unsupported},
};

/// The wrapping, inside of the tunnel of the mesh where there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transport {
    /// The same as long as the rest is: a connection of another number was wrapped in another way, and must not be used.
    pub(crate) id: u64,
    /// First of all, in plain text.
    pub(crate) announce: Option<Announce>,
    pub(crate) tls: Option<Arc<Origination>>,
}

/// The PROXY header that tells who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    V1,
    V2,
}

impl Transport {
    /// What was read of certificates is kept where `before` had the same ones. `host` is asked for where no name is given.
    pub(super) fn compile(
        proto: &proto::Cluster,
        host: Option<&str>,
        before: Option<&Self>,
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
                let config = tls(&decode(&any)?, host).at("transport_socket")?;
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

fn tls(proto: &UpstreamTlsContext, host: Option<&str>) -> Compiled<OriginationConfig> {
    let none = CommonTlsContext::default();
    let common = proto.common_tls_context.as_ref().unwrap_or(&none);
    if !common.tls_certificates.is_empty() {
        return Err(Unsupported::new("tls_certificates"));
    }
    let client = match common.tls_certificate_sds_secret_configs.as_slice() {
        [] => None,
        [one] => Some(certificate(&one.name)?),
        _ => return Err(Unsupported::new("several client certificates")),
    };
    let (trust, subject_alt_names) = match &common.validation_context_type {
        None => (Trust::Anybody, Vec::new()),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let secret = combined.validation_context_sds_secret_config.as_ref();
            let secret =
                secret.ok_or_else(|| Unsupported::missing("validation context's secret"))?;
            let default = combined.default_validation_context.as_ref();
            let names = default.map(subject_alt_names).transpose()?;
            (roots(&secret.name)?, names.unwrap_or_default())
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            (roots(&secret.name)?, Vec::new())
        }
        // What has neither roots nor names lets everybody in; that is Istio's `insecureSkipVerify`.
        Some(ValidationContextType::ValidationContext(context))
            if *context == CertificateValidationContext::default() =>
        {
            (Trust::Anybody, Vec::new())
        }
        Some(_) => return Err(Unsupported::new("validation context of this kind")),
    };
    let server_name = match proto.sni.as_str() {
        "" => host.ok_or_else(|| Unsupported::missing("sni"))?,
        sni => sni,
    };
    Ok(OriginationConfig {
        trust,
        client,
        server_name: server_name.to_owned(),
        subject_alt_names,
        alpn: common.alpn_protocols.clone(),
    })
}

/// `file-cert:CHAIN~KEY`, as istiod names files.
fn certificate(secret: &str) -> Compiled<(PathBuf, PathBuf)> {
    let files = secret.strip_prefix("file-cert:");
    let files = files.and_then(|files| files.split_once('~'));
    let (chain, key) = files.ok_or_else(|| Unsupported::new(format!("secret {secret}")))?;
    Ok((chain.into(), key.into()))
}

/// `file-root:FILE`, where `system` is the system's.
fn roots(secret: &str) -> Compiled<Trust> {
    match secret.strip_prefix("file-root:") {
        Some("system") => Ok(Trust::System),
        Some(file) => Ok(Trust::File(file.into())),
        None => Err(Unsupported::new(format!("secret {secret}"))),
    }
}

fn subject_alt_names(context: &CertificateValidationContext) -> Compiled<Vec<String>> {
    let known = CertificateValidationContext {
        match_typed_subject_alt_names: context.match_typed_subject_alt_names.clone(),
        ..CertificateValidationContext::default()
    };
    if *context != known {
        return Err(Unsupported::new("validation context with more than names"));
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
