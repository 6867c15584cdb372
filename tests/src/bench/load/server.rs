//! `leyline-load server`: every kind of peer that the clients measure against.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net,
    runtime::Builder,
    sync::mpsc,
    task::JoinSet,
};

use super::{bulk, exchange::Protocol, ports};

/// Event loops for requests; there are not more cores to use.
const WORKERS: usize = 2;
/// Accepted connections that wait for an event loop; then accepting waits, and after it the kernel's own queue.
const HANDED_OVER: usize = 64;
/// Threads that each serve one short connection at a time. Twice the clients' workers, so that a connection whose byte
/// is late holds nothing up.
const SHORT_WORKERS: usize = 32;

#[derive(Clone, Copy)]
enum Service {
    Requests(Protocol),
    Echo,
}

/// Listens on all [`ports`] of every IPv4 address and serves; returns only with an error.
pub fn run() -> Result<()> {
    leyline_runtime::threads::raise_open_files_limit()?;
    let mut loops = Vec::new();
    for _ in 0..WORKERS {
        let (sender, receiver) = mpsc::channel(HANDED_OVER);
        thread::spawn(|| event_loop(receiver));
        loops.push(sender);
    }
    // Whichever thread fails first ends the server.
    let (failed, failure) = std::sync::mpsc::sync_channel(1);
    for (port, service) in [
        (ports::HTTP, Service::Requests(Protocol::Http)),
        (ports::ECHO, Service::Echo),
        (ports::REQUESTS, Service::Requests(Protocol::Raw)),
    ] {
        let (listener, loops, failed) = (listen(port)?, loops.clone(), failed.clone());
        thread::spawn(move || failed.send(hand_over(&listener, service, &loops)));
    }
    for (port, serve) in [
        (ports::SINK, bulk::sink as fn(TcpStream) -> io::Result<()>),
        (ports::SOURCE, bulk::source),
    ] {
        let (listener, failed) = (listen(port)?, failed.clone());
        thread::spawn(move || failed.send(thread_each(&listener, serve)));
    }
    let short_listener = listen(ports::SHORT)?;
    for _ in 0..SHORT_WORKERS {
        let (listener, failed) = (short_listener.try_clone()?, failed.clone());
        thread::spawn(move || failed.send(short(&listener)));
    }
    drop(failed);
    failure.recv().context("all threads are gone")?
}

fn listen(port: u16) -> Result<TcpListener> {
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    TcpListener::bind(addr).with_context(|| format!("listening on {addr}"))
}

/// The next connection; one that was gone before it was taken is passed over.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, _peer)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e).context("accepting"),
        }
    }
}

/// Gives connections to the event loops in turn: left to the kernel, one loop may get most of them.
fn hand_over(
    listener: &TcpListener,
    service: Service,
    loops: &[mpsc::Sender<(Service, TcpStream)>],
) -> Result<()> {
    for event_loop in loops.iter().cycle() {
        let stream = accept(listener)?;
        stream.set_nonblocking(true)?;
        event_loop
            .blocking_send((service, stream))
            .map_err(|_returned| anyhow!("an event loop has ended"))?;
    }
    Ok(())
}

fn event_loop(mut connections: mpsc::Receiver<(Service, TcpStream)>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        while let Some((service, stream)) = connections.recv().await {
            // How a client ends its connection is its own matter.
            while tasks.try_join_next().is_some() {}
            let stream = net::TcpStream::from_std(stream)?;
            match service {
                Service::Requests(protocol) => tasks.spawn(protocol.serve(stream)),
                Service::Echo => tasks.spawn(echo(stream)),
            };
        }
        Ok(())
    })
}

async fn echo(mut stream: net::TcpStream) -> io::Result<()> {
    // Small, for there may be 8,000 of them.
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

fn thread_each(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>) -> Result<()> {
    loop {
        let stream = accept(listener)?;
        thread::spawn(move || serve(stream));
    }
}

/// Closing first leaves TIME_WAIT on this side, so that the client does not run out of ports.
fn short(listener: &TcpListener) -> Result<()> {
    loop {
        let mut stream = accept(listener)?;
        let mut byte = [0];
        if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_err() {
            // The client counts it as failed.
        }
    }
}
