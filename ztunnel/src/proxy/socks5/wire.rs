//! SOCKS version 5 as far as it is of use here (RFC 1928): CONNECT without authentication. What the client does not have to
//! have sent yet is not read.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use leyline_types::canonical;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Address(SocketAddr),
    /// A host name, not empty, in printable ASCII.
    Host(String, u16),
}

/// What a client is told (RFC 1928, 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Why a client is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("version {0} is not SOCKS5")]
    Version(u8),
    #[error("the client offers no method without authentication")]
    Methods,
    #[error("command {0} is not CONNECT")]
    Command(u8),
    #[error("address type {0} is unknown")]
    AddressType(u8),
    #[error("the host name is none")]
    Host,
    #[error("the client went away: {0}")]
    Io(#[from] io::Error),
}

impl Malformed {
    /// What the client is told; nothing where it would not understand, or has been told.
    pub(super) fn reply(&self) -> Option<Reply> {
        match self {
            Self::Version(_) | Self::Methods | Self::Io(_) => None,
            Self::Command(_) => Some(Reply::CommandNotSupported),
            Self::AddressType(_) => Some(Reply::AddressTypeNotSupported),
            Self::Host => Some(Reply::GeneralFailure),
        }
    }
}

impl Reply {
    /// The reply's bytes. The address that we connect from is nobody's business, as RFC 1928 allows for CONNECT.
    pub(in crate::proxy) fn encode(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// Agrees on no authentication, and reads where the client wants to go. Whoever calls gives it a deadline; a message has at
/// most 262 bytes.
pub(super) async fn negotiate<S>(stream: &mut S) -> Result<Target, Malformed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let [version, methods] = read(stream).await?;
    check_version(version)?;
    let mut offered = [0; u8::MAX as usize];
    let offered = &mut offered[..usize::from(methods)];
    stream.read_exact(offered).await?;
    if !offered.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(Malformed::Methods);
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    read_request(stream).await
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Target, Malformed> {
    let [version, command, _reserved, kind] = read(stream).await?;
    check_version(version)?;
    if command != CONNECT {
        return Err(Malformed::Command(command));
    }
    let host = match kind {
        IPV4 => return address(Ipv4Addr::from(read::<4>(stream).await?), stream).await,
        IPV6 => return address(Ipv6Addr::from(read::<16>(stream).await?), stream).await,
        NAME => read_host(stream).await?,
        _ => return Err(Malformed::AddressType(kind)),
    };
    // Some clients send an address where a name belongs.
    match host.parse::<IpAddr>() {
        Ok(ip) => address(ip, stream).await,
        Err(_name) => Ok(Target::Host(host, stream.read_u16().await?)),
    }
}

async fn address<S: AsyncRead + Unpin>(
    ip: impl Into<IpAddr>,
    stream: &mut S,
) -> Result<Target, Malformed> {
    let addr = SocketAddr::new(ip.into(), stream.read_u16().await?);
    Ok(Target::Address(canonical(addr)))
}

async fn read_host<S: AsyncRead + Unpin>(stream: &mut S) -> Result<String, Malformed> {
    let mut host = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut host).await?;
    let host = String::from_utf8(host).map_err(|_not_text| Malformed::Host)?;
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    is_name.then_some(host).ok_or(Malformed::Host)
}

fn check_version(version: u8) -> Result<(), Malformed> {
    match version {
        VERSION => Ok(()),
        other => Err(Malformed::Version(other)),
    }
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::join;

    use super::*;

    /// What a client that says `said` is understood to want, what it is answered, and what of it is not read.
    fn negotiated(said: &[u8]) -> (Result<Target, Malformed>, Vec<u8>, &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        let mut stream = join(said, Vec::new());
        let target = runtime.block_on(negotiate(&mut stream));
        let (unread, answered) = stream.into_inner();
        (target, answered, unread)
    }

    #[test]
    fn connects_by_address_and_by_name_are_understood() {
        let check = |request: &[u8], expected: Target| {
            for greeting in [&[5, 1, 0][..], &[5, 3, 2, 0, 1]] {
                let said = [greeting, request, b"early data"].concat();
                let (target, answered, unread) = negotiated(&said);
                assert_eq!(target.unwrap(), expected);
                assert_eq!(answered, [5, 0]);
                assert_eq!(unread, b"early data");
            }
        };
        let addr = |text: &str| Target::Address(text.parse().unwrap());
        let host = |name: &str| Target::Host(name.to_owned(), 443);
        let named = |name: &str| {
            let length = u8::try_from(name.len()).unwrap();
            [&[5, 1, 0, 3, length], name.as_bytes(), &[1, 187]].concat()
        };
        check(&[5, 1, 0, 1, 10, 96, 0, 20, 0, 80], addr("10.96.0.20:80"));
        let v6 = [
            5, 1, 0, 4, 0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 80,
        ];
        check(&v6, addr("[fd00:96::20]:80"));
        let mapped = [
            5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1, 0, 80,
        ];
        check(&mapped, addr("10.0.0.1:80"));
        check(&named("a"), host("a"));
        let longest = "x".repeat(255);
        check(&named(&longest), host(&longest));
        check(&named("10.0.0.1"), addr("10.0.0.1:443"));
        check(&named("::1"), addr("[::1]:443"));
    }

    #[test]
    fn whatever_else_is_refused_with_its_reason() {
        let check = |said: &[u8], answer: &[u8], reply: Option<Reply>, why: &str| {
            let (target, answered, _) = negotiated(said);
            let error = target.unwrap_err();
            assert!(error.to_string().contains(why), "{said:?}: {error}");
            assert_eq!((&answered[..], error.reply()), (answer, reply), "{said:?}");
        };
        check(b"GET / HTTP/1.1", &[], None, "version 71");
        check(&[4, 1, 0, 80], &[], None, "version 4");
        check(&[5, 1, 2], &[5, 0xff], None, "no method");
        check(&[5, 0], &[5, 0xff], None, "no method");
        let agreed = [5, 0];
        let requested = |request: &[u8]| [&[5, 1, 0], request].concat();
        let bind = requested(&[5, 2, 0, 1]);
        let unsupported = Some(Reply::CommandNotSupported);
        check(&bind, &agreed, unsupported, "command 2");
        let associate = requested(&[5, 3, 0, 1]);
        check(&associate, &agreed, unsupported, "command 3");
        check(&requested(&[4, 1, 0, 1]), &agreed, None, "version 4");
        let kind = Some(Reply::AddressTypeNotSupported);
        check(&requested(&[5, 1, 0, 2]), &agreed, kind, "address type 2");
        let general = Some(Reply::GeneralFailure);
        for name in [&[0][..], &[1, b' '], &[1, 0], &[1, 0x80], &[2, 0xc3, 0xa9]] {
            let request = [&[5, 1, 0, 3], name, &[0, 80]].concat();
            check(&requested(&request), &agreed, general, "host name");
        }
        for end in 0..13 {
            let whole = [5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80];
            let answered = if end < 3 { &[][..] } else { &agreed };
            check(&whole[..end], answered, None, "went away");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(said in prop::collection::vec(any::<u8>(), 0..600)) {
            let greeted = [&[5, 1, 0, 5, 1, 0], &said[..]].concat();
            for said in [said, greeted] {
                let (target, answered, unread) = negotiated(&said);
                prop_assert!(answered.len() <= 2);
                prop_assert!(said.len() - unread.len() <= 2 + 255 + 262);
                if let Ok(Target::Host(host, _)) = target {
                    prop_assert!(!host.is_empty() && host.is_ascii());
                }
            }
        }
    }
}
