//! Every way of making a connection that an application may choose.
#![expect(
    unsafe_code,
    reason = "IP_UNICAST_IF and TCP_FASTOPEN_CONNECT have no safe wrapper"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use leyline_net::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    app::{self, Answer, PATIENCE, PORT, at, converse},
    lab::{Family, Lab, eventually, index, netlink},
    proxy::{Dns, Proxy, Via},
};

/// `IP_UNICAST_IF` (include/uapi/linux/in.h).
const IP_UNICAST_IF: libc::c_int = 50;

fn set(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the descriptor is open, and pointer and length describe `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

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

fn eth0(netns: &NetNs) -> u32 {
    netlink(netns, async |handle| index(&handle, "eth0").await)
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
            set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
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

#[test]
fn unicast_interface() {
    check(Family::V4, Protocol::TCP, same, |socket, netns| {
        let index = eth0(netns).cast_signed().to_be();
        set(socket, libc::IPPROTO_IP, IP_UNICAST_IF, index);
    });
    check(Family::V6, Protocol::TCP, same, |socket, netns| {
        let index = eth0(netns).cast_signed().to_be();
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF, index);
    });
}

#[test]
fn dont_route() {
    for family in crate::lab::FAMILIES {
        check(family, Protocol::TCP, same, |socket, _| {
            set(socket, libc::SOL_SOCKET, libc::SO_DONTROUTE, 1);
        });
    }
}
