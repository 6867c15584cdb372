//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): what an application that accepts a connection from a
//! proxy is told first. Written only; nobody sends it to us.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// A type-length-value field. Its type is among those that the standard leaves to applications (0xE0 and up are for
/// experiments, 0xD0 and 0xD1 are what Istio took).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// 0xD0: the SPIFFE ID that the source has proven.
    SourceIdentity(&'a str),
    /// 0xD1: the host name of the service that was asked for.
    Service(&'a str),
}

impl Field<'_> {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::SourceIdentity(text) => (0xD0, text.as_bytes()),
            Self::Service(text) => (0xD1, text.as_bytes()),
        }
    }
}

/// The header of a connection from `source` to `destination`. Fields that are too long for a header are left out; those
/// that we write are names of at most some hundred bytes.
pub fn header(source: SocketAddr, destination: SocketAddr, fields: &[Field<'_>]) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend_from_slice(&from.octets());
            body.extend_from_slice(&to.octets());
            TCP_OVER_IPV4
        }
        // One header has one family; IPv4 has its place in IPv6.
        (from, to) => {
            body.extend_from_slice(&mapped(from).octets());
            body.extend_from_slice(&mapped(to).octets());
            TCP_OVER_IPV6
        }
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    for field in fields {
        let (kind, value) = field.parts();
        let whole = body.len() + 3 + value.len();
        if let (Ok(length), Ok(_)) = (u16::try_from(value.len()), u16::try_from(whole)) {
            body.push(kind);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(value);
        }
    }
    // What does not fit was left out above.
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(16 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[VERSION_AND_COMMAND, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&body);
    header
}

/// The same in version 1, one line of text.
pub fn header_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => ("TCP4", from, to),
        (from, to) => ("TCP6", mapped(from).into(), mapped(to).into()),
    };
    let (from_port, to_port) = (source.port(), destination.port());
    format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn writes_what_the_standard_says() {
        let id = "spiffe://a/ns/b/sa/c";
        let fields = [Field::SourceIdentity(id), Field::Service("s.ns")];
        let mut expected = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x2a".to_vec();
        expected.extend([10, 0, 0, 1, 10, 96, 0, 20, 0x9c, 0x40, 0, 80]);
        expected.extend([0xD0, 0, 20]);
        expected.extend(id.bytes());
        expected.extend([0xD1, 0, 4]);
        expected.extend(b"s.ns");
        let written = header(addr("10.0.0.1:40000"), addr("10.96.0.20:80"), &fields);
        assert_eq!(written, expected);
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        let line = |from, to| String::from_utf8(header_v1(addr(from), addr(to))).unwrap();
        assert_eq!(
            line("10.0.0.1:40000", "10.96.0.20:80"),
            "PROXY TCP4 10.0.0.1 10.96.0.20 40000 80\r\n"
        );
        assert_eq!(
            line("10.0.0.1:1", "[fd00::2]:2"),
            "PROXY TCP6 ::ffff:10.0.0.1 fd00::2 1 2\r\n"
        );
    }

    #[test]
    fn two_families_become_one() {
        let written = header(addr("10.0.0.1:1"), addr("[fd00::2]:2"), &[]);
        assert_eq!(written[13], TCP_OVER_IPV6);
        assert_eq!(written[14..16], [0, 36]);
        assert_eq!(written[26..32], [0xff, 0xff, 10, 0, 0, 1]);
    }

    #[test]
    fn a_field_that_does_not_fit_is_left_out() {
        let long = "x".repeat(70_000);
        let fields = [Field::Service(&long), Field::SourceIdentity("y")];
        let written = header(addr("10.0.0.1:1"), addr("10.0.0.2:2"), &fields);
        assert_eq!(written.len(), 16 + 12 + 4);
    }
}
