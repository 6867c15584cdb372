//! The applications: a server that says whom it sees and then echoes, and clients.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use leyline_net::NetNs;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

pub(crate) const PORT: u16 = 8080;

/// Longer than any refusal may take, shorter than the kernel's own SYN timeout.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// What "quickly" means for a refusal.
pub(crate) const QUICK: Duration = Duration::from_secs(1);

/// What a client learned.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The client's address as the server sees it.
    pub(crate) seen: SocketAddr,
    /// The client's own view.
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

/// A server on `[::]:port` of the namespace, for the rest of the test.
pub(crate) fn serve(netns: &NetNs, port: u16) {
    serve_with(netns, port, Protocol::TCP);
}

pub(crate) fn serve_with(netns: &NetNs, port: u16, protocol: Protocol) {
    let listener = netns
        .run(|| Socket::new(Domain::IPV6, Type::STREAM, Some(protocol)))
        .unwrap()
        .unwrap();
    listener.set_reuse_address(true).unwrap();
    listener
        .bind(&SocketAddr::from(([0; 16], port)).into())
        .unwrap();
    listener.listen(1024).unwrap();
    let listener: TcpListener = listener.into();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let peer = canonical(stream.peer_addr()?);
    writeln!(stream, "{peer}")?;
    let mut reader = stream.try_clone()?;
    io::copy(&mut reader, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Connects from the namespace and has something echoed.
pub(crate) fn ask(netns: &NetNs, target: SocketAddr) -> io::Result<Answer> {
    converse(connect(netns, target)?)
}

pub(crate) fn connect(netns: &NetNs, target: SocketAddr) -> io::Result<TcpStream> {
    netns.run(|| TcpStream::connect_timeout(&target, PATIENCE))?
}

/// Has something echoed over an open connection, and closes it.
pub(crate) fn converse(mut stream: TcpStream) -> io::Result<Answer> {
    // Both ends are unknown once both directions are closed.
    let local = canonical(stream.local_addr()?);
    let peer = canonical(stream.peer_addr()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (seen, echoed) = text
        .split_once('\n')
        .ok_or_else(|| io::Error::other(format!("not our server: {text:?}")))?;
    if echoed != "hello" {
        return Err(io::Error::other(format!("wrong echo: {echoed:?}")));
    }
    Ok(Answer {
        seen: seen.parse().map_err(io::Error::other)?,
        local,
        peer,
    })
}

/// A connection that stays open over several exchanges.
pub(crate) struct Conversation(TcpStream);

impl Conversation {
    pub(crate) fn open(netns: &NetNs, target: SocketAddr) -> Self {
        Self::over(connect(netns, target).unwrap())
    }

    pub(crate) fn over(mut stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0; 1];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        Self(stream)
    }

    pub(crate) fn exchange(&mut self) -> io::Result<()> {
        let mut answer = [0; 4];
        self.0.write_all(b"ping")?;
        self.0.read_exact(&mut answer)?;
        assert_eq!(&answer, b"ping");
        Ok(())
    }
}

/// How long a call took, with its result.
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = call();
    (result, start.elapsed())
}

pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

pub(crate) fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}
