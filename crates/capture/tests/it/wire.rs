//! What only packets made by hand can show.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures::TryStreamExt;
use leyline_capture::PodCounter;
use leyline_net::NetNs;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::RouteMessageBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    app::{self, PORT, ask, at},
    lab::{FAMILIES, Lab, index, netlink, route, sysctl},
    proxy::{Dns, Proxy, Via},
};

/// Sends an IPv4 SYN that belongs to no socket.
pub(crate) fn send_syn(from: &NetNs, source: SocketAddr, target: SocketAddr) {
    let (IpAddr::V4(source_ip), IpAddr::V4(target_ip)) = (source.ip(), target.ip()) else {
        panic!("IPv4 only");
    };
    let mut tcp = Vec::new();
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(target.port().to_be_bytes());
    tcp.extend(1u32.to_be_bytes()); // sequence number
    tcp.extend(0u32.to_be_bytes()); // acknowledged
    tcp.extend([5 << 4, 0x02]); // five words, SYN
    tcp.extend(64240u16.to_be_bytes()); // window
    tcp.extend([0; 4]); // checksum, urgent pointer
    let mut summed = [source_ip.octets(), target_ip.octets()].concat();
    summed.extend([0, 6]);
    summed.extend((tcp.len() as u16).to_be_bytes());
    summed.extend(&tcp);
    tcp[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());

    let mut packet = vec![0x45, 0];
    packet.extend((20 + tcp.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 6, 0, 0]); // the kernel fills in id and checksum
    packet.extend(source_ip.octets());
    packet.extend(target_ip.octets());
    packet.extend(tcp);
    // IPPROTO_RAW: the packet brings its header.
    let socket = from
        .run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))))
        .unwrap()
        .unwrap();
    socket.send_to(&packet, &target.into()).unwrap();
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn nothing_forged_on_the_wire_reaches_the_proxy() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let pod = proxy.enroll(&node).unwrap();
    // Node b sends everything to the pod, also what is for others and for loopback.
    let foreign: Ipv4Addr = "203.0.113.9".parse().unwrap();
    route(&lab.node_b, "203.0.113.0", 24, "10.2.0.2");
    route_loopback_to_pod(&lab.node_b);
    for link in ["all", "pod"] {
        sysctl(
            &lab.node_b,
            &format!("ipv4/conf/{link}/route_localnet"),
            "1",
        );
    }
    let client = SocketAddr::from(([10, 1, 0, 9], 40000));
    let all = || PodCounter::ALL.map(|c| pod.counter(c).unwrap());
    let before = all();
    send_syn(
        &lab.node_b,
        SocketAddr::new(lab.server.v4, 40000),
        at(lab.server.v4),
    );
    send_syn(
        &lab.node_b,
        SocketAddr::new(lab.server.v4, 40001),
        at(foreign.into()),
    );
    send_syn(&lab.node_b, client, at(foreign.into()));
    send_syn(&lab.node_b, client, at([127, 0, 0, 1].into()));
    // Packets of one CPU are handled in order; the last one is honest and shows that the others have arrived.
    send_syn(&lab.node_b, client, at(lab.server.v4));
    crate::lab::eventually("the honest SYN", || {
        pod.counter(PodCounter::Inbound).unwrap() > 0
    });
    let mut expected = before;
    expected[PodCounter::Inbound as usize] += 1;
    assert_eq!(
        all(),
        expected,
        "the forged ones never came to a socket lookup"
    );
    assert_eq!(proxy.take_seen(), []);
}

/// Makes 127.0.0.1 a destination like any other in a namespace.
fn route_loopback_to_pod(netns: &NetNs) {
    const LOCAL_TABLE: u8 = 255;
    netlink(netns, async |handle| {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> = handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .unwrap();
        let local = routes.into_iter().filter(|r| {
            r.header.table == LOCAL_TABLE
                && r.header.kind == RouteType::Local
                && r.header.address_family == AddressFamily::Inet
                && r.attributes.contains(&RouteAttribute::Oif(1))
        });
        for route in local {
            handle.route().del(route).execute().await.unwrap();
        }
        let pod = index(&handle, "pod").await;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix([127, 0, 0, 1].into(), 32)
            .gateway([10, 2, 0, 2].into())
            .output_interface(pod)
            .build();
        handle.route().add(route).execute().await.unwrap();
    });
}

#[test]
fn path_mtu_is_found_in_both_directions() {
    use std::io::{Read, Write};
    const NARROW_MTU: u32 = 1300;
    const SIZE: usize = 5_000_000;
    let lab = Lab::with_mtu_between_nodes(NARROW_MTU);
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::Off),
        Proxy::start(&lab.server, Dns::Off),
    );
    let _pods = (near.enroll(&node).unwrap(), far.enroll(&node).unwrap());
    for family in FAMILIES {
        let target = at(lab.server.ip(family));
        ask(&lab.client.netns, target).unwrap();
        let mut stream = app::connect(&lab.client.netns, target).unwrap();
        stream.set_read_timeout(Some(app::PATIENCE)).unwrap();
        let mut sender = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            sender.write_all(&vec![7; SIZE]).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        let line = received.iter().position(|&b| b == b'\n').unwrap();
        assert_eq!(received.len() - line - 1, SIZE);
        assert_eq!(near.take_seen()[0].via, Via::Outbound);
        assert_eq!(far.take_seen()[0].via, Via::Inbound);
    }
}
