//! Network namespaces: opened once, entered for the moment in which a socket is made.
//!
//! A socket belongs for life to the namespace of the thread that made it, so only its creation runs inside.
#![expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use tracing::error;

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h), since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace held open by descriptor.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    /// Where the thread goes back to: the namespace of the process.
    home: Arc<OwnedFd>,
    cookie: u64,
}

impl NetNs {
    /// Opens a namespace by path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the path is missing, is not a network namespace, or the process may not enter it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// The namespace of the process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// Takes a descriptor, as received over a socket.
    ///
    /// # Errors
    /// When it is not a network namespace or the process may not enter it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let home = Arc::new(File::open("/proc/self/ns/net")?.into());
        let mut namespace = Self {
            fd: Arc::new(fd),
            home,
            cookie: 0,
        };
        namespace.cookie = namespace.run(cookie_of_thread)??;
        Ok(namespace)
    }

    /// The kernel's unique number for the namespace; never reused while the machine runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `make` on this thread inside the namespace, then goes back. `make` must not block for long.
    ///
    /// # Errors
    /// When the namespace cannot be entered. If the thread cannot go back the process aborts: whatever it did next
    /// would happen in a pod.
    pub fn run<T>(&self, make: impl FnOnce() -> T) -> io::Result<T> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let back = Back { home: &self.home };
        let made = make();
        drop(back);
        Ok(made)
    }
}

/// Whether this process may do in namespaces what it is for: enter one, and mark sockets there.
///
/// # Errors
/// When a capability is missing.
pub fn check_capabilities(netns: &NetNs, mark: u32) -> io::Result<()> {
    netns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_mark(mark)
    })?
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns the thread to its namespace, also when `make` panics.
struct Back<'a> {
    home: &'a OwnedFd,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(e) = setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET) {
            error!(error = %e, "cannot leave a pod's network namespace; aborting");
            std::process::abort();
        }
    }
}

/// Whether an address is one of the namespace's own, as far as the kernel lets a socket have it.
///
/// # Errors
/// When the namespace cannot be entered or has no such address family.
pub fn has_address(netns: &NetNs, ip: IpAddr) -> io::Result<bool> {
    let addr = SocketAddr::new(ip, 0);
    let socket =
        netns.run(|| Socket::new(Domain::for_address(addr), Type::DGRAM.cloexec(), None))??;
    match socket.bind(&addr.into()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(e) => Err(e),
    }
}

fn cookie_of_thread() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and pointer and length describe `cookie`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
