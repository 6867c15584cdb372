use std::collections::HashMap;

use leyline_proto::{
    ADDRESS_TYPE,
    istio::workload::{NamespacedHostname, PortList},
};

use super::*;
use crate::{
    translate::{Resource, Translation},
    xds::session::{Received, Session},
};

fn workload(node: &str, ip: [u8; 4], services: &[&str]) -> Type {
    let services = services.iter();
    Type::Workload(Workload {
        node: node.to_owned(),
        addresses: vec![ip.to_vec()],
        services: services
            .map(|name| ((*name).to_owned(), PortList::default()))
            .collect::<HashMap<_, _>>(),
        ..Workload::default()
    })
}

fn service(address: [u8; 4], length: Option<u32>, waypoint: Option<&str>) -> Type {
    let waypoint = waypoint.map(|name| {
        let (namespace, hostname) = name.split_once('/').unwrap();
        GatewayAddress {
            hbone_mtls_port: 15008,
            destination: Some(Destination::Hostname(NamespacedHostname {
                namespace: namespace.to_owned(),
                hostname: hostname.to_owned(),
            })),
        }
    });
    Type::Service(Service {
        addresses: vec![NetworkAddress {
            network: String::new(),
            address: address.to_vec(),
            length,
        }],
        waypoint,
        ..Service::default()
    })
}

fn published(all: Vec<(&str, Type)>) -> Published {
    let resources = all.into_iter().map(|(name, kind)| {
        let body = Address { r#type: Some(kind) }.encode_to_vec();
        let version = format!("{}", body.len());
        let body = body.into();
        (name.to_owned(), Resource { version, body })
    });
    Published {
        generation: 1,
        translation: Translation {
            addresses: Arc::new(resources.collect()),
            ..Translation::default()
        },
        ..Published::default()
    }
}

/// One node with a pod of a service, and what others have.
fn mesh() -> Published {
    published(vec![
        ("own", workload("a", [10, 0, 0, 1], &["shop/own"])),
        ("shop/own", service([10, 9, 0, 1], None, None)),
        ("web-1", workload("b", [10, 0, 1, 1], &["shop/web"])),
        ("web-2", workload("b", [10, 0, 1, 2], &["shop/web"])),
        ("shop/web", service([10, 9, 0, 2], None, Some("shop/way"))),
        ("shop/way", service([10, 9, 0, 3], None, None)),
        ("way-1", workload("b", [10, 0, 1, 3], &["shop/way"])),
        ("shop/block", service([10, 8, 0, 0], Some(16), None)),
        ("other", workload("b", [10, 0, 1, 9], &[])),
    ])
}

fn ask(session: &mut Session, subscribe: &[&str], unsubscribe: &[&str]) -> Received {
    let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: names(subscribe),
        resource_names_unsubscribe: names(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    };
    session.receive(request).unwrap()
}

/// The next response, acknowledged: names, and what is told to be gone.
fn told(session: &mut Session, published: &Published) -> Option<(Vec<String>, Vec<String>)> {
    let response = session.next_response(published)?;
    let ack = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(session.receive(ack), Ok(Received::Ack));
    let names = response.resources.into_iter().map(|resource| resource.name);
    Some((names.collect(), response.removed_resources))
}

fn expected(names: &[&str], removed: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
    let owned = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
    Some((owned(names), owned(removed)))
}

#[test]
fn what_is_asked_for_comes_with_what_it_needs() {
    let mesh = mesh();
    let mut session = Session::of_node("a".to_owned());
    assert_eq!(ask(&mut session, &["*"], &["*"]), Received::Subscribed);
    // Who runs on the node, and its service.
    let own = expected(&["own", "shop/own"], &[]);
    assert_eq!(told(&mut session, &mesh), own);
    assert_eq!(told(&mut session, &mesh), None);
    assert_eq!(session.addresses_generation(), Some(1));

    ask(&mut session, &["/10.9.0.2"], &[]);
    let web = expected(&["shop/way", "shop/web", "way-1", "web-1", "web-2"], &[]);
    assert_eq!(told(&mut session, &mesh), web);
    ask(&mut session, &["/10.0.1.9", "/10.8.7.6"], &[]);
    let both = expected(&["other", "shop/block"], &[]);
    assert_eq!(told(&mut session, &mesh), both);
    // Nobody; and once more, as it is asked once more.
    for _ in 0..2 {
        ask(&mut session, &["/192.0.2.1", "shop/nobody"], &[]);
        let nobody = expected(&[], &["/192.0.2.1", "shop/nobody"]);
        assert_eq!(told(&mut session, &mesh), nobody);
    }
    // What it has and asks for again is sent again.
    ask(&mut session, &["/10.0.1.9"], &[]);
    assert_eq!(told(&mut session, &mesh), expected(&["other"], &[]));
    assert_eq!(told(&mut session, &mesh), None);
    ask(&mut session, &[], &["/10.0.1.9"]);
    assert_eq!(told(&mut session, &mesh), expected(&[], &["other"]));
}

#[test]
fn what_comes_to_be_at_a_name_is_told() {
    let mut session = Session::of_node("a".to_owned());
    ask(&mut session, &["/10.0.1.9"], &[]);
    let empty = published(Vec::new());
    assert_eq!(told(&mut session, &empty), expected(&[], &["/10.0.1.9"]));
    assert_eq!(told(&mut session, &empty), None);
    let all = expected(&["other", "own", "shop/own"], &[]);
    assert_eq!(told(&mut session, &mesh()), all);
    assert_eq!(
        told(&mut session, &empty),
        expected(&[], &["other", "own", "shop/own"])
    );
}

#[test]
fn a_proxy_that_comes_back_gets_what_differs() {
    let mut session = Session::of_node("a".to_owned());
    let version = mesh().translation.addresses["other"].version.clone();
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: vec!["shop/own".to_owned(), "/10.0.1.9".to_owned()],
        initial_resource_versions: HashMap::from([
            ("other".to_owned(), version),
            ("gone".to_owned(), "1".to_owned()),
        ]),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(session.receive(request), Ok(Received::Subscribed));
    let all = expected(&["other", "own", "shop/own"], &["gone"]);
    assert_eq!(told(&mut session, &mesh()), all);
}

#[test]
fn addresses_are_told_as_aliases() {
    let mut session = Session::of_node(String::new());
    ask(&mut session, &["/10.0.1.9"], &[]);
    let response = session.next_response(&mesh()).unwrap();
    assert_eq!(response.resources[0].aliases, ["/10.0.1.9"]);
}
