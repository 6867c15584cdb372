//! `connect_terminate`, the listener of tunnels. What it says is what the acceptor does anyway, except for the trust domains
//! of clients: the mesh's own is known by our certificate, its aliases (MeshConfig) are told here.
//!
//! Only whole trust domains can be told. A name of another form admits nobody.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{TransportSocket, transport_socket::ConfigType},
        listener::v3::Listener,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, DownstreamTlsContext, SubjectAltNameMatcher,
        common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
    },
    r#type::matcher::v3::string_matcher::MatchPattern,
};
use leyline_types::TrustDomain;

use super::{
    any::decode,
    error::{At, Compiled, Unsupported},
};

/// The trust domains that clients may be of.
pub(crate) fn trust_domains(listener: &Listener) -> Compiled<Arc<[TrustDomain]>> {
    let mut domains = Vec::new();
    let sockets = listener.filter_chains.iter();
    for socket in sockets.filter_map(|chain| chain.transport_socket.as_ref()) {
        let Some(context) = validation(socket).at("transport_socket")? else {
            continue;
        };
        for (index, name) in context.match_typed_subject_alt_names.iter().enumerate() {
            let domain = trust_domain(name).at_item("match_typed_subject_alt_names", index)?;
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
    }
    Ok(domains.into())
}

fn validation(socket: &TransportSocket) -> Compiled<Option<CertificateValidationContext>> {
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        return Ok(None);
    };
    let context: DownstreamTlsContext = decode(any)?;
    let common = context.common_tls_context.unwrap_or_default();
    Ok(match common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.default_validation_context
        }
        Some(ValidationContextType::ValidationContext(context)) => Some(context),
        Some(_) | None => None,
    })
}

/// `spiffe://` and a trust domain, to its end.
fn trust_domain(name: &SubjectAltNameMatcher) -> Compiled<TrustDomain> {
    let pattern = name
        .matcher
        .as_ref()
        .and_then(|matcher| matcher.match_pattern.as_ref());
    let Some(MatchPattern::Prefix(prefix)) = pattern else {
        return Err(Unsupported::new("a name that is no prefix"));
    };
    let domain = prefix
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_suffix('/'))
        .filter(|_| name.san_type == i32::from(SanType::Uri))
        .and_then(|domain| domain.parse().ok());
    domain.ok_or_else(|| Unsupported::new(format!("`{prefix}` is not the URI of a trust domain")))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::listener::v3::FilterChain,
            extensions::transport_sockets::tls::v3::{
                CommonTlsContext, common_tls_context::CombinedCertificateValidationContext,
            },
            r#type::matcher::v3::StringMatcher,
        },
        google::protobuf::Any,
    };
    use leyline_proto::LISTENER_TYPE;
    use leyline_xds::session::{Resource, Update};
    use prost::{Message, Name};

    use super::*;
    use crate::config::store::ConfigStore;

    type ClientName = (SanType, MatchPattern);

    fn uri(prefix: &str) -> ClientName {
        (SanType::Uri, MatchPattern::Prefix(prefix.to_owned()))
    }

    /// The listener with these names of clients.
    fn entry(names: &[ClientName]) -> Listener {
        let names = names.iter().map(|(kind, pattern)| SubjectAltNameMatcher {
            san_type: (*kind).into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(pattern.clone()),
                ..StringMatcher::default()
            }),
            ..SubjectAltNameMatcher::default()
        });
        let combined = CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names.collect(),
                ..CertificateValidationContext::default()
            }),
            ..CombinedCertificateValidationContext::default()
        };
        let validation = ValidationContextType::CombinedValidationContext(combined);
        let context = DownstreamTlsContext {
            common_tls_context: Some(CommonTlsContext {
                validation_context_type: Some(validation),
                ..CommonTlsContext::default()
            }),
            ..DownstreamTlsContext::default()
        };
        let socket = TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url: DownstreamTlsContext::type_url(),
                value: context.encode_to_vec(),
            })),
        };
        Listener {
            filter_chains: vec![FilterChain {
                transport_socket: Some(socket),
                ..FilterChain::default()
            }],
            ..Listener::default()
        }
    }

    #[test]
    fn names_of_clients_are_whole_trust_domains() {
        let check = |name: ClientName, expected: &str| {
            let found = match trust_domains(&entry(&[uri("spiffe://cluster.local/"), name])) {
                Ok(domains) => domains.last().map(ToString::to_string).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected);
        };
        let wrong = |prefix: &str| {
            format!("match_typed_subject_alt_names[1]: `{prefix}` is not the URI of a trust domain")
        };
        check(uri("spiffe://old.example/"), "old.example");
        check(uri("spiffe://cluster.local/"), "cluster.local");
        for prefix in [
            "",
            "spiffe://",
            "spiffe:///",
            "spiffe://old.exam",
            "spiffe://old.example/ns/a/",
            "https://old.example/",
        ] {
            check(uri(prefix), &wrong(prefix));
        }
        let of_dns = (SanType::Dns, uri("spiffe://old.example/").1);
        check(of_dns, &wrong("spiffe://old.example/"));
        let exact = MatchPattern::Exact("spiffe://old.example/ns/a/sa/b".to_owned());
        check(
            (SanType::Uri, exact),
            "match_typed_subject_alt_names[1]: a name that is no prefix",
        );
    }

    #[test]
    fn what_is_not_understood_or_gone_admits_nobody() {
        let store = ConfigStore::default();
        let known = || store.load().trust_domains.len();
        let told = |listener: &Listener| Update {
            type_url: LISTENER_TYPE,
            resources: vec![Resource {
                name: "connect_terminate".to_owned(),
                version: String::new(),
                body: listener.encode_to_vec(),
            }],
            removed: Vec::new(),
            aliases: Vec::new(),
        };
        let good = told(&entry(&[
            uri("spiffe://a.example/"),
            uri("spiffe://b.example/"),
        ]));
        assert_eq!((store.apply(&good).len(), known()), (0, 2));
        let bad = told(&entry(&[uri("spiffe://a.example/"), uri("spiffe://b")]));
        assert_eq!((store.apply(&bad).len(), known()), (1, 0));
        assert_eq!((store.apply(&good).len(), known()), (0, 2));
        let none = told(&Listener::default());
        assert_eq!((store.apply(&none).len(), known()), (0, 0));
        store.apply(&good);
        let gone = Update {
            type_url: LISTENER_TYPE,
            resources: Vec::new(),
            removed: vec!["connect_terminate".to_owned()],
            aliases: Vec::new(),
        };
        assert_eq!((store.apply(&gone).len(), known()), (0, 0));
    }
}
