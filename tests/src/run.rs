//! One run of a local mesh: its id, its directory, and the removal of everything that bears the id.
//!
//! All that a run leaves in the kernel can be found from its directory: namespaces are mounts below it or are named after
//! the id, processes are recorded in it, BPF objects are pinned in a bpffs mounted in it. So removal needs no memory of
//! the run and works the same at its end, on Ctrl-C, and long after it was killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PARENT: &str = "/run";
const PREFIX: &str = "leyline-";
/// Where `ip netns` looks, so that its users see our nodes too.
const NAMED_NAMESPACES: &str = "/run/netns";
/// Interface names have 15 characters and namespaces are typed by people: ids stay short.
const ID_LENGTH: usize = 24;

/// A claimed run. Dropping it removes the run unless it was told to stay.
#[derive(Debug)]
pub struct Run {
    id: String,
    dir: PathBuf,
    at_end: AtEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtEnd {
    Remove,
    Stay,
}

/// What removal has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes that were still running.
    pub processes: usize,
    /// Namespaces.
    pub namespaces: usize,
}

impl Run {
    /// Takes `id`, or says that it is taken.
    pub fn claim(id: &str) -> Result<Self> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !id.is_empty() && id.len() <= ID_LENGTH && id.chars().all(valid),
            "a run id has 1 to {ID_LENGTH} lower case letters, digits and hyphens, not `{id}`"
        );
        let dir = directory(id);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                bail!(
                    "a mesh with the id `{id}` is already there: {}",
                    dir.display()
                )
            }
            Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
        }
        let run = Self {
            id: id.to_owned(),
            dir,
            at_end: AtEnd::Remove,
        };
        run.furnish()?;
        Ok(run)
    }

    /// A run with an id that no other has, for a test.
    pub fn unique() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::claim(&format!("t{}-{number}", std::process::id()))
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Everything of the run lies here.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The YAML that the control plane reads.
    pub fn config_dir(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// What the control plane keeps: root certificate, keys.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The network namespaces of pods, as `<namespace>_<pod>`.
    pub fn pods_dir(&self) -> PathBuf {
        self.dir.join("pods")
    }

    /// Output of every process.
    pub fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A bpffs of the run's own: unmounting it frees all that was pinned.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Tokens and certificates for the processes.
    pub fn secrets_dir(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// Where the namespace of a node, of the infrastructure or of a guest is mounted.
    pub fn namespace_path(&self, name: &str) -> PathBuf {
        Path::new(NAMED_NAMESPACES).join(namespace_name(&self.id, name))
    }

    /// Writes down a process, so that removal finds it.
    pub fn record_process(&self, pid: u32, name: &str) -> Result<()> {
        let path = processes_dir(&self.dir).join(format!("{pid}"));
        let start = start_time(pid).with_context(|| format!("{name} (process {pid}) is gone"))?;
        fs::write(&path, format!("{pid} {start} {name}\n"))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Lets the run outlive this process; [`remove`] ends it later.
    pub fn stay(mut self) -> Result<()> {
        fs::write(self.dir.join("stays"), "")?;
        self.at_end = AtEnd::Stay;
        Ok(())
    }

    fn furnish(&self) -> Result<()> {
        let own = std::process::id();
        let start = start_time(own).context("reading /proc of this process")?;
        // Appears as a whole: a run beside this one takes an owner that it cannot read for a dead one.
        let unfinished = self.dir.join("owner.new");
        fs::write(&unfinished, format!("{own} {start}\n"))?;
        fs::rename(&unfinished, self.dir.join("owner"))?;
        for dir in [
            self.config_dir(),
            self.state_dir(),
            self.pods_dir(),
            self.logs_dir(),
            self.secrets_dir(),
            self.bpffs(),
            processes_dir(&self.dir),
        ] {
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        fs::create_dir_all(NAMED_NAMESPACES)?;
        mount(
            Some("bpf"),
            &self.bpffs(),
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("mounting a bpffs on {}", self.bpffs().display()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.at_end == AtEnd::Remove
            && let Err(e) = remove(&self.id)
        {
            tracing::error!(run = %self.id, error = format!("{e:#}"), "cannot remove all of the run");
        }
    }
}

/// Whether anything of a run with this id is there.
pub fn exists(id: &str) -> bool {
    directory(id).exists()
        || namespaces_of(Path::new(NAMED_NAMESPACES), &namespace_name(id, ""))
            .is_ok_and(|found| !found.is_empty())
}

/// Ends the processes of a run and removes its namespaces, BPF objects and files. What is not there is no error.
pub fn remove(id: &str) -> Result<Removed> {
    let dir = directory(id);
    let mut removed = Removed {
        processes: kill_recorded(&processes_dir(&dir))?,
        namespaces: 0,
    };
    unmount(&dir.join("bpf"))?;
    let mut namespaces = namespaces_of(&dir.join("pods"), "")?;
    namespaces.extend(namespaces_of(
        Path::new(NAMED_NAMESPACES),
        &namespace_name(id, ""),
    )?);
    for path in namespaces {
        unmount(&path)?;
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        removed.namespaces += 1;
    }
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(()) | Err(_) => {}
    }
    Ok(removed)
}

/// Removes the runs whose owner has died without doing so itself, except those that were told to stay.
pub fn remove_abandoned() -> Result<()> {
    for entry in fs::read_dir(PARENT)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let owner = entry.path().join("owner");
        if !entry.path().join("stays").exists()
            && fs::read_to_string(owner).is_ok_and(|record| living(&record).is_none())
        {
            remove(id)?;
        }
    }
    Ok(())
}

fn directory(id: &str) -> PathBuf {
    Path::new(PARENT).join(format!("{PREFIX}{id}"))
}

fn processes_dir(dir: &Path) -> PathBuf {
    dir.join("processes")
}

fn namespace_name(id: &str, name: &str) -> String {
    format!("ley-{id}-{name}")
}

/// Files in `dir` whose name starts with `prefix`; none when there is no such directory.
fn namespaces_of(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount (its making was interrupted), or not there.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("unmounting {}", path.display())),
    }
}

fn kill_recorded(dir: &Path) -> Result<usize> {
    let mut killed = 0;
    for record in namespaces_of(dir, "")? {
        let Some(pid) = living(&fs::read_to_string(&record)?) else {
            continue;
        };
        if kill(pid, Signal::SIGKILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

/// The process of a record `pid start ..`, if it still runs and is not another one with the same number.
fn living(record: &str) -> Option<Pid> {
    let mut words = record.split_whitespace();
    let pid = words.next()?.parse::<u32>().ok()?;
    let start = words.next()?.parse::<u64>().ok()?;
    (start_time(pid)? == start).then(|| i32::try_from(pid).ok().map(Pid::from_raw))?
}

/// When a process was started, in ticks since boot; `None` when it is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted after it (proc_pid_stat(5): state is field 3).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    match fields.first()? {
        &"Z" | &"X" => None,
        _ => fields.get(19)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_of_one_process_only() {
        let own = std::process::id();
        let start = start_time(own).unwrap();
        assert!(living(&format!("{own} {start} me")).is_some());
        assert!(living(&format!("{own} {} me", start + 1)).is_none());
        assert!(living("").is_none());
    }

    #[test]
    fn ids_that_would_leave_the_directory_are_refused() {
        for bad in ["", "..", "a/b", "Demo", "a_b", "0123456789012345678901234"] {
            assert!(Run::claim(bad).is_err(), "{bad}");
        }
    }
}
