//! Profiles of the heap for `pprof` (facts A17): which functions hold the memory that is in use, by samples that the allocator
//! takes. It takes none until it is told to by [`profiling`], and forgets them when it is told to stop.
//!
//! The allocator writes its samples as text, into a file in memory: the root file system of a node proxy is often read-only.

mod dump;

use std::{
    fs::File,
    io::{self, Seek},
    os::fd::AsRawFd,
    sync::OnceLock,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use leyline_runtime::http as server;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tikv_jemalloc_ctl::{Access, AsName, Name};
use tokio::{sync::Mutex, task::spawn_blocking};
use tracing::info;

pub(super) use self::dump::Held;
use self::dump::{Dump, DumpError};
use super::{
    encode::encode_heap,
    stacks::{Program, ProgramError},
};

const USAGE: &str = "usage: /debug/pprof/heap/profiling[?activate=true|false]\n";

/// One at a time: they share the file, and sampling is switched between them.
static RUNNING: Mutex<()> = Mutex::const_new(());

/// What the allocator calls itself in a stack; what is below it has asked for memory.
const ALLOCATOR: [&str; 5] = [
    "_rjem_",
    "<tikv_jemallocator::",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc",
];
/// How deep it goes. A function of ours that bears such a name further down is ours.
const ALLOCATOR_FRAMES: usize = 16;

#[derive(Debug, thiserror::Error)]
enum HeapError {
    #[error(
        "the allocator was started without heap profiling: start ztunnel with _RJEM_MALLOC_CONF=prof:true,prof_active:false in its environment"
    )]
    Unavailable,
    #[error(
        "heap profiling is not active: /debug/pprof/heap/profiling?activate=true switches it on, and what is allocated from then on is sampled"
    )]
    Inactive,
    #[error("the allocator refused: {0}")]
    Allocator(tikv_jemalloc_ctl::Error),
    #[error("no file in memory for the allocator: {0}")]
    File(#[source] io::Error),
    #[error("what the allocator wrote is not understood: {0}")]
    Dump(#[from] DumpError),
    #[error("the program cannot be read: {0}")]
    Program(#[from] ProgramError),
    #[error("the profile was not finished: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<tikv_jemalloc_ctl::Error> for HeapError {
    fn from(error: tikv_jemalloc_ctl::Error) -> Self {
        Self::Allocator(error)
    }
}

/// `/debug/pprof/heap`.
pub(in crate::admin) async fn page() -> Response<Full<Bytes>> {
    match Box::pin(profile()).await {
        Ok(body) => server::typed(StatusCode::OK, "application/octet-stream", body),
        Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// `/debug/pprof/heap/profiling`: switches sampling on or off where it is asked to, and says what it is.
pub(in crate::admin) async fn profiling(query: &str) -> Response<Full<Bytes>> {
    let wanted = match query {
        "" => None,
        "activate=true" => Some(true),
        "activate=false" => Some(false),
        _ => return server::text(StatusCode::BAD_REQUEST, USAGE),
    };
    let _running = RUNNING.lock().await;
    match wanted.map_or_else(is_active, switch) {
        Ok(active) => server::text(StatusCode::OK, format!("heap profiling active: {active}\n")),
        Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn is_active() -> Result<bool, HeapError> {
    // An allocator that was built without it does not know the name.
    let started: Result<bool, _> = name(b"opt.prof\0").read();
    if !started.unwrap_or(false) {
        return Err(HeapError::Unavailable);
    }
    Ok(name(b"prof.active\0").read()?)
}

/// Samples that were taken go when sampling ends.
fn switch(active: bool) -> Result<bool, HeapError> {
    if is_active()? != active {
        name(b"prof.active\0").write(active)?;
        if !active {
            let interval: usize = name(b"prof.lg_sample\0").read()?;
            name(b"prof.reset\0").write(interval)?;
        }
        info!(active, "heap profiling switched");
    }
    Ok(active)
}

fn name(name: &'static [u8]) -> &'static Name {
    name.name()
}

async fn profile() -> Result<Vec<u8>, HeapError> {
    let _running = RUNNING.lock().await;
    if !is_active()? {
        return Err(HeapError::Inactive);
    }
    // The allocator writes, files are read and names looked up in them where that keeps nobody waiting.
    spawn_blocking(|| {
        let mut dump = Dump::parse(&written()?)?;
        let addresses = dump.held.iter().flat_map(|held| held.stack.iter());
        let names = Program::running()?.names(addresses.copied());
        for held in &mut dump.held {
            leave_the_allocator(held, |address| names.get(&address).map(String::as_str));
        }
        Ok(encode_heap(&dump.held, dump.interval, &names))
    })
    .await?
}

/// What the allocator knows, as it writes it.
fn written() -> Result<String, HeapError> {
    /// A file that is nowhere, and its path, which the allocator wants for ever.
    static FILE: OnceLock<(File, &'static [u8])> = OnceLock::new();
    let (file, path) = match FILE.get() {
        Some(there) => there,
        None => {
            let file = memfd_create(c"heap-profile", MFdFlags::MFD_CLOEXEC);
            let file = File::from(file.map_err(|error| HeapError::File(error.into()))?);
            let path = format!("/proc/self/fd/{}\0", file.as_raw_fd()).into_bytes();
            FILE.get_or_init(|| (file, Box::leak(path.into_boxed_slice())))
        }
    };
    name(b"prof.dump\0").write(*path)?;
    let mut file: &File = file;
    let read = file.rewind().and_then(|()| io::read_to_string(file));
    // What has been read is not to be held twice.
    read.and_then(|text| file.set_len(0).map(|()| text))
        .map_err(HeapError::File)
}

/// Cuts the allocator's own functions off, which are the innermost of every stack.
fn leave_the_allocator<'a>(held: &mut Held, name: impl Fn(u64) -> Option<&'a str>) {
    let innermost = held.stack.iter().take(ALLOCATOR_FRAMES);
    let places = innermost.enumerate().filter(|(_, address)| {
        let name = name(**address).unwrap_or_default();
        ALLOCATOR.iter().any(|own| name.starts_with(own))
    });
    if let Some(last) = places.map(|(place, _)| place).last() {
        held.stack.drain(..=last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_begin_where_memory_was_asked_for() {
        let check = |names: &[&str], left: &[u64]| {
            let stack = (0..names.len() as u64).collect();
            let mut held = Held {
                stack,
                objects: 1,
                bytes: 1,
            };
            leave_the_allocator(&mut held, |address| {
                names.get(usize::try_from(address).unwrap()).copied()
            });
            assert_eq!(held.stack, left, "{names:?}");
        };
        check(
            &[
                "_rjem_je_prof_backtrace",
                "imalloc",
                "_rjem_malloc",
                "alloc",
            ],
            &[3],
        );
        check(&["_rjem_malloc", "__rust_alloc", "a", "b"], &[2, 3]);
        check(&["a", "b"], &[0, 1]);
        check(&[], &[]);
        let deep: Vec<&str> = [vec!["a"; ALLOCATOR_FRAMES], vec!["_rjem_malloc"]].concat();
        check(&deep, &(0..=ALLOCATOR_FRAMES as u64).collect::<Vec<_>>());
    }

    /// This test's program has another allocator; that of the proxy is asked end to end.
    #[tokio::test]
    async fn switches_have_a_form() {
        for bad in ["activate", "activate=1", "x", "activate=true&x=1"] {
            assert_eq!(
                profiling(bad).await.status(),
                StatusCode::BAD_REQUEST,
                "{bad}"
            );
        }
    }
}
