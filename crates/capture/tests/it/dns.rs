//! DNS over UDP and TCP, with DNS sockets given.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use leyline_capture::{NodeCounter, PodCounter};
use leyline_net::NetNs;

use crate::{
    app::{self, PATIENCE, canonical},
    lab::{FAMILIES, Lab, PodNs},
    proxy::{Dns, Proxy, Seen, Via},
};

const DNS: u16 = 53;

fn socket(pod: &PodNs, bound: &str) -> UdpSocket {
    let socket = pod.netns.run(|| UdpSocket::bind(bound)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A name server of the test, which the proxy must not reach.
fn name_server(netns: &NetNs, bound: &str, answer: &'static [u8]) {
    let server = netns.run(|| UdpSocket::bind(bound)).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = server.recv_from(&mut buffer) {
            server.send_to(answer, from).ok();
        }
    });
}

fn ask_unconnected(socket: &UdpSocket, server: SocketAddr) -> (String, SocketAddr) {
    let mut buffer = [0; 512];
    socket.send_to(b"question", server).unwrap();
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into(), from)
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        std::net::IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), addr.port()),
        std::net::IpAddr::V6(_) => addr,
    }
}

#[test]
fn datagrams_go_to_the_proxy_and_answers_come_from_the_server() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let server = SocketAddr::new(lab.server.ip(family), DNS);
        let bound = if server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let unconnected = socket(&lab.client, bound);
        assert_eq!(
            ask_unconnected(&unconnected, server),
            ("answer".to_owned(), server)
        );
        let seen = proxy.take_seen();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].via, seen[0].to), (Via::DnsUdp, server));
        assert_eq!(seen[0].from.ip(), lab.client.ip(family));

        let connected = socket(&lab.client, bound);
        connected.connect(server).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), server);
        connected.send(b"question").unwrap();
        let mut buffer = [0; 512];
        let (length, from) = connected.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], server));
        assert_eq!(proxy.take_seen()[0].to, server);

        let of_both_families = socket(&lab.client, "[::]:0");
        let (answer, from) = ask_unconnected(&of_both_families, mapped(server));
        assert_eq!((answer.as_str(), canonical(from)), ("answer", server));
        of_both_families.connect(mapped(server)).unwrap();
        assert_eq!(canonical(of_both_families.peer_addr().unwrap()), server);
        proxy.take_seen();
    }
    assert!(pod.counter(PodCounter::DnsUdp).unwrap() >= 6);
    assert!(node.counter(NodeCounter::DnsDiverted).unwrap() >= 6);
}

#[test]
fn dns_over_tcp_goes_to_its_own_listener() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let _pod = proxy.enroll(&node).unwrap();
    for family in FAMILIES {
        let server = SocketAddr::new(lab.server.ip(family), DNS);
        let stream = app::connect(&lab.client.netns, server).unwrap();
        let from = stream.local_addr().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), server);
        assert_eq!(io::read_to_string(stream).unwrap(), "answer");
        let expected = Seen {
            via: Via::DnsTcp,
            from,
            to: server,
        };
        assert_eq!(proxy.take_seen(), [expected]);
    }
}

#[test]
fn name_servers_inside_the_pod_are_left_alone() {
    let lab = Lab::new();
    name_server(&lab.client.netns, "127.0.0.53:53", b"loopback");
    name_server(&lab.client.netns, "10.1.0.2:53", b"own");
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let _pod = proxy.enroll(&node).unwrap();
    for (server, answer) in [("127.0.0.53:53", "loopback"), ("10.1.0.2:53", "own")] {
        let server: SocketAddr = server.parse().unwrap();
        let socket = socket(&lab.client, "0.0.0.0:0");
        assert_eq!(
            ask_unconnected(&socket, server),
            (answer.to_owned(), server)
        );
    }
    assert_eq!(proxy.take_seen(), []);
}

#[test]
fn without_dns_sockets_dns_goes_direct() {
    let lab = Lab::new();
    name_server(&lab.server.netns, "10.2.0.2:53", b"direct");
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    let server = SocketAddr::new(lab.server.v4, DNS);
    let socket = socket(&lab.client, "0.0.0.0:0");
    assert_eq!(
        ask_unconnected(&socket, server),
        ("direct".to_owned(), server)
    );
}

#[test]
fn an_open_resolver_socket_works_until_removal() {
    let lab = Lab::new();
    name_server(&lab.server.netns, "10.2.0.2:53", b"direct");
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let pod = proxy.enroll(&node).unwrap();
    let server = SocketAddr::new(lab.server.v4, DNS);
    let connected = socket(&lab.client, "0.0.0.0:0");
    connected.connect(server).unwrap();
    pod.stop_new().unwrap();
    connected.send(b"question").unwrap();
    let mut buffer = [0; 512];
    let (length, from) = connected.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"answer"[..], server));
    let fresh = socket(&lab.client, "0.0.0.0:0");
    assert_eq!(
        ask_unconnected(&fresh, server),
        ("direct".to_owned(), server)
    );
    proxy.remove(pod);
}
