//! The directory that holds what a control plane must not lose or show: the CA's key, the token key, who is enrolled.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

const DIRECTORY_MODE: u32 = 0o700;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
/// Any right of group or others.
const OTHERS: u32 = 0o077;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading, writing or creating failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else made it, and could replace what is in it.
    #[error("{path} belongs to user {owner}, not to user {user} who runs this")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// Others than the owner could read or replace a secret.
    #[error(
        "{path} has mode {mode:04o}, so that others can read it; make it {want:04o} (and think about replacing it)"
    )]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// As it is.
        mode: u32,
        /// As it must be.
        want: u32,
    },
}

/// Whether a secret was made now or was there before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Creation {
    New,
    Existing,
}

/// A directory of mode 0700.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Creates the directory, or checks that only its owner can look into it. A directory without secrets is made so.
    ///
    /// # Errors
    /// When it cannot be created, or holds secrets that others could read.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let directory = Self {
            path: path.to_owned(),
        };
        let failed = |action| move |source| io_error(action, path, source);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)
            .map_err(failed("create"))?;
        let metadata = fs::metadata(path).map_err(failed("read"))?;
        // The owner of a process's own entry is its effective user.
        let user = fs::metadata("/proc/self")
            .map(|own| own.uid())
            .map_err(failed("find out who runs this from"))?;
        if metadata.uid() != user {
            return Err(StateError::Owner {
                path: path.to_owned(),
                owner: metadata.uid(),
                user,
            });
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            if fs::read_dir(path).map_err(failed("read"))?.next().is_some() {
                return Err(StateError::Mode {
                    path: path.to_owned(),
                    mode,
                    want: DIRECTORY_MODE,
                });
            }
            fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
                .map_err(failed("change the mode of"))?;
        }
        Ok(directory)
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of a file, `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path, error)),
        }
    }

    /// The same for a file that only its owner may read.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name);
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path, error)),
        };
        if mode & OTHERS != 0 {
            return Err(StateError::Mode {
                path,
                mode,
                want: SECRET_MODE,
            });
        }
        self.read(name)
    }

    /// Writes a secret unless it exists; two processes that start at once agree on one.
    pub(crate) fn create_secret(&self, name: &str, bytes: &[u8]) -> Result<Creation, StateError> {
        let path = self.file(name);
        let temporary = self.write_temporary(name, bytes, SECRET_MODE)?;
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary).map_err(|error| io_error("remove", &temporary, error))?;
        match linked {
            Ok(()) => Ok(Creation::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Creation::Existing),
            Err(error) => Err(io_error("create", &path, error)),
        }
    }

    /// Replaces a file that is no secret, all or nothing.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.replace_with(name, bytes, PUBLIC_MODE)
    }

    /// Replaces a file that may hold secrets, all or nothing.
    pub(crate) fn replace_secret(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.replace_with(name, bytes, SECRET_MODE)
    }

    fn replace_with(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), StateError> {
        let path = self.file(name);
        let temporary = self.write_temporary(name, bytes, mode)?;
        fs::rename(&temporary, &path).map_err(|error| io_error("replace", &path, error))
    }

    fn write_temporary(&self, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, StateError> {
        let path = self.file(&format!(".{name}.{:016x}", rand::random::<u64>()));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| io_error("write", &path, error))?;
        Ok(path)
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
