//! The `:authority` of an HBONE CONNECT request: `ip:port`, `[v6]:port` or `host:port` (RFC 9110, section 7.2).

use std::{fmt, net::SocketAddr, str::FromStr};

use crate::names::Str;

/// Where an HBONE request asks to be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HboneAuthority {
    /// An address.
    Address(SocketAddr),
    /// A service's host name and service port.
    Host {
        /// Lower case.
        host: Str,
        /// Service port.
        port: u16,
    },
}

/// Why a text is not an authority.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// No `:port` at the end, or port 0.
    #[error("authority has no valid port")]
    Port,
    /// The part before the port is neither an address nor a host name.
    #[error("authority has no valid host")]
    Host,
}

impl HboneAuthority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl FromStr for HboneAuthority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 {
                Err(AuthorityError::Port)
            } else {
                Ok(Self::Address(addr))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        let port = match port.parse::<u16>() {
            Ok(port) if port != 0 => port,
            Ok(_) | Err(_) => return Err(AuthorityError::Port),
        };
        if !is_host_name(host) {
            return Err(AuthorityError::Host);
        }
        Ok(Self::Host {
            host: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

/// Letters, digits, hyphens, underscores and inner dots; at most 253 characters (RFC 1123), and not an address.
fn is_host_name(host: &str) -> bool {
    host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
        && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

impl fmt::Display for HboneAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert_eq, proptest, sample::select};

    use super::*;

    /// What authorities are made of, and what does not belong in them.
    const PIECES: [&str; 18] = [
        "10.0.0.1", "[::1]", "[", "]", ":", "80", "0", "99999", ".", "web", "A", "-", "_", "%",
        "@", "/", " ", "é",
    ];

    proptest! {
        #[test]
        fn what_parses_is_written_and_read_back(pieces in vec(select(&PIECES[..]), 0..8)) {
            if let Ok(parsed) = pieces.concat().parse::<HboneAuthority>() {
                prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
            }
        }
    }

    #[test]
    fn accepts_addresses_and_hosts() {
        for good in [
            "10.0.0.1:80",
            "[2001:db8::1]:443",
            "web.shop.svc.cluster.local:80",
        ] {
            assert_eq!(good.parse::<HboneAuthority>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn rejects_what_is_neither() {
        for bad in [
            "",
            ":",
            ":80",
            "web",
            "web:",
            "web:0",
            "web:99999",
            "1.2.3:80",
            "a b:80",
            "10.0.0.1:0",
            "u@h:80",
        ] {
            assert!(bad.parse::<HboneAuthority>().is_err(), "{bad}");
        }
    }
}
