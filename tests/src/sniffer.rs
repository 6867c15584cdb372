//! Sees every packet of a namespace, as somebody on the wire would.

use std::{
    fmt,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use leyline_net::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// Room for bursts while the reader is not scheduled.
const BUFFER: usize = 32 << 20;
/// How often the reader looks whether it should stop.
const PERIOD: Duration = Duration::from_millis(20);
/// Segments that were not yet cut to the MTU are up to 64 KiB and some headers long.
const LARGEST_PACKET: usize = 66_000;
/// Addresses, types and ports of packets are kept, bodies are not, so this is some MB at most.
const MAX_PACKETS: usize = 200_000;

/// One packet of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// TCP or UDP.
    pub transport: Transport,
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Bytes after the transport header.
    pub payload: usize,
    /// Whether it asks for a connection (SYN).
    pub opens: bool,
    /// Whether the secret was in them.
    pub secret: bool,
}

/// What is above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            source,
            destination,
            payload,
            opens,
            secret,
        } = self;
        let opens = if *opens { ", SYN" } else { "" };
        let secret = if *secret { ", with the secret" } else { "" };
        write!(
            f,
            "{transport:?} {source} > {destination}, {payload} bytes{opens}{secret}"
        )
    }
}

/// A running capture of all interfaces of a namespace.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<Packet>>>,
}

impl Sniffer {
    /// Starts; every packet from now on is seen.
    pub fn start(namespace: &NetNs, secret: &[u8]) -> Result<Self> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let socket = namespace
            .run(|| {
                Socket::new(
                    Domain::PACKET,
                    Type::RAW,
                    Some(Protocol::from(i32::from(every_protocol))),
                )
            })?
            .context("opening a packet socket")?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_read_timeout(Some(PERIOD))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let secret = secret.to_vec();
        let reader = std::thread::Builder::new()
            .name("sniffer".to_owned())
            .spawn(move || collect(&socket, &secret, &stopped))?;
        Ok(Self { stop, reader })
    }

    /// Stops and returns what was seen. Packets that have already passed are all in it.
    pub async fn stop(self) -> Result<Vec<Packet>> {
        self.stop.store(true, Ordering::Relaxed);
        let Self { reader, .. } = self;
        tokio::task::spawn_blocking(|| reader.join())
            .await?
            .map_err(|_panic| anyhow!("the sniffer panicked"))?
    }
}

fn collect(mut socket: &Socket, secret: &[u8], stop: &AtomicBool) -> Result<Vec<Packet>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; LARGEST_PACKET];
    loop {
        // Looked at before the read, so that what came before the stop is still read.
        let last = stop.load(Ordering::Relaxed);
        match socket.read(&mut buffer) {
            Ok(length) => {
                if packets.len() < MAX_PACKETS {
                    packets.extend(parse(&buffer[..length], secret));
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && last => return Ok(packets),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Said once of an interface that went down; the others go on.
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(e) => return Err(e).context("reading packets"),
        }
    }
}

/// An Ethernet frame with TCP or UDP in IP; anything else is `None`.
fn parse(frame: &[u8], secret: &[u8]) -> Option<Packet> {
    let ether_type = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let ip = frame.get(14..)?;
    let (protocol, source, destination, above) = match i32::from(ether_type) {
        libc::ETH_P_IP => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            // Ethernet pads short packets; a packet larger than 64 KiB says length 0.
            let end = if total == 0 {
                ip.len()
            } else {
                total.min(ip.len())
            };
            (
                *ip.get(9)?,
                address(12)?,
                address(16)?,
                ip.get(header..end)?,
            )
        }
        libc::ETH_P_IPV6 => {
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            (*ip.get(6)?, address(8)?, address(24)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let (transport, header) = match i32::from(protocol) {
        libc::IPPROTO_TCP => (Transport::Tcp, usize::from(above.get(12)? >> 4) * 4),
        libc::IPPROTO_UDP => (Transport::Udp, 8),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*above.get(at)?, *above.get(at + 1)?]));
    let payload = above.get(header..)?;
    Some(Packet {
        transport,
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        payload: payload.len(),
        // RFC 9293, 3.1: SYN is bit 1 and ACK bit 4 of the octet.
        opens: transport == Transport::Tcp && above.get(13)? & 0b1_0010 == 0b10,
        secret: !secret.is_empty() && payload.windows(secret.len()).any(|part| part == secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP 10.0.0.1:1000 > 10.0.0.2:80 in Ethernet, with the given payload and trailing padding.
    fn frame(payload: &[u8], padding: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let total = 20 + 20 + u16::try_from(payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(1000_u16.to_be_bytes());
        frame.extend(80_u16.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame.extend(vec![0; padding]);
        frame
    }

    #[test]
    fn finds_ends_and_secret() {
        let packet = parse(&frame(b"say the word now", 0), b"the word").unwrap();
        assert_eq!(
            packet.to_string(),
            "Tcp 10.0.0.1:1000 > 10.0.0.2:80, 16 bytes, with the secret"
        );
        assert_eq!(parse(&frame(b"", 6), b"x").unwrap().payload, 0);
    }

    #[test]
    fn cut_frames_are_nothing() {
        let whole = frame(b"", 0);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length], b"x"), None, "{length}");
        }
    }
}
