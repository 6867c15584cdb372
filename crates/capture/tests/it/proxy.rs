//! A small plain-text proxy for one pod: what ztunnel is to capture, without the mesh.

use std::{
    io::{self, IoSliceMut, Write},
    net::{IpAddr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use leyline_capture::{
    BYPASS_MARK, CAPTURE_MARK, CaptureError, NodeCapture, PodCapture, PodOptions, PodSockets,
};
use leyline_net::{
    NetNs,
    sockopt::{reset_on_close, set_transparent},
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
    sockopt::Ipv6RecvPacketInfo,
};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    app::{PATIENCE, canonical},
    lab::{PodNs, block_on},
};

/// Through which socket something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Outbound,
    Inbound,
    Hbone,
    Guests,
    DnsTcp,
    DnsUdp,
    /// A connection to one of the proxy's own listeners, cut.
    Loop,
}

/// Something that the proxy was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) via: Via,
    pub(crate) from: SocketAddr,
    /// The original destination.
    pub(crate) to: SocketAddr,
}

struct State {
    netns: NetNs,
    own: Vec<IpAddr>,
    ports: Vec<u16>,
    seen: Mutex<Vec<Seen>>,
    capture: Mutex<Option<Arc<PodCapture>>>,
}

/// Whether the proxy has DNS sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dns {
    Off,
    On,
}

/// A running proxy; stops accepting when dropped.
pub(crate) struct Proxy {
    state: Arc<State>,
    outbound: TcpListener,
    inbound: TcpListener,
    hbone: TcpListener,
    guests: TcpListener,
    dns: Option<(OwnedFd, TcpListener)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(pod: &PodNs, dns: Dns) -> Self {
        Self::start_in(&pod.netns, &pod.ips(), dns)
    }

    /// Listens on ports of its own choice: they are labels only.
    pub(crate) fn start_in(netns: &NetNs, own: &[IpAddr], dns: Dns) -> Self {
        let outbound = listener(netns, 0, CAPTURE_MARK);
        let inbound = listener(netns, 0, BYPASS_MARK);
        let hbone = listener(netns, 0, BYPASS_MARK);
        let dns = (dns == Dns::On).then(|| (dns_udp(netns), listener(netns, 0, CAPTURE_MARK)));
        let guests = listener(netns, 0, BYPASS_MARK);
        let listeners = [&outbound, &inbound, &hbone];
        let state = Arc::new(State {
            netns: netns.clone(),
            own: own.to_vec(),
            ports: listeners.map(|l| l.local_addr().unwrap().port()).to_vec(),
            seen: Mutex::default(),
            capture: Mutex::default(),
        });
        let mut threads = vec![
            accept(&outbound, &state, Via::Outbound, relay_outbound),
            accept(&inbound, &state, Via::Inbound, relay_inbound),
            accept(&guests, &state, Via::Guests, relay_outbound),
            accept(&hbone, &state, Via::Hbone, |_, mut s, _, _| {
                s.write_all(b"tunnel")
            }),
        ];
        if let Some((udp, tcp)) = &dns {
            threads.push(accept(tcp, &state, Via::DnsTcp, |_, mut s, _, _| {
                s.write_all(b"answer")
            }));
            let (udp, state) = (udp.try_clone().unwrap(), Arc::clone(&state));
            thread::spawn(move || answer_datagrams(&udp, &state));
        }
        Self {
            state,
            outbound,
            inbound,
            hbone,
            guests,
            dns,
            threads,
        }
    }

    pub(crate) fn sockets(&self) -> PodSockets<'_> {
        PodSockets {
            outbound: self.outbound.as_fd(),
            inbound: self.inbound.as_fd(),
            hbone: self.hbone.as_fd(),
            dns_udp: self.dns.as_ref().map(|(udp, _)| udp.as_fd()),
            dns_tcp: self.dns.as_ref().map(|(_, tcp)| tcp.as_fd()),
            guests: Some(self.guests.as_fd()),
        }
    }

    /// Captures the pod for this proxy.
    pub(crate) fn enroll(&self, node: &NodeCapture) -> Result<Arc<PodCapture>, CaptureError> {
        self.enroll_with(node, PodOptions::default())
    }

    pub(crate) fn enroll_with(
        &self,
        node: &NodeCapture,
        options: PodOptions,
    ) -> Result<Arc<PodCapture>, CaptureError> {
        let (netns, own) = (&self.state.netns, self.state.own.clone());
        let pod = Arc::new(block_on(node.enroll(netns, own, self.sockets(), options))?);
        *self.state.capture.lock() = Some(Arc::clone(&pod));
        Ok(pod)
    }

    /// Un-enrols the pod that this proxy captured.
    pub(crate) fn remove(&self, pod: Arc<PodCapture>) {
        self.state.capture.lock().take();
        let pod = Arc::into_inner(pod).expect("the pod is still in use");
        block_on(pod.remove()).unwrap();
    }

    /// Shuts the listeners down without closing them.
    pub(crate) fn stop_listening(&self) {
        for listener in [&self.outbound, &self.inbound, &self.hbone, &self.guests] {
            // Wakes the thread in accept, too.
            socket2::SockRef::from(listener)
                .shutdown(Shutdown::Both)
                .ok();
        }
    }

    /// What came since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.state.seen.lock())
    }

    pub(crate) fn outbound_port(&self) -> u16 {
        self.state.ports[0]
    }

    pub(crate) fn inbound_port(&self) -> u16 {
        self.state.ports[1]
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for listener in [&self.outbound, &self.inbound, &self.hbone, &self.guests] {
            // Wakes the thread in accept.
            socket2::SockRef::from(listener)
                .shutdown(Shutdown::Both)
                .ok();
        }
        if let Some((udp, tcp)) = &self.dns {
            socket2::SockRef::from(tcp).shutdown(Shutdown::Both).ok();
            socket2::SockRef::from(udp).shutdown(Shutdown::Both).ok();
        }
        // They hold duplicates, and a socket leaves the kernel's maps with its last one.
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        self.state.capture.lock().take();
    }
}

fn listener(netns: &NetNs, port: u16, mark: u32) -> TcpListener {
    let socket = netns
        .run(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)))
        .unwrap()
        .unwrap();
    socket.set_only_v6(false).unwrap();
    set_transparent(&socket, Domain::IPV6).unwrap();
    socket.set_mark(mark).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&SocketAddr::from(([0; 16], port)).into())
        .unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

fn dns_udp(netns: &NetNs) -> OwnedFd {
    let socket = netns
        .run(|| Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)))
        .unwrap()
        .unwrap();
    socket.set_only_v6(false).unwrap();
    set_transparent(&socket, Domain::IPV6).unwrap();
    socket.set_mark(CAPTURE_MARK).unwrap();
    setsockopt(&socket, Ipv6RecvPacketInfo, &true).unwrap();
    socket
        .bind(&SocketAddr::from(([0; 16], 15053)).into())
        .unwrap();
    socket.into()
}

fn accept(
    listener: &TcpListener,
    state: &Arc<State>,
    via: Via,
    handle: fn(&State, TcpStream, SocketAddr, SocketAddr) -> io::Result<()>,
) -> thread::JoinHandle<()> {
    let (listener, state) = (listener.try_clone().unwrap(), Arc::clone(state));
    thread::spawn(move || {
        while let Ok((stream, from)) = listener.accept() {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let from = canonical(from);
                let Ok(to) = stream.local_addr() else { return };
                let to = canonical(to);
                let to_itself = state.own.contains(&to.ip()) && state.ports.contains(&to.port());
                let via = if to_itself { Via::Loop } else { via };
                state.seen.lock().push(Seen { via, from, to });
                if !to_itself {
                    handle(&state, stream, from, to).ok();
                }
            });
        }
    })
}

fn relay_outbound(
    state: &State,
    stream: TcpStream,
    _from: SocketAddr,
    to: SocketAddr,
) -> io::Result<()> {
    let upstream = state
        .netns
        .run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))??;
    upstream.set_mark(BYPASS_MARK)?;
    match upstream.connect_timeout(&to.into(), PATIENCE) {
        Ok(()) => relay(stream, upstream.into()),
        Err(e) => {
            reset_on_close(&stream)?;
            Err(e)
        }
    }
}

fn relay_inbound(
    state: &State,
    stream: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<()> {
    match connect_as(state, from.ip(), to) {
        Ok(application) => relay(stream, application),
        Err(e) => {
            reset_on_close(&stream)?;
            Err(e)
        }
    }
}

/// Connects to the application in the guise of the client.
fn connect_as(state: &State, client: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let socket = state
            .netns
            .run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))??;
        socket.set_mark(CAPTURE_MARK)?;
        socket.bind_device(Some(b"lo"))?;
        set_transparent(&socket, Domain::for_address(to))?;
        socket.set_reuse_address(true)?;
        let port = 1024 + NEXT.fetch_add(7, Ordering::Relaxed) % 31744;
        let guise = SocketAddr::new(client, port);
        let taken = |e: &io::Error| {
            matches!(
                e.raw_os_error(),
                Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)
            )
        };
        match socket.bind(&guise.into()) {
            Err(e) if taken(&e) => continue,
            result => result?,
        }
        let capture = state.capture.lock().clone();
        let _announced = match &capture {
            Some(capture) => Some(capture.announce(guise, to).map_err(io::Error::other)?),
            None => None,
        };
        match socket.connect_timeout(&to.into(), PATIENCE) {
            Err(e) if taken(&e) => {}
            Err(e) => return Err(e),
            Ok(()) => return Ok(socket.into()),
        }
    }
}

fn relay(one: TcpStream, other: TcpStream) -> io::Result<()> {
    let back = (other.try_clone()?, one.try_clone()?);
    let returning = thread::spawn(move || pump(back.0, back.1));
    pump(one, other)?;
    returning.join().ok();
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    match io::copy(&mut from, &mut to) {
        Ok(_) => to.shutdown(Shutdown::Write),
        Err(e) => {
            reset_on_close(&to)?;
            to.shutdown(Shutdown::Both)?;
            Err(e)
        }
    }
}

/// Answers each datagram from the address it was sent to.
fn answer_datagrams(socket: &OwnedFd, state: &State) {
    loop {
        let mut buffer = [0; 512];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let Ok(message) = recvmsg::<SockaddrIn6>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        ) else {
            return;
        };
        let info = message.cmsgs().unwrap().find_map(|c| match c {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
            _ => None,
        });
        // A shut down socket reports an empty message.
        let (Some(info), Some(from)) = (info, message.address) else {
            return;
        };
        let to = IpAddr::from(info.ipi6_addr.s6_addr);
        state.seen.lock().push(Seen {
            via: Via::DnsUdp,
            from: canonical(SocketAddr::V6(SocketAddrV6::from(from))),
            to: canonical(SocketAddr::new(to, 53)),
        });
        let source = libc::in6_pktinfo {
            ipi6_addr: info.ipi6_addr,
            ipi6_ifindex: 0,
        };
        sendmsg(
            socket.as_raw_fd(),
            &[io::IoSlice::new(b"answer")],
            &[ControlMessage::Ipv6PacketInfo(&source)],
            MsgFlags::empty(),
            Some(&from),
        )
        .ok();
    }
}
