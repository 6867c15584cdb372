use std::time::Duration;

use leyline_authz::ConnectionFacts;
use leyline_proto::istio::workload as wire;
use leyline_runtime::env::{MapEnv, Reader};
use leyline_state::{LocalNode, Store};
use leyline_tls::{
    BoxFuture, CaError, CertificateAuthority, CertificateConfig, CertificateSource,
    CertificateStore,
};
use leyline_types::{Identity, WorkloadName};

use super::*;
use crate::config::Config;

/// Nobody fetches in these tests.
struct NoCa;

impl CertificateAuthority for NoCa {
    fn sign<'a>(
        &'a self,
        _csr_pem: String,
        _identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        Box::pin(async move { Err(CaError::Deadline(ttl)) })
    }
}

fn discovery() -> Discovery {
    let config = Config::read(&mut Reader::new(&MapEnv::default()));
    let store = Arc::new(Store::new(LocalNode::default()));
    let (certificates, _worker) = CertificateStore::new(
        CertificateSource::Ca(Arc::new(NoCa)),
        CertificateConfig::default(),
    );
    let shared = Shared::new(config.proxy, store, certificates);
    Discovery::new(Arc::new(shared), Arc::default())
}

fn update(type_url: &'static str, resources: &[(&str, Vec<u8>)]) -> Update {
    let resources = resources.iter().map(|(name, body)| Resource {
        name: (*name).to_owned(),
        version: "1".to_owned(),
        body: body.clone(),
    });
    Update {
        aliases: Vec::new(),
        type_url,
        resources: resources.collect(),
        removed: vec![],
    }
}

fn workload(ip: [u8; 4], policies: &[&str]) -> Vec<u8> {
    let workload = wire::Workload {
        uid: "c//Pod/shop/web".to_owned(),
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "web".to_owned(),
        addresses: vec![ip.to_vec()],
        authorization_policies: policies.iter().map(|name| (*name).to_owned()).collect(),
        ..wire::Workload::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(workload)),
    };
    address.encode_to_vec()
}

fn policy(namespace: &str, scope: security::Scope) -> Authorization {
    Authorization {
        name: "p".to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: security::Action::Allow.into(),
        groups: vec![security::Group {
            rules: vec![security::Rules {
                matches: vec![security::Match::default()],
            }],
        }],
        ..Authorization::default()
    }
}

/// What a connection to the pod comes to now.
fn verdict(discovery: &Discovery) -> Result<(), String> {
    let name = WorkloadName {
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
    };
    let shared = &discovery.shared;
    let policies = shared.policies_of(&shared.store.snapshot(), &name);
    let facts = ConnectionFacts {
        source_identity: None,
        source_ip: [10, 0, 0, 9].into(),
        destination: ([10, 0, 0, 1], 80).into(),
    };
    let permit = leyline_authz::evaluate(&policies, &facts);
    permit.map(drop).map_err(|denial| denial.to_string())
}

const WEB: &str = "c//Pod/shop/web";

#[test]
fn a_pod_that_nobody_told_of_is_closed() {
    let discovery = discovery();
    assert!(verdict(&discovery).is_err());
    discovery.apply(update(ADDRESS_TYPE, &[(WEB, workload([10, 0, 0, 1], &[]))]));
    assert_eq!(verdict(&discovery), Ok(()));
}

#[test]
fn a_policy_that_is_named_and_not_known_denies_until_it_comes() {
    let discovery = discovery();
    let named = workload([10, 0, 0, 1], &["shop/p"]);
    discovery.apply(update(ADDRESS_TYPE, &[(WEB, named)]));
    let denial = verdict(&discovery).unwrap_err();
    assert!(denial.contains("shop/p"), "{denial}");
    let mut open = policy("shop", security::Scope::WorkloadSelector);
    open.action = security::Action::Deny.into();
    open.groups.clear();
    discovery.apply(update(
        AUTHORIZATION_TYPE,
        &[("shop/p", open.encode_to_vec())],
    ));
    assert_eq!(verdict(&discovery), Ok(()));
}

#[test]
fn a_malformed_condition_denies_with_its_reason() {
    let discovery = discovery();
    discovery.apply(update(ADDRESS_TYPE, &[(WEB, workload([10, 0, 0, 1], &[]))]));
    let mut malformed = policy("shop", security::Scope::Namespace);
    malformed.groups[0].rules[0].matches[0].source_ips = vec![security::Address {
        address: vec![10, 0, 0, 0],
        length: 40,
    }];
    discovery.apply(update(
        AUTHORIZATION_TYPE,
        &[("shop/p", malformed.encode_to_vec())],
    ));
    let denial = verdict(&discovery).unwrap_err();
    assert!(denial.contains("source_ips"), "{denial}");
}

/// A policy of a scope that cannot be read: an action that does not exist.
fn unreadable(namespace: &str, scope: security::Scope) -> Vec<u8> {
    let mut unreadable = policy(namespace, scope);
    unreadable.action = 77;
    unreadable.encode_to_vec()
}

#[test]
fn an_unreadable_policy_closes_all_that_it_may_reach() {
    use security::Scope::{Global, Namespace, WorkloadSelector};
    for (name, body, open) in [
        ("shop/p", b"no protobuf".to_vec(), false),
        ("shop/p", unreadable("shop", Namespace), false),
        ("root/p", unreadable("root", Global), false),
        ("root/p", unreadable("root", Namespace), true),
        // Workloads that name it are closed because it is missing; the others are none of its business.
        ("shop/p", unreadable("shop", WorkloadSelector), true),
    ] {
        let discovery = discovery();
        discovery.apply(update(ADDRESS_TYPE, &[(WEB, workload([10, 0, 0, 1], &[]))]));
        let rejected = discovery.apply(update(AUTHORIZATION_TYPE, &[(name, body)]));
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].name, name);
        assert_eq!(verdict(&discovery).is_ok(), open, "{name} {rejected:?}");
    }
}

#[test]
fn the_last_good_version_stays_when_a_new_one_is_unreadable() {
    let discovery = discovery();
    discovery.apply(update(ADDRESS_TYPE, &[(WEB, workload([10, 0, 0, 1], &[]))]));
    let mut good = policy("shop", security::Scope::Namespace);
    good.groups[0].rules[0].matches.clear();
    discovery.apply(update(
        AUTHORIZATION_TYPE,
        &[("shop/p", good.encode_to_vec())],
    ));
    assert_eq!(verdict(&discovery), Ok(()));
    let body = unreadable("shop", security::Scope::Namespace);
    let rejected = discovery.apply(update(AUTHORIZATION_TYPE, &[("shop/p", body)]));
    assert_eq!(rejected.len(), 1);
    assert_eq!(verdict(&discovery), Ok(()));
}

#[test]
fn addresses_that_a_workload_leaves_are_noticed() {
    let discovery = discovery();
    let store = discovery.shared.store.clone();
    let apply = |body: Option<Vec<u8>>| {
        let before = store.snapshot();
        let change = match body {
            Some(body) => convert::address(WEB, &body).unwrap(),
            None => convert::removed_address(WEB),
        };
        let applied = store.apply([change]);
        let mut left: Vec<IpAddr> = left_addresses(&before, &store.snapshot(), &applied)
            .into_iter()
            .collect();
        left.sort();
        left
    };
    assert!(apply(Some(workload([10, 0, 0, 1], &[]))).is_empty());
    assert!(apply(Some(workload([10, 0, 0, 1], &["shop/p"]))).is_empty());
    assert_eq!(
        apply(Some(workload([10, 0, 0, 2], &[]))),
        [IpAddr::from([10, 0, 0, 1])]
    );
    assert_eq!(apply(None), [IpAddr::from([10, 0, 0, 2])]);
}
