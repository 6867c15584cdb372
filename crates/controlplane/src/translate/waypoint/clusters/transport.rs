//! How the bytes of a connection are wrapped: as they are, in TLS of the user's own, after a PROXY header. Inside of the
//! mesh's own encryption in any case (facts A.5, E.4).

use envoy_types::pb::envoy::{
    config::core::v3::{
        DataSource, ProxyProtocolConfig, TransportSocket, UpstreamHttpProtocolOptions,
        data_source::Specifier, proxy_protocol_config::Version, transport_socket::ConfigType,
    },
    extensions::transport_sockets::{
        internal_upstream::v3::{
            InternalUpstreamTransport, internal_upstream_transport::MetadataValueSource,
        },
        proxy_protocol::v3::ProxyProtocolUpstreamTransport,
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
            UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
        },
    },
    r#type::{
        matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        metadata::v3::{MetadataKind, metadata_kind},
    },
};
use prost::{Message, Name};

use super::{super::pb, ORIGINAL_DST, Policy, Traffic, Which, by_ads};
use crate::objects::l7::destination_rule::{ClientTls, ProxyProtocol};

/// Before the name of a Secret of the waypoint's namespace (facts A.1).
pub(in super::super) const SECRET: &str = "kubernetes://";
/// Before namespace and name of a ConfigMap.
pub(in super::super) const CONFIG_MAP: &str = "configmap://";
/// After the name, for the roots of either.
pub(in super::super) const ROOTS_SUFFIX: &str = "-cacert";
/// The secret that stands for the roots of the system.
const SYSTEM_ROOTS: &str = "file-root:system";

/// Of a cluster of `host`, or of hosts that requests name.
pub(super) fn socket(
    policy: &Policy,
    host: Option<&str>,
    which: &Which,
    http2: bool,
) -> TransportSocket {
    let plain = wrapped("envoy.transport_sockets.raw_buffer", &RawBuffer {});
    let inner = match policy.tls.as_ref().filter(|tls| originates(tls)) {
        Some(tls) => {
            let alpn = match (which.traffic, http2) {
                (Traffic::Http, true) => vec!["h2".to_owned()],
                (Traffic::Http, false) => vec!["http/1.1".to_owned()],
                (Traffic::Tcp, _) => Vec::new(),
            };
            wrapped("envoy.transport_sockets.tls", &tls_context(tls, host, alpn))
        }
        None => plain,
    };
    let internal = through_tunnel(inner);
    match &policy.proxy_protocol {
        None => internal,
        Some(ProxyProtocol { version }) => {
            let version = match version.as_deref() {
                Some("V2") => Version::V2,
                Some(_) | None => Version::V1,
            };
            let announced = ProxyProtocolUpstreamTransport {
                config: Some(ProxyProtocolConfig {
                    version: version.into(),
                    ..ProxyProtocolConfig::default()
                }),
                transport_socket: Some(internal),
                ..ProxyProtocolUpstreamTransport::default()
            };
            wrapped(
                "envoy.transport_sockets.upstream_proxy_protocol",
                &announced,
            )
        }
    }
}

/// Where requests name the hosts, each of these is asked for by its name, and must prove it.
pub(super) fn each_its_own_name(policy: &Policy) -> Option<UpstreamHttpProtocolOptions> {
    let tls = policy.tls.as_ref().filter(|tls| originates(tls))?;
    tls.sni.is_none().then(|| UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: tls.insecure_skip_verify != Some(true)
            && tls.subject_alt_names.is_empty(),
        ..UpstreamHttpProtocolOptions::default()
    })
}

/// Bytes as they are, into the tunnel.
pub(super) fn passed_through() -> TransportSocket {
    through_tunnel(wrapped("envoy.transport_sockets.raw_buffer", &RawBuffer {}))
}

fn through_tunnel(inner: TransportSocket) -> TransportSocket {
    let internal = InternalUpstreamTransport {
        passthrough_metadata: vec![pass(ORIGINAL_DST), pass("istio")],
        transport_socket: Some(inner),
    };
    wrapped("envoy.transport_sockets.internal_upstream", &internal)
}

fn wrapped<M: Message + Name>(name: &str, message: &M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(pb::any(message))),
    }
}

/// Hands an endpoint's metadata to the listener that opens its tunnel.
fn pass(name: &str) -> MetadataValueSource {
    MetadataValueSource {
        kind: Some(MetadataKind {
            kind: Some(metadata_kind::Kind::Host(metadata_kind::Host {})),
        }),
        name: name.to_owned(),
    }
}

/// The secrets of a cluster that the control plane is asked for.
pub(in super::super) fn secrets(policy: &Policy) -> impl Iterator<Item = String> {
    let tls = policy.tls.as_ref().filter(|tls| originates(tls));
    tls.into_iter().flat_map(secrets_of)
}

/// The same of TLS that is originated.
pub(in super::super) fn secrets_of(tls: &ClientTls) -> impl Iterator<Item = String> + use<> {
    let names = [certificate(tls), roots(tls)].into_iter().flatten();
    names.filter(|name| !name.starts_with("file-"))
}

/// Whether connections are wrapped in TLS of the user's; the mesh's own is there anyway.
pub(in super::super) fn originates(tls: &ClientTls) -> bool {
    matches!(tls.mode.as_deref(), Some("SIMPLE" | "MUTUAL"))
}

/// The secret with the client's certificate. Files are named by secrets, as istiod names them: who sends the request has them.
fn certificate(tls: &ClientTls) -> Option<String> {
    if tls.mode.as_deref() != Some("MUTUAL") {
        return None;
    }
    if let Some(name) = &tls.credential_name {
        return Some(secret_name(name));
    }
    let (certificate, key) = (tls.client_certificate.as_ref()?, tls.private_key.as_ref()?);
    Some(format!("file-cert:{certificate}~{key}"))
}

/// The secret with the roots.
fn roots(tls: &ClientTls) -> Option<String> {
    if tls.insecure_skip_verify == Some(true) {
        return None;
    }
    Some(match (&tls.credential_name, &tls.ca_certificates) {
        (Some(name), _) => format!("{}{ROOTS_SUFFIX}", secret_name(name)),
        (None, Some(file)) => format!("file-root:{file}"),
        (None, None) => SYSTEM_ROOTS.to_owned(),
    })
}

/// A plain name is of a Secret.
fn secret_name(credential: &str) -> String {
    if credential.contains("://") {
        credential.to_owned()
    } else {
        format!("{SECRET}{credential}")
    }
}

fn tls_context(
    tls: &ClientTls,
    host: Option<&str>,
    alpn_protocols: Vec<String>,
) -> UpstreamTlsContext {
    let secret = |name: String| SdsSecretConfig {
        name,
        sds_config: Some(by_ads()),
    };
    let names = tls.subject_alt_names.iter().flat_map(|name| {
        let kinds = if name.contains("://") {
            vec![SanType::Uri]
        } else {
            vec![SanType::Dns, SanType::IpAddress]
        };
        kinds.into_iter().map(|kind| SubjectAltNameMatcher {
            san_type: kind.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(name.clone())),
                ignore_case: false,
            }),
            ..SubjectAltNameMatcher::default()
        })
    });
    let lists = tls.ca_crl.as_ref().map(|file| DataSource {
        specifier: Some(Specifier::Filename(file.clone())),
        ..DataSource::default()
    });
    let validation = roots(tls).map(|roots| {
        let combined = CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names.collect(),
                crl: lists,
                ..CertificateValidationContext::default()
            }),
            validation_context_sds_secret_config: Some(secret(roots)),
            ..CombinedCertificateValidationContext::default()
        };
        ValidationContextType::CombinedValidationContext(combined)
    });
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols,
            tls_certificate_sds_secret_configs: certificate(tls).map(secret).into_iter().collect(),
            validation_context_type: validation,
            ..CommonTlsContext::default()
        }),
        sni: tls.sni.as_deref().or(host).unwrap_or_default().to_owned(),
        ..UpstreamTlsContext::default()
    }
}
