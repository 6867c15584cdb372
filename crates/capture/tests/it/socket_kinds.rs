//! Every way of making a connection that an application may choose.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
};

use leyline_net::NetNs;
use nix::sys::socket::{
    setsockopt,
    sockopt::{DontRoute, TcpFastOpenConnect},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    app::{self, Answer, PATIENCE, PORT, at, converse},
    lab::{Family, Lab, eventually, index, netlink},
    proxy::{Dns, Proxy, Via},
};

/// Connects a prepared socket, and checks that the proxy was between and both sides saw the truth.
fn check(
    family: Family,
    protocol: Protocol,
    target: impl Fn(SocketAddr) -> SocketAddr,
    prepare: impl FnOnce(&Socket, &NetNs),
) -> Answer {
    let lab = Lab::new();
    app::serve_with(&lab.server.netns, PORT, protocol);
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::Off),
        Proxy::start(&lab.server, Dns::Off),
    );
    let _pods = (near.enroll(&node).unwrap(), far.enroll(&node).unwrap());
    let server = at(lab.server.ip(family));
    let target = target(server);
    let socket = lab
        .client
        .netns
        .run(|| Socket::new(Domain::for_address(target), Type::STREAM, Some(protocol)))
        .unwrap()
        .unwrap();
    prepare(&socket, &lab.client.netns);
    socket.connect_timeout(&target.into(), PATIENCE).unwrap();
    let answer = converse(socket.into()).unwrap();
    assert_eq!(answer.peer, server);
    assert_eq!(answer.local.ip(), lab.client.ip(family));
    assert_eq!(answer.seen.ip(), lab.client.ip(family));
    let outbound = near.take_seen();
    assert_eq!(
        (outbound[0].via, outbound[0].to),
        (Via::Outbound, server),
        "not captured"
    );
    let inbound = far.take_seen();
    assert_eq!((inbound[0].via, inbound[0].to), (Via::Inbound, server));
    answer
}

fn same(target: SocketAddr) -> SocketAddr {
    target
}

#[test]
fn v4_mapped() {
    let mapped = |target: SocketAddr| match target.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), target.port()),
        IpAddr::V6(_) => target,
    };
    check(Family::V4, Protocol::TCP, mapped, |_, _| {});
}

#[test]
fn mptcp_client_and_listener() {
    for family in crate::lab::FAMILIES {
        check(family, Protocol::MPTCP, same, |_, _| {});
    }
}

#[test]
fn tcp_fast_open() {
    for family in crate::lab::FAMILIES {
        check(family, Protocol::TCP, same, |socket, _| {
            setsockopt(socket, TcpFastOpenConnect, &true).unwrap();
        });
    }
}

#[test]
fn bound_port() {
    let v4 = check(Family::V4, Protocol::TCP, same, |socket, _| {
        let bound = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 45678));
        socket.bind(&bound.into()).unwrap();
    });
    assert_eq!(v4.local.port(), 45678);
    let v6 = check(Family::V6, Protocol::TCP, same, |socket, _| {
        let bound = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 45679));
        socket.bind(&bound.into()).unwrap();
    });
    assert_eq!(v6.local.port(), 45679);
}

#[test]
fn bound_address() {
    for (family, ip) in [(Family::V4, "10.1.0.2"), (Family::V6, "fd01::2")] {
        check(family, Protocol::TCP, same, |socket, _| {
            let bound = SocketAddr::new(ip.parse().unwrap(), 0);
            socket.bind(&bound.into()).unwrap();
        });
    }
}

#[test]
fn non_blocking() {
    for family in crate::lab::FAMILIES {
        let lab = Lab::new();
        app::serve(&lab.server.netns, PORT);
        let node = lab.attach();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        let _pod = proxy.enroll(&node).unwrap();
        let target = at(lab.server.ip(family));
        let socket = lab
            .client
            .netns
            .run(|| {
                Socket::new(
                    Domain::for_address(target),
                    Type::STREAM.nonblocking(),
                    None,
                )
            })
            .unwrap()
            .unwrap();
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINPROGRESS)),
        }
        eventually("the connection is made", || socket.peer_addr().is_ok());
        assert!(socket.take_error().unwrap().is_none());
        socket.set_nonblocking(false).unwrap();
        converse(socket.into()).unwrap();
        assert_eq!(proxy.take_seen()[0].to, target);
    }
}

#[test]
fn bound_to_a_device() {
    for family in crate::lab::FAMILIES {
        check(family, Protocol::TCP, same, |socket, _| {
            socket.bind_device(Some(b"eth0")).unwrap();
        });
    }
}

/// Nobody wraps these options for Rust; perl is part of every Debian, and an application like any other.
const UNICAST_IF_CLIENT: &str = r#"
    use Socket qw(:all);
    my ($family, $ip, $port, $level, $option, $index) = @ARGV;
    my $address = inet_pton($family, $ip);
    socket(my $s, $family, SOCK_STREAM, 0) or die "socket: $!";
    setsockopt($s, $level, $option, pack("N", $index)) or die "setsockopt: $!";
    connect($s, $family == AF_INET ? pack_sockaddr_in($port, $address) : pack_sockaddr_in6($port, $address))
        or die "connect: $!";
    syswrite($s, "hello") or die "write: $!";
    shutdown($s, 1);
    print while <$s>;
"#;
/// `IP_UNICAST_IF` and `IPV6_UNICAST_IF` (include/uapi/linux/in.h, in6.h).
const IP_UNICAST_IF: i32 = 50;
const IPV6_UNICAST_IF: i32 = 76;

#[test]
fn unicast_interface() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    let eth0 = netlink(&lab.client.netns, async |h| index(&h, "eth0").await);
    for (family, number, level, option) in [
        (Family::V4, libc::AF_INET, libc::IPPROTO_IP, IP_UNICAST_IF),
        (
            Family::V6,
            libc::AF_INET6,
            libc::IPPROTO_IPV6,
            IPV6_UNICAST_IF,
        ),
    ] {
        let target = at(lab.server.ip(family));
        let mut client = Command::new("perl");
        client.args(["-e", UNICAST_IF_CLIENT, &number.to_string()]);
        client.args([target.ip().to_string(), PORT.to_string()]);
        client.args([level.to_string(), option.to_string(), eth0.to_string()]);
        // A child begins in the namespace of the thread that starts it.
        let output = lab.client.netns.run(|| client.output()).unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (seen, echoed) = text.split_once('\n').unwrap();
        let seen: SocketAddr = seen.parse().unwrap();
        assert_eq!((seen.ip(), echoed), (lab.client.ip(family), "hello"));
        let captured = proxy.take_seen();
        assert_eq!((captured[0].via, captured[0].to), (Via::Outbound, target));
    }
}

#[test]
fn dont_route() {
    for family in crate::lab::FAMILIES {
        check(family, Protocol::TCP, same, |socket, _| {
            setsockopt(socket, DontRoute, &true).unwrap();
        });
    }
}
