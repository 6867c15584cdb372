//! What can go wrong, and at which step.

use std::{error::Error, fmt, path::PathBuf};

/// The reason below a failed step, from the kernel or from aya.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why capture could not be put on or taken off.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The instance names a directory.
    #[error("instance name `{0}` must be 1 to 64 letters, digits, `-` or `_`")]
    Instance(String),
    /// Pins of an incompatible version exist.
    #[error(
        "{path} was made by another version of leyline (ABI {found}, this one has {ours}); un-enrol its pods with that version first"
    )]
    AbiMismatch {
        /// The node's directory of pins.
        path: PathBuf,
        /// As the pins say.
        found: u32,
        /// Of this build.
        ours: u32,
    },
    /// A pod owns more addresses than the map of its addresses holds.
    #[error(
        "pod namespace {cookie} has {count} addresses, more than the {limit} that capture can know"
    )]
    TooManyAddresses {
        /// Of the namespace.
        cookie: u64,
        /// Found.
        count: usize,
        /// Possible.
        limit: usize,
    },
    /// A step of the node's own capture failed.
    #[error("node capture failed at {step}: {source}")]
    Node {
        /// Which.
        step: NodeStep,
        /// Why.
        source: Cause,
    },
    /// A step in a pod failed.
    #[error("capture of pod namespace {cookie} failed at {step}: {source}")]
    Pod {
        /// Cookie of the namespace.
        cookie: u64,
        /// Which.
        step: PodStep,
        /// Why.
        source: Cause,
    },
}

impl CaptureError {
    pub(crate) fn node<E: Into<Cause>>(step: NodeStep) -> impl FnOnce(E) -> Self {
        move |source| Self::Node {
            step,
            source: source.into(),
        }
    }

    pub(crate) fn pod<E: Into<Cause>>(cookie: u64, step: PodStep) -> impl FnOnce(E) -> Self {
        move |source| Self::Pod {
            cookie,
            step,
            source: source.into(),
        }
    }
}

/// Steps of [`NodeCapture::attach`](crate::NodeCapture::attach) and of the final removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStep {
    /// Mounting the BPF file system.
    MountBpffs,
    /// Making or reading the directories of pins.
    Directories,
    /// Finding or mounting cgroup2.
    OpenCgroup,
    /// Reading the namespace whose probes are recognised.
    HostNamespace,
    /// Loading the object and its maps.
    LoadObject,
    /// Writing to a map.
    WriteMap,
    /// Loading one program.
    LoadProgram(&'static str),
    /// Attaching one program, or putting it in the place of a pinned one.
    AttachProgram(&'static str),
    /// Waiting for a blocking task.
    Task,
}

impl fmt::Display for NodeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MountBpffs => f.write_str("mounting the bpf file system"),
            Self::Directories => f.write_str("the directories of pins"),
            Self::OpenCgroup => f.write_str("opening the root of cgroup2"),
            Self::HostNamespace => f.write_str("reading the node's network namespace"),
            Self::LoadObject => {
                f.write_str("loading the bpf object (root and kernel 5.14 or later?)")
            }
            Self::WriteMap => f.write_str("writing to a map"),
            Self::LoadProgram(name) => write!(f, "loading program {name}"),
            Self::AttachProgram(name) => write!(f, "attaching program {name}"),
            Self::Task => f.write_str("waiting for a task"),
        }
    }
}

/// Steps of enrolment and removal of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodStep {
    /// Duplicating the sockets to hand over.
    Sockets,
    /// Entering the namespace.
    EnterNamespace,
    /// Making, reading or removing the pod's pins.
    Pins,
    /// Reading the namespace's addresses.
    ReadAddresses,
    /// Opening the pod's maps.
    LoadObject,
    /// Writing the addresses.
    WriteAddresses,
    /// Writing the pod's flags.
    WriteFlags,
    /// Putting the sockets into the map.
    WriteSockets,
    /// Loading the socket lookup program.
    LoadSteer,
    /// Attaching the socket lookup program.
    AttachSteer,
    /// Reading or writing sysctls.
    Sysctls,
    /// Adding or removing routes and rules.
    Routes,
    /// Writing the enrolment.
    WriteEnrolment,
    /// Finding the interfaces of guests, or attaching to them.
    Guests,
    /// Reading counters.
    ReadCounters,
    /// Waiting for a blocking task.
    Task,
}

impl fmt::Display for PodStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockets => "duplicating the sockets",
            Self::EnterNamespace => "entering the namespace",
            Self::Pins => "the pod's pins",
            Self::ReadAddresses => "reading its addresses",
            Self::LoadObject => "opening its maps",
            Self::WriteAddresses => "writing its addresses",
            Self::WriteFlags => "writing its flags",
            Self::WriteSockets => "writing the proxy's sockets (are they listening?)",
            Self::LoadSteer => "loading the socket lookup program",
            Self::AttachSteer => "attaching the socket lookup program",
            Self::Sysctls => "its sysctls (is /proc/sys writable?)",
            Self::Routes => "its routes and rules",
            Self::WriteEnrolment => "writing the enrolment",
            Self::Guests => "the interfaces of its guests",
            Self::ReadCounters => "reading its counters",
            Self::Task => "waiting for a task",
        })
    }
}
