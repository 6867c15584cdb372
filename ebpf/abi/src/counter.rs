//! Counters that the programs keep, by name.

/// Decisions of the node-wide hooks, all about enrolled namespaces.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeCounter {
    /// Connections of the proxy itself, left alone.
    Bypassed,
    /// Connections to loopback, to the namespace's own addresses or to a link, left alone.
    Local,
    /// Connections marked for the proxy.
    Captured,
    /// Connections or datagrams refused because no proxy listens or the family is not routed to it.
    Refused,
    /// Connections refused because the kernel would not set the mark.
    MarkFailed,
    /// DNS datagrams or sockets diverted to the proxy.
    DnsDiverted,
    /// Connections of the node itself that were noted.
    ProbesNoted,
}

impl NodeCounter {
    /// All, in order of their index.
    pub const ALL: [Self; 7] = [
        Self::Bypassed,
        Self::Local,
        Self::Captured,
        Self::Refused,
        Self::MarkFailed,
        Self::DnsDiverted,
        Self::ProbesNoted,
    ];

    /// For a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypassed => "bypassed",
            Self::Local => "local",
            Self::Captured => "captured",
            Self::Refused => "refused",
            Self::MarkFailed => "mark_failed",
            Self::DnsDiverted => "dns_diverted",
            Self::ProbesNoted => "probes_noted",
        }
    }
}

/// Decisions of one pod's socket lookup, and about its guests.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodCounter {
    /// Handed to the outbound listener.
    Outbound,
    /// Handed to the inbound listener.
    Inbound,
    /// Handed to the HBONE listener.
    Hbone,
    /// Handed to the DNS socket.
    DnsUdp,
    /// Handed to the DNS listener.
    DnsTcp,
    /// Left to the kernel: the pod to itself, or the proxy to the application.
    Local,
    /// Left to the kernel: probes of the node.
    Probes,
    /// Dropped, because the socket to hand to is gone, or the family is not routed to it.
    Refused,
    /// Connections of guests that begin, led to the proxy.
    Guests,
    /// DNS datagrams of guests, led to the proxy.
    GuestsDns,
}

impl PodCounter {
    /// All, in order of their index.
    pub const ALL: [Self; 10] = [
        Self::Outbound,
        Self::Inbound,
        Self::Hbone,
        Self::DnsUdp,
        Self::DnsTcp,
        Self::Local,
        Self::Probes,
        Self::Refused,
        Self::Guests,
        Self::GuestsDns,
    ];

    /// For a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Hbone => "hbone",
            Self::DnsUdp => "dns_udp",
            Self::DnsTcp => "dns_tcp",
            Self::Local => "local",
            Self::Probes => "probes",
            Self::Refused => "refused",
            Self::Guests => "guests",
            Self::GuestsDns => "guests_dns",
        }
    }
}
