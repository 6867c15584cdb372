//! Sockets: where they are opened (network namespaces), how (options, marks, source addresses), and how bytes move
//! between two of them. Everything in Leyline that listens or connects does it here; nothing here knows the mesh.
#![warn(missing_docs)]

pub mod accept;
pub mod connect;
pub mod copy;
pub mod link_events;
pub mod listen;
pub mod netns;
pub mod orig_dst;
pub mod pace;
pub mod proxy_protocol;
pub mod read_ahead;
pub mod reserved;
pub mod seqpacket;
pub mod sockopt;
pub mod tcp;
pub mod udp;

pub use accept::{Accepted, accept};
pub use connect::{Announce, ConnectError, ConnectOptions, Source, connect};
pub use link_events::LinkEvents;
pub use listen::{ListenOptions, Peers, listen, listen_on_loopback};
pub use netns::{NetNs, has_address};
pub use orig_dst::Redirection;
pub use read_ahead::ReadAhead;
pub use reserved::{release_ports, reserve_ports};
pub use tcp::{TcpReader, TcpWriter, into_split, into_split_reading};
