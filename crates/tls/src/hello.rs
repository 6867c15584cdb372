//! Which server a client asks for, by the first bytes of its TLS connection (RFC 6066, 3), which are only looked at. Waypoints
//! call it for connections that they pass through as they are.

use std::io;

use rustls::server::Acceptor;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Not all of it is here.
    Incomplete,
    /// The server that is asked for, in lower case; none where nobody is.
    Asks(Option<String>),
    /// This is not TLS, or not of a kind that is understood.
    Invalid,
}

impl Hello {
    /// Reads the bytes that have come so far.
    pub fn read(mut bytes: &[u8]) -> Self {
        let mut acceptor = Acceptor::default();
        loop {
            let before = bytes.len();
            if acceptor.read_tls(&mut bytes as &mut dyn io::Read).is_err() {
                return Self::Invalid;
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Self::Asks(hello.server_name().map(str::to_ascii_lowercase));
                }
                Ok(None) if bytes.is_empty() || bytes.len() == before => return Self::Incomplete,
                Ok(None) => {}
                Err(_) => return Self::Invalid,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn first_bytes(server: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = server.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_server_that_is_asked_for_is_read_once_all_is_here() {
        let bytes = first_bytes("Shop.example");
        for length in 0..bytes.len() {
            assert_eq!(Hello::read(&bytes[..length]), Hello::Incomplete, "{length}");
        }
        let asks = Hello::Asks(Some("shop.example".to_owned()));
        assert_eq!(Hello::read(&bytes), asks);
        let more = [bytes.as_slice(), b"what follows"].concat();
        assert_eq!(Hello::read(&more), asks);
        // No server is asked for by an address.
        assert_eq!(Hello::read(&first_bytes("192.0.2.1")), Hello::Asks(None));
        assert_eq!(Hello::read(b"GET / HTTP/1.1\r\n\r\n"), Hello::Invalid);
    }
}
