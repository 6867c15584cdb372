//! Socket addresses by role, and addresses within a network.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use crate::names::Network;

/// Where the application wanted to connect, before capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(SocketAddr);

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(SocketAddr);

macro_rules! socket_addr_role {
    ($name:ident) => {
        impl $name {
            /// Keeps the address with a mapped IPv4 address turned into plain IPv4.
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address.
            pub fn addr(self) -> SocketAddr {
                self.0
            }

            /// The address without its port.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

socket_addr_role!(OrigDst);
socket_addr_role!(PeerAddr);

/// Turns an IPv4-mapped IPv6 address, as a dual-stack socket reports it, into IPv4.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// An address in one network; equal addresses of different networks are different.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network; empty in a mesh with a single one.
    pub network: Network,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    /// `network/address`, the form of xDS and of `/config_dump`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl Serialize for NetworkAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_ipv4_becomes_ipv4() {
        let mapped = OrigDst::new("[::ffff:10.0.0.1]:80".parse().unwrap());
        assert_eq!(mapped.to_string(), "10.0.0.1:80");
    }
}
