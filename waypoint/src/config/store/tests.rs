//! Secrets come after the clusters that name them, and go away.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType},
            core::v3::{
                DataSource, TransportSocket, data_source::Specifier, transport_socket::ConfigType,
            },
        },
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, SdsSecretConfig, Secret as SecretProto,
            UpstreamTlsContext, common_tls_context::ValidationContextType, secret::Type,
        },
    },
    google::protobuf::Any,
};
use leyline_tls::{Pem, Trust};
use prost::{Message, Name};

use super::*;

const ROOTS: &str = "kubernetes://payment-cacert";

fn cluster() -> ClusterProto {
    let secret = SdsSecretConfig {
        name: ROOTS.to_owned(),
        ..SdsSecretConfig::default()
    };
    let tls = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                secret,
            )),
            ..CommonTlsContext::default()
        }),
        sni: "payment.example".to_owned(),
        ..UpstreamTlsContext::default()
    };
    ClusterProto {
        name: "c".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        transport_socket: Some(TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url: UpstreamTlsContext::type_url(),
                value: tls.encode_to_vec(),
            })),
        }),
        ..ClusterProto::default()
    }
}

fn roots(text: &str) -> SecretProto {
    SecretProto {
        name: ROOTS.to_owned(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..DataSource::default()
            }),
            ..CertificateValidationContext::default()
        })),
    }
}

fn update(type_url: &'static str, resources: &[(&str, Vec<u8>)], removed: &[&str]) -> Update {
    let resources = resources.iter().map(|(name, body)| Resource {
        name: (*name).to_owned(),
        version: String::new(),
        body: body.clone(),
    });
    Update {
        type_url,
        resources: resources.collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        aliases: Vec::new(),
    }
}

/// What the cluster `c` trusts, and the number of its transport.
fn trusted(store: &ConfigStore) -> (Trust, u64) {
    let transport = store.load().clusters["c"].transport.clone();
    (transport.tls.unwrap().config().trust.clone(), transport.id)
}

#[test]
fn a_secret_reaches_the_clusters_that_name_it() {
    let store = ConfigStore::default();
    let wanted = || store.load().wanted(SECRET_TYPE).unwrap();
    assert!(wanted().is_empty());
    let told = update(CLUSTER_TYPE, &[("c", cluster().encode_to_vec())], &[]);
    assert_eq!(store.apply(&told), []);
    assert_eq!(Vec::from_iter(wanted()), [ROOTS]);
    let awaited = (
        Trust::Roots(Pem::Awaited(ROOTS.to_owned())),
        trusted(&store).1,
    );
    assert_eq!(trusted(&store), awaited);

    let send = |secret: SecretProto| {
        store.apply(&update(
            SECRET_TYPE,
            &[(ROOTS, secret.encode_to_vec())],
            &[],
        ))
    };
    let sent = |text: &str| Trust::Roots(Pem::Sent(text.as_bytes().into()));
    assert_eq!(send(roots("one")), []);
    let (trust, first) = trusted(&store);
    assert_eq!(trust, sent("one"));
    assert_ne!(first, awaited.1, "connections are not shared with before");
    assert_eq!(send(roots("one")), []);
    assert_eq!(trusted(&store), (sent("one"), first), "nothing has changed");

    // Of no use: what is known stays.
    let rejected = send(SecretProto::default());
    assert_eq!(rejected.len(), 1);
    assert_eq!(trusted(&store), (sent("one"), first));
    assert_eq!(send(roots("two")), []);
    assert_eq!(trusted(&store).0, sent("two"));

    store.apply(&update(SECRET_TYPE, &[], &[ROOTS]));
    assert_eq!(trusted(&store).0, awaited.0);
    store.apply(&update(CLUSTER_TYPE, &[], &["c"]));
    assert!(wanted().is_empty());
}
