//! IP addresses as map keys.

/// An IPv4 or IPv6 address in network byte order, IPv4 in its mapped form (`::ffff:a.b.c.d`), so that a connection has
/// the same key through either family of socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    words: [u32; 4],
}

/// The third word of a mapped IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// From a word in network byte order, as contexts of IPv4 programs hold it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From words in network byte order, as contexts of IPv6 programs hold them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// From the sixteen bytes of an IPv6 address or a mapped IPv4 address.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// Words in network byte order; that of an IPv4 address is the last.
    #[inline(always)]
    pub const fn to_words(&self) -> [u32; 4] {
        self.words
    }

    /// Whether this is a (mapped) IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// 127.0.0.0/8, `::1`, and the unspecified addresses, to which a connect goes to loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let last = u32::from_be(self.words[3]);
        if self.is_v4() {
            last >> 24 == 127 || last == 0
        } else {
            self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && last <= 1
        }
    }

    /// fe80::/10. Such traffic belongs to one link and is not of the mesh.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)` over integers without padding; every bit pattern is a value.
unsafe impl aya::Pod for Address {}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> Address {
        let ip: core::net::Ipv6Addr = text.parse().unwrap();
        Address::from_octets(ip.octets())
    }

    #[test]
    fn tells_loopback_and_link_local() {
        for loopback in [
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:127.9.9.9",
            "::ffff:0.0.0.0",
        ] {
            assert!(v6(loopback).is_loopback(), "{loopback}");
        }
        for other in [
            "::2",
            "2001:db8::1",
            "::ffff:128.0.0.1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!v6(other).is_loopback(), "{other}");
        }
        for link_local in ["fe80::1", "febf:ffff::1"] {
            assert!(v6(link_local).is_link_local_v6(), "{link_local}");
        }
        for other in ["fec0::1", "fd00::1", "::ffff:169.254.1.1"] {
            assert!(!v6(other).is_link_local_v6(), "{other}");
        }
    }

    #[test]
    fn a_v4_word_is_its_mapped_address() {
        let word = u32::from_ne_bytes([10, 1, 2, 3]);
        assert_eq!(Address::from_v4_word(word), v6("::ffff:10.1.2.3"));
        assert!(Address::from_v4_word(word).is_v4());
        assert!(!v6("::1").is_v4());
    }
}
