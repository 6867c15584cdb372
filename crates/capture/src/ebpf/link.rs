//! Pinned links: an attachment that outlives the process, whose program can be replaced without a gap.
#![expect(
    unsafe_code,
    reason = "aya gives no access to the descriptor of a pinned link, nor to BPF_LINK_UPDATE and BPF_LINK_DETACH"
)]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::programs::{ProgramError, links::FdLink};

use crate::error::Cause;

// Commands of bpf(2), include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// A link found by its pin.
pub(crate) struct PinnedLink(OwnedFd);

impl PinnedLink {
    /// Opens a pin; `None` when there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attributes = ObjectGet {
            path: name.as_ptr() as u64,
            fd: 0,
            flags: 0,
        };
        match call(BPF_OBJ_GET, &mut attributes) {
            Ok(fd) => {
                // SAFETY: the call returned a new descriptor that nobody else owns.
                Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) })))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts another program in place of the running one, in one step.
    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = LinkUpdate {
            link: self.0.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            flags: 0,
            old_program: 0,
        };
        call(BPF_LINK_UPDATE, &mut attributes).map(|_| ())
    }

    /// Detaches now; without it the kernel detaches some time after the pin and the last descriptor are gone.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attributes = self.0.as_raw_fd() as u32;
        match call(BPF_LINK_DETACH, &mut attributes) {
            Ok(_) => Ok(()),
            // What it was attached to is gone.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Inode of the network namespace that a socket lookup is attached to, or index of the interface that a classifier is
    /// attached to; `None` once that is gone.
    pub(crate) fn target(&self) -> io::Result<Option<u32>> {
        let mut info = LinkInfo::default();
        let mut attributes = InfoByFd {
            fd: self.0.as_raw_fd() as u32,
            length: size_of::<LinkInfo>() as u32,
            info: (&raw mut info) as u64,
        };
        call(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
        Ok((info.target != 0).then_some(info.target))
    }
}

/// Puts `program` behind the link pinned at `path`, or makes and pins one. Says which as `true` for made.
pub(crate) fn attach_or_replace(
    path: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, ProgramError>,
) -> Result<bool, Cause> {
    if let Some(link) = PinnedLink::open(path)? {
        match link.replace(program) {
            Ok(()) => return Ok(false),
            // The link's target is gone; it holds nothing any more.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(path)?,
            Err(e) => return Err(e.into()),
        }
    }
    attach()?.pin(path)?;
    Ok(true)
}

#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` as far as network namespaces and interfaces need it, which have it in the same place; the kernel
/// fills no more than this.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    target: u32,
    attach_type: u32,
}

/// Calls bpf(2). `attributes` must be the command's part of `union bpf_attr`, into which some commands also write; pointers
/// in it must be valid for the call.
fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: pointer and size describe `attributes`, whose layout each caller takes from the kernel's header, and what
    // its pointers refer to lives in the caller's frame.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
