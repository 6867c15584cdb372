//! What is captured, what is left alone, and what each side sees.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
};

use leyline_capture::{
    CaptureError, HostProbes, NodeCapture, NodeConfig, NodeCounter, PodCounter, SteerProgram,
};
use socket2::SockRef;

use crate::{
    app::{self, Conversation, PORT, QUICK, ask, at, timed},
    lab::{FAMILIES, Family, Lab, block_on, eventually, sysctl},
    proxy::{Dns, Proxy, Seen, Via},
    wire,
};

const UNUSED_PORT: u16 = 9;

fn variants(lab: &Lab) -> [NodeConfig; 2] {
    [
        lab.config(),
        NodeConfig {
            steer: SteerProgram::Before5_17,
            ..lab.config()
        },
    ]
}

#[test]
fn outbound_goes_to_the_proxy_and_both_sides_see_the_truth() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    for config in variants(&lab) {
        let node = NodeCapture::attach(config).unwrap();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        let pod = proxy.enroll(&node).unwrap();
        for family in FAMILIES {
            let target = at(lab.server.ip(family));
            let answer = ask(&lab.client.netns, target).unwrap();
            assert_eq!(answer.peer, target);
            assert_eq!(answer.local.ip(), lab.client.ip(family));
            assert_eq!(answer.seen.ip(), lab.client.ip(family));
            let expected = Seen {
                via: Via::Outbound,
                from: answer.local,
                to: target,
            };
            assert_eq!(proxy.take_seen(), [expected]);
        }
        assert_eq!(pod.counter(PodCounter::Outbound).unwrap(), 2);
        // The proxy's own connections.
        assert!(node.counter(NodeCounter::Bypassed).unwrap() >= 2);
        proxy.remove(pod);
    }
}

#[test]
fn what_an_application_sends_to_the_proxy_is_not_paced() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let stream = app::connect(&lab.client.netns, at(lab.server.ip(family))).unwrap();
        let algorithm = SockRef::from(&stream).tcp_congestion().unwrap();
        assert!(algorithm.starts_with(b"reno"), "{algorithm:?}");
    }
    proxy.remove(pod);
}

#[test]
fn what_an_application_answers_to_the_proxy_is_not_paced() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let target = at(lab.server.ip(family));
        let listener = lab.server.netns.run(|| TcpListener::bind(target));
        let listener = listener.unwrap().unwrap();
        let mut client = app::connect(&lab.client.netns, target).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let algorithm = SockRef::from(&accepted).tcp_congestion().unwrap();
        assert!(algorithm.starts_with(b"reno"), "{algorithm:?}");
        // Once something has passed, the proxy has done with the pod what it does to connect.
        accepted.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    proxy.remove(pod);
}

#[test]
fn inbound_goes_to_the_proxy_and_the_application_sees_the_client() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    for config in variants(&lab) {
        let node = NodeCapture::attach(config).unwrap();
        let proxy = Proxy::start(&lab.server, Dns::Off);
        let pod = proxy.enroll(&node).unwrap();
        for family in FAMILIES {
            let target = at(lab.server.ip(family));
            let answer = ask(&lab.client.netns, target).unwrap();
            assert_eq!(answer.seen.ip(), lab.client.ip(family));
            assert_ne!(answer.seen.port(), answer.local.port(), "through a proxy");
            let expected = Seen {
                via: Via::Inbound,
                from: answer.local,
                to: target,
            };
            assert_eq!(proxy.take_seen(), [expected]);
        }
        assert_eq!(pod.counter(PodCounter::Inbound).unwrap(), 2);
        proxy.remove(pod);
    }
}

#[test]
fn both_pods_captured() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::Off),
        Proxy::start(&lab.server, Dns::Off),
    );
    let _pods = (near.enroll(&node).unwrap(), far.enroll(&node).unwrap());
    for family in FAMILIES {
        let answer = ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
        assert_eq!(answer.seen.ip(), lab.client.ip(family));
        assert_eq!(near.take_seen()[0].via, Via::Outbound);
        assert_eq!(far.take_seen()[0].via, Via::Inbound);
    }
}

#[test]
fn tunnels_go_to_their_own_listener() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let target = SocketAddr::new(lab.server.ip(family), 15008);
        let stream = app::connect(&lab.client.netns, target).unwrap();
        assert_eq!(io::read_to_string(stream).unwrap(), "tunnel");
        assert_eq!(proxy.take_seen()[0].via, Via::Hbone);
    }
    assert_eq!(pod.counter(PodCounter::Hbone).unwrap(), 2);
}

#[test]
fn loopback_and_own_addresses_are_left_alone() {
    let lab = Lab::new();
    app::serve(&lab.client.netns, PORT);
    for config in variants(&lab) {
        let node = NodeCapture::attach(config).unwrap();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        let pod = proxy.enroll(&node).unwrap();
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "10.1.0.2",
            "fd01::2",
            "::ffff:10.1.0.2",
        ] {
            let target = at(ip.parse().unwrap());
            let answer = ask(&lab.client.netns, target).unwrap();
            assert_eq!(answer.seen, answer.local, "{ip} without a proxy between");
        }
        assert_eq!(proxy.take_seen(), []);
        proxy.remove(pod);
    }
}

#[test]
fn closed_ports_are_reported_quickly() {
    let lab = Lab::new();
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::Off),
        Proxy::start(&lab.server, Dns::Off),
    );
    let near_pod = near.enroll(&node).unwrap();
    for family in FAMILIES {
        let target = SocketAddr::new(lab.server.ip(family), UNUSED_PORT);
        let (result, took) = timed(|| ask(&lab.client.netns, target));
        assert_reset(&result.unwrap_err());
        assert!(took < QUICK, "closed port of a remote server: {took:?}");
    }
    near.remove(near_pod);
    let _far_pod = far.enroll(&node).unwrap();
    for family in FAMILIES {
        let target = SocketAddr::new(lab.server.ip(family), UNUSED_PORT);
        let (result, took) = timed(|| ask(&lab.client.netns, target));
        assert_reset(&result.unwrap_err());
        assert!(
            took < QUICK,
            "closed port of the local application: {took:?}"
        );
    }
}

fn assert_reset(error: &io::Error) {
    let kinds = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::NotConnected,
    ];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

#[test]
fn probes_of_the_node_pass_and_others_do_not() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let target = at(lab.server.ip(family));
        let answer = ask(&lab.node_b, target).unwrap();
        assert_eq!(answer.seen, answer.local, "the probe itself");
        assert_eq!(proxy.take_seen(), []);
        // Another node is not the pod's own.
        ask(&lab.node_a, target).unwrap();
        assert_eq!(proxy.take_seen()[0].via, Via::Inbound);
    }
    assert_eq!(pod.counter(PodCounter::Probes).unwrap(), 2);
    assert_eq!(node.counter(NodeCounter::ProbesNoted).unwrap(), 2);
}

#[test]
fn a_closed_probe_is_forgotten() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    let target = at(lab.server.v4);
    let probe = ask(&lab.node_b, target).unwrap();
    // What has the probe's address and port later, but is not a socket of the node (it may be translated), is captured.
    wire::send_syn(&lab.node_b, probe.local, target);
    eventually("the SYN is captured", || {
        pod.counter(PodCounter::Inbound).unwrap() == 1
    });
    assert_eq!(pod.counter(PodCounter::Probes).unwrap(), 1);
}

#[test]
fn probes_go_through_the_proxy_when_not_recognised() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = NodeCapture::attach(NodeConfig {
        host_probes: HostProbes::Off,
        ..lab.config()
    })
    .unwrap();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let answer = ask(&lab.node_b, at(lab.server.ip(family))).unwrap();
        assert_eq!(answer.seen.ip(), answer.local.ip());
        assert_eq!(proxy.take_seen()[0].via, Via::Inbound);
    }
}

#[test]
fn connections_survive_enrolment_and_removal() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    app::serve(&lab.client.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let mut open: Vec<Conversation> = FAMILIES
        .iter()
        .flat_map(|&family| {
            [
                Conversation::open(&lab.client.netns, at(lab.server.ip(family))),
                Conversation::open(&lab.server.netns, at(lab.client.ip(family))),
                Conversation::open(&lab.client.netns, at(lab.client.ip(family))),
            ]
        })
        .collect();
    for _cycle in 0..3 {
        let pod = proxy.enroll(&node).unwrap();
        let mut captured: Vec<Conversation> = FAMILIES
            .iter()
            .map(|&f| Conversation::open(&lab.client.netns, at(lab.server.ip(f))))
            .collect();
        assert_eq!(proxy.take_seen().len(), FAMILIES.len());
        for conversation in open.iter_mut().chain(&mut captured) {
            conversation.exchange().unwrap();
        }
        pod.stop_new().unwrap();
        for conversation in open.iter_mut().chain(&mut captured) {
            conversation.exchange().unwrap();
        }
        for family in FAMILIES {
            ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
            ask(&lab.server.netns, at(lab.client.ip(family))).unwrap();
        }
        assert_eq!(proxy.take_seen(), [], "new connections go direct at once");
        drop(captured);
        proxy.remove(pod);
        for conversation in &mut open {
            conversation.exchange().unwrap();
        }
    }
}

#[test]
fn strict_reverse_path_filters_do_not_matter() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    for netns in [&lab.client.netns, &lab.server.netns] {
        for interface in ["all", "default", "eth0", "lo"] {
            sysctl(netns, &format!("ipv4/conf/{interface}/rp_filter"), "1");
            sysctl(netns, &format!("ipv4/conf/{interface}/accept_local"), "0");
        }
    }
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::On),
        Proxy::start(&lab.server, Dns::On),
    );
    let _pods = (near.enroll(&node).unwrap(), far.enroll(&node).unwrap());
    for family in FAMILIES {
        ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
        assert_eq!(near.take_seen()[0].via, Via::Outbound);
        assert_eq!(far.take_seen()[0].via, Via::Inbound);
        ask(&lab.node_b, at(lab.server.ip(family))).unwrap();
        assert_eq!(far.take_seen(), []);
    }
}

#[test]
fn several_addresses_of_a_pod_are_all_its_own() {
    let lab = Lab::new();
    crate::lab::address(&lab.server.netns, "eth0", "10.2.0.77", 24, "fd02::77");
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    // The control plane names one; the others are found.
    let proxy = Proxy::start_in(&lab.server.netns, &[lab.server.v4], Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    for ip in ["10.2.0.2", "10.2.0.77", "fd02::2", "fd02::77"] {
        let ip: IpAddr = ip.parse().unwrap();
        let answer = ask(&lab.client.netns, at(ip)).unwrap();
        assert_eq!(answer.peer.ip(), ip);
        assert_eq!(proxy.take_seen()[0].to, at(ip));
        let answer = ask(&lab.server.netns, at(ip)).unwrap();
        assert_eq!(answer.seen, answer.local);
        assert_eq!(proxy.take_seen(), [], "to itself");
    }
}

#[test]
fn a_pod_without_ipv6_is_captured_and_its_ipv6_is_refused() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    for interface in ["all", "default", "lo", "eth0"] {
        sysctl(
            &lab.client.netns,
            &format!("ipv6/conf/{interface}/disable_ipv6"),
            "1",
        );
    }
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    ask(&lab.client.netns, at(lab.server.v4)).unwrap();
    assert_eq!(proxy.take_seen()[0].via, Via::Outbound);
    let refused = ask(&lab.client.netns, at(lab.server.v6)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    proxy.remove(pod);
}

#[test]
fn a_pod_that_gets_ipv6_after_enrolment_does_not_leak() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    sysctl(&lab.client.netns, "ipv6/conf/lo/disable_ipv6", "1");
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    // eth0 has IPv6, but nothing could bring it to the proxy.
    let refused = ask(&lab.client.netns, at(lab.server.v6)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn connections_to_our_own_listeners_can_be_told_and_never_loop() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        for port in [proxy.outbound_port(), proxy.inbound_port()] {
            let target = SocketAddr::new(lab.server.ip(family), port);
            for from in [&lab.server.netns, &lab.client.netns] {
                let stream = app::connect(from, target).unwrap();
                assert_eq!(io::read_to_string(stream).unwrap(), "");
                let seen = proxy.take_seen();
                assert_eq!(seen.len(), 1, "{seen:?}");
                assert_eq!(seen[0].via, Via::Loop);
                assert_eq!(seen[0].to, target);
            }
        }
    }
}

#[test]
fn a_pod_that_is_not_enrolled_is_not_touched() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let _node = lab.attach();
    for family in FAMILIES {
        let answer = ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
        assert_eq!(answer.seen, answer.local);
    }
}

#[test]
fn enrolment_that_fails_leaves_nothing() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut sockets = proxy.sockets();
    sockets.hbone = std::os::fd::AsFd::as_fd(&file);
    let failed = block_on(node.enroll(
        &lab.client.netns,
        lab.client.ips(),
        sockets,
        leyline_capture::PodOptions::default(),
    ));
    let Err(CaptureError::Pod { cookie, step, .. }) = failed else {
        panic!("a file is not a listener");
    };
    assert_eq!(cookie, lab.client.netns.cookie());
    assert_eq!(step, leyline_capture::PodStep::WriteSockets);
    assert_eq!(node.pinned_pods().unwrap(), [0_u64; 0]);
    app::serve(&lab.server.netns, PORT);
    ask(&lab.client.netns, at(lab.server.ip(Family::V4))).unwrap();
}
