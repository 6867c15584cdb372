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
