//! Guests: a namespace nested in the pod, behind an interface that the pod names.
//!
//! guest (10.9.0.2, fd09::2) - pod of the client, which forwards; all others have a route to the guest.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use leyline_capture::{NodeCapture, PodCapture, PodCounter, PodOptions, Unreached, WhyUnreached};
use leyline_ebpf_abi::{FlowKey, maps};
use leyline_net::{LinkEvents, NetNs};

use crate::{
    app::{self, Conversation, PORT, ask, at},
    lab::{
        ETHERNET_MTU, FAMILIES, Family, Lab, PodNs, address, block_on, eventually, index, join,
        namespace, netlink, route,
    },
    proxy::{Dns, Proxy, Seen, Via},
};

const INTERFACE: &str = "k6t-eth0";
/// What a packet that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(500);

/// Puts a guest into the client's pod.
fn guest(lab: &Lab) -> PodNs {
    let netns = namespace();
    plug_in(&lab.client.netns, &netns);
    route(&lab.node_a, "10.9.0.0", 24, "10.1.0.2");
    route(&lab.node_a, "fd09::", 64, "fd01::2");
    route(&lab.node_b, "10.9.0.0", 24, "10.0.0.1");
    route(&lab.node_b, "fd09::", 64, "fd00::1");
    PodNs {
        netns,
        v4: "10.9.0.2".parse().unwrap(),
        v6: "fd09::2".parse().unwrap(),
    }
}

fn plug_in(pod: &NetNs, guest: &NetNs) {
    join(pod, INTERFACE, guest, "eth0", ETHERNET_MTU);
    address(pod, INTERFACE, "10.9.0.1", 24, "fd09::1");
    address(guest, "eth0", "10.9.0.2", 24, "fd09::2");
    route(guest, "0.0.0.0", 0, "10.9.0.1");
    route(guest, "::", 0, "fd09::1");
}

fn unplug(pod: &NetNs) {
    netlink(pod, async |handle| {
        let index = index(&handle, INTERFACE).await;
        handle.link().del(index).execute().await.unwrap();
    });
}

/// Captures the client's pod with its guests.
fn enroll(proxy: &Proxy, node: &NodeCapture) -> (Arc<PodCapture>, Vec<Unreached>) {
    let options = PodOptions {
        guests: vec![INTERFACE.parse().unwrap()],
        ..PodOptions::default()
    };
    let pod = proxy.enroll_with(node, options).unwrap();
    let unreached = block_on(pod.reroute()).unwrap();
    (pod, unreached)
}

fn seen_by_server(guest: &PodNs, lab: &Lab, family: Family) -> IpAddr {
    let target = at(lab.server.ip(family));
    ask(&guest.netns, target).unwrap().seen.ip()
}

#[track_caller]
fn assert_captured(proxy: &Proxy, guest: &PodNs, lab: &Lab) {
    for family in FAMILIES {
        proxy.take_seen();
        let target = at(lab.server.ip(family));
        let answer = ask(&guest.netns, target).unwrap();
        assert_eq!(answer.peer, target);
        assert_eq!(answer.seen.ip(), lab.client.ip(family), "as the pod");
        let seen = Seen {
            via: Via::Guests,
            from: answer.local,
            to: target,
        };
        assert_eq!(proxy.take_seen(), [seen]);
    }
}

#[track_caller]
fn assert_direct(guest: &PodNs, lab: &Lab) {
    for family in FAMILIES {
        assert_eq!(seen_by_server(guest, lab, family), guest.ip(family));
    }
}

#[test]
fn what_guests_open_is_the_pods_and_the_rest_goes_its_way() {
    let lab = Lab::new();
    let guest = guest(&lab);
    for netns in [&lab.server.netns, &guest.netns, &lab.client.netns] {
        app::serve(netns, PORT);
    }
    assert_direct(&guest, &lab);
    let mut older: Vec<Conversation> = FAMILIES
        .map(|family| Conversation::open(&guest.netns, at(lab.server.ip(family))))
        .into();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let (pod, unreached) = enroll(&proxy, &node);
    assert_eq!(unreached, []);
    assert_captured(&proxy, &guest, &lab);
    for conversation in &mut older {
        conversation.exchange().unwrap();
    }
    for family in FAMILIES {
        // From outside to the guest, and its answers.
        let answer = ask(&lab.server.netns, at(guest.ip(family))).unwrap();
        assert_eq!(answer.seen.ip(), lab.server.ip(family));
        assert_eq!(proxy.take_seen(), []);
        // To the pod, by its address here or there.
        let near = match family {
            Family::V4 => "10.9.0.1",
            Family::V6 => "fd09::1",
        };
        for own in [lab.client.ip(family), near.parse().unwrap()] {
            let answer = ask(&guest.netns, at(own)).unwrap();
            assert_eq!(answer.seen.ip(), guest.ip(family));
            assert_eq!(proxy.take_seen()[0].via, Via::Inbound);
        }
    }
    assert_eq!(pod.counter(PodCounter::Guests).unwrap(), 2);
}

#[test]
fn a_pod_that_names_no_interface_forwards() {
    let lab = Lab::new();
    let guest = guest(&lab);
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    assert_eq!(block_on(pod.reroute()).unwrap(), []);
    assert_direct(&guest, &lab);
    assert_eq!(proxy.take_seen(), []);
}

#[test]
fn interfaces_come_late_and_again() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let (pod, unreached) = enroll(&proxy, &node);
    let missing = Unreached {
        interface: INTERFACE.parse().unwrap(),
        why: WhyUnreached::Missing,
    };
    assert_eq!(unreached, std::slice::from_ref(&missing));
    let guest = guest(&lab);
    app::serve(&lab.client.netns, PORT + 1);
    for _ in 0..2 {
        assert_eq!(block_on(pod.reroute()).unwrap(), []);
        assert_captured(&proxy, &guest, &lab);
        let near = SocketAddr::new("10.9.0.1".parse().unwrap(), PORT + 1);
        ask(&guest.netns, near).unwrap();
        assert_eq!(proxy.take_seen()[0].via, Via::Inbound, "the pod itself");
        unplug(&lab.client.netns);
        assert_eq!(
            block_on(pod.reroute()).unwrap(),
            std::slice::from_ref(&missing)
        );
        plug_in(&lab.client.netns, &guest.netns);
    }
}

#[test]
fn changes_of_interfaces_are_told() {
    let lab = Lab::new();
    let guest = namespace();
    block_on(async {
        let events = LinkEvents::open(&lab.client.netns).unwrap();
        let changes = std::thread::spawn({
            let pod = lab.client.netns.clone();
            move || plug_in(&pod, &guest)
        });
        events.changed().await.unwrap();
        changes.join().unwrap();
    });
}

#[test]
fn no_packet_of_a_captured_guest_passes_a_proxy_that_is_gone() {
    let lab = Lab::new();
    let guest = guest(&lab);
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let (pod, _) = enroll(&proxy, &node);
    assert_captured(&proxy, &guest, &lab);
    drop(proxy);
    for family in FAMILIES {
        let target = at(lab.server.ip(family));
        let refused = guest
            .netns
            .run(|| TcpStream::connect_timeout(&target, SILENCE));
        assert!(refused.unwrap().is_err(), "{family:?}");
    }
    assert!(pod.counter(PodCounter::Refused).unwrap() >= 2);
    let next = Proxy::start(&lab.client, Dns::Off);
    let (_pod, unreached) = enroll(&next, &node);
    assert_eq!(unreached, []);
    assert_captured(&next, &guest, &lab);
}

#[test]
fn connections_of_guests_outlive_takeover_a_change_of_mind_and_the_end_of_enrolment() {
    let lab = Lab::new();
    let guest = guest(&lab);
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let first = Proxy::start(&lab.client, Dns::Off);
    let (_first_pod, _) = enroll(&first, &node);
    let open = || FAMILIES.map(|f| Conversation::open(&guest.netns, at(lab.server.ip(f))));
    let mut all = Vec::from(open());

    let second = Proxy::start(&lab.client, Dns::Off);
    let (pod, unreached) = enroll(&second, &lab.attach());
    assert_eq!(unreached, []);
    assert_captured(&second, &guest, &lab);
    all.extend(open());
    exchange(&mut all);

    drop(pod);
    // The annotation is taken away, and comes back.
    let pod = second.enroll(&node).unwrap();
    assert_direct(&guest, &lab);
    exchange(&mut all);
    drop(pod);
    let (pod, _) = enroll(&second, &node);
    assert_captured(&second, &guest, &lab);

    pod.stop_new().unwrap();
    assert_direct(&guest, &lab);
    exchange(&mut all);
    second.remove(pod);
    assert_direct(&guest, &lab);
    assert_eq!(links_of(&lab), 0);
}

#[test]
fn a_connection_that_was_forgotten_is_known_by_its_socket() {
    let lab = Lab::new();
    let guest = guest(&lab);
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let (pod, _) = enroll(&proxy, &node);
    let mut all = FAMILIES.map(|f| Conversation::open(&guest.netns, at(lab.server.ip(f))));
    let mut flows = flows(&lab, &pod);
    let known: Vec<FlowKey> = flows.keys().map(Result::unwrap).collect();
    assert_eq!(known.len(), 2);
    for flow in &known {
        flows.remove(flow).unwrap();
    }
    exchange(&mut all);
    assert_eq!(flows.keys().count(), 2, "and is known again");
}

#[test]
fn dns_of_guests_goes_to_the_proxy() {
    let lab = Lab::new();
    let guest = guest(&lab);
    app::serve(&lab.server.netns, 53);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let (pod, _) = enroll(&proxy, &node);
    for family in FAMILIES {
        let server = SocketAddr::new(lab.server.ip(family), 53);
        let any: IpAddr = match family {
            Family::V4 => "0.0.0.0".parse().unwrap(),
            Family::V6 => "::".parse().unwrap(),
        };
        let client = guest.netns.run(|| UdpSocket::bind((any, 0)));
        let client = client.unwrap().unwrap();
        client.send_to(b"question", server).unwrap();
        eventually("the proxy has the datagram", || {
            let seen = proxy.take_seen();
            seen.iter()
                .any(|s| (s.via, s.to) == (Via::DnsUdp, server) && s.from.ip() == guest.ip(family))
        });
        // Over TCP it is a connection like any other; the proxy knows it by its port.
        ask(&guest.netns, server).unwrap();
        let seen = proxy.take_seen();
        assert_eq!((seen[0].via, seen[0].to), (Via::Guests, server));
    }
    assert_eq!(pod.counter(PodCounter::GuestsDns).unwrap(), 2);
}

fn exchange(all: &mut [Conversation]) {
    for conversation in all {
        conversation.exchange().unwrap();
    }
}

fn pod_pins(lab: &Lab) -> std::path::PathBuf {
    let cookie = lab.client.netns.cookie().to_string();
    lab.instance.pins().join("pods").join(cookie)
}

/// Links of `reroute` that are pinned.
fn links_of(lab: &Lab) -> usize {
    let entries = |path: &Path| -> io::Result<usize> {
        let names = path.read_dir()?.map(|entry| entry.unwrap().file_name());
        Ok(names
            .filter(|name| name.to_string_lossy().starts_with("link_reroute_"))
            .count())
    };
    entries(&pod_pins(lab)).unwrap_or_default()
}

fn flows(lab: &Lab, pod: &PodCapture) -> HashMap<MapData, FlowKey, u32> {
    assert_eq!(pod.cookie(), lab.client.netns.cookie());
    let data = MapData::from_pin(pod_pins(lab).join(maps::GUEST_FLOWS)).unwrap();
    aya::maps::Map::LruHashMap(data).try_into().unwrap()
}
