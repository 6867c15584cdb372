//! Socket options that socket2 does not offer, and the groups of options that our sockets share.
#![expect(unsafe_code, reason = "IPV6_TRANSPARENT has no safe wrapper")]

use std::{io, os::fd::AsRawFd, time::Duration};

use socket2::{SockRef, Socket, TcpKeepalive};

/// `IPV6_TRANSPARENT` (include/uapi/linux/in6.h).
const IPV6_TRANSPARENT: libc::c_int = 75;

/// When the kernel probes a silent TCP peer (facts A2: `KEEPALIVE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes before the connection is given up.
    pub retries: u32,
    /// Whether data that the peer does not acknowledge ends the connection as soon as a silent peer would
    /// (`TCP_USER_TIMEOUT`); otherwise the kernel's retransmissions decide.
    pub user_timeout: bool,
}

impl Keepalive {
    /// How long a peer may be silent: `time` and then `retries` probes.
    pub fn patience(&self) -> Duration {
        self.time
            .saturating_add(self.interval.saturating_mul(self.retries))
    }
}

impl Default for Keepalive {
    /// 180 s, 180 s, 9, kernel's: Istio's.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(180),
            interval: Duration::from_secs(180),
            retries: 9,
            user_timeout: false,
        }
    }
}

/// Lets a socket use addresses that are not its namespace's own. Needs CAP_NET_ADMIN there.
///
/// # Errors
/// As the kernel says.
pub fn set_transparent(socket: &Socket, domain: socket2::Domain) -> io::Result<()> {
    if domain == socket2::Domain::IPV6 {
        set_int(socket, libc::IPPROTO_IPV6, IPV6_TRANSPARENT, 1)?;
    }
    // Dual-stack sockets carry IPv4 too and need both.
    socket.set_ip_transparent_v4(true)
}

/// Turns on TCP keepalive; children of a listener inherit it.
///
/// # Errors
/// As the kernel says.
pub fn set_keepalive<'s>(socket: impl Into<SockRef<'s>>, keepalive: &Keepalive) -> io::Result<()> {
    let socket = socket.into();
    if keepalive.user_timeout {
        socket.set_tcp_user_timeout(Some(keepalive.patience()))?;
    }
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries),
    )
}

/// Has all new connections of a port that several listeners share (`SO_REUSEPORT`) go to the second of them, which is the
/// newest when a process takes over from another, and to the first when it is alone. Without it the kernel would spread
/// them over both, and those that wait for the older one would be reset when it closes.
///
/// # Errors
/// As the kernel says.
pub fn prefer_newest_listener(listener: &impl AsRawFd) -> io::Result<()> {
    // A number that no listener has makes the kernel choose by itself.
    const SECOND: u32 = 1;
    let mut choose = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: SECOND,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut choose,
    };
    // SAFETY: the descriptor is open; pointer and length describe `program`, which with its one instruction outlives the
    // call, in which the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The least round trip of a connected TCP socket so far; `None` where the kernel has measured none.
///
/// # Errors
/// As the kernel says.
pub fn least_round_trip(socket: &impl AsRawFd) -> io::Result<Option<Duration>> {
    /// Of `tcpi_min_rtt` in `struct tcp_info` (include/uapi/linux/tcp.h), of which the C library knows the beginning
    /// alone.
    const OFFSET: usize = 148;
    /// What the kernel gives where it has measured nothing, beside 0.
    const NONE: u32 = u32::MAX;

    let mut info = [0_u8; OFFSET + size_of::<u32>()];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the descriptor is open; pointer and length describe `info`, which outlives the call, and the kernel writes
    // at most that many bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [.., a, b, c, d] = info;
    let micros = u32::from_ne_bytes([a, b, c, d]);
    Ok((micros != 0 && micros != NONE).then(|| Duration::from_micros(micros.into())))
}

/// Makes closing the socket send RST and discard what is unsent.
///
/// # Errors
/// As the kernel says.
pub fn reset_on_close<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    socket.into().set_linger(Some(Duration::ZERO))
}

fn set_int(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, and pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{ConnectOptions, ListenOptions, NetNs, Source, accept, connect, listen::listen_on};

    async fn listener(addr: SocketAddr) -> TcpListener {
        let options = ListenOptions {
            reuse_port: true,
            ..ListenOptions::default()
        };
        let listener = listen_on(&NetNs::current().unwrap(), addr, &options).unwrap();
        prefer_newest_listener(&listener).unwrap();
        listener
    }

    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    async fn arrives_at(listener: &TcpListener, addr: SocketAddr) {
        for _ in 0..20 {
            let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
            client.unwrap();
            accepted.unwrap();
        }
    }

    /// What `KEEPALIVE_*` and `USER_TIMEOUT_ENABLED` say is what the kernel does, for connections made and accepted.
    #[tokio::test]
    async fn keepalive_and_nodelay_reach_the_kernel_on_both_ends() {
        for user_timeout in [false, true] {
            let keepalive = Keepalive {
                time: Duration::from_secs(77),
                interval: Duration::from_secs(11),
                retries: 3,
                user_timeout,
            };
            let netns = NetNs::current().unwrap();
            let options = ListenOptions {
                keepalive: Some(keepalive),
                ..ListenOptions::default()
            };
            let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
            let listener = listen_on(&netns, any, &options).unwrap();
            let options = ConnectOptions {
                mark: None,
                source: Source::Routed,
                deadline: Duration::from_secs(5),
                keepalive: Some(keepalive),
                announce: None,
            };
            let target = listener.local_addr().unwrap();
            let (made, accepted) =
                tokio::join!(connect(&netns, target, &options), accept(&listener));
            for stream in [made.unwrap(), accepted.unwrap().stream] {
                let socket = SockRef::from(&stream);
                assert!(stream.nodelay().unwrap());
                assert!(socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive.time);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), keepalive.interval);
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
                let patience = user_timeout.then(|| Duration::from_secs(77 + 3 * 11));
                assert_eq!(socket.tcp_user_timeout().unwrap(), patience);
            }
        }
    }

    #[tokio::test]
    async fn the_newest_listener_gets_all_and_the_last_one_too() {
        let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let mut current = listener(any).await;
        let addr = current.local_addr().unwrap();
        for _ in 0..3 {
            arrives_at(&current, addr).await;
            let next = listener(addr).await;
            arrives_at(&next, addr).await;
            drop(current);
            current = next;
        }
        arrives_at(&current, addr).await;
    }
}
