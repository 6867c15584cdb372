//! Whether a file has changed since it was last looked at.
//!
//! Files are looked at once in a while instead of being watched: Kubernetes replaces a symbolic link two levels above them,
//! file and directory may be missing, and one `stat` costs nothing.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// What tells one state of a file from another, through all symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not looked at yet.
    Nothing,
    Missing,
    File {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
    },
    Unreadable(io::ErrorKind),
}

impl Seen {
    pub(crate) fn at(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(file) => Self::File {
                device: file.dev(),
                inode: file.ino(),
                size: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(error) => Self::Unreadable(error.kind()),
        }
    }
}
