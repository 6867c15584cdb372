//! The files of the watched directories and what was read from them.
//!
//! A document whose text did not change is not parsed again, so that an edit costs what it touches.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::objects::{
    decode::{Parsed, decode_document},
    document::{Document, split},
};

/// A file beyond this is a mistake (a dump, an image); it keeps one file from taking the memory of all.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Keeps a wrong directory (say `/`) from being taken for configuration.
const MAX_FILES: usize = 10_000;
/// A file that is written while it is read is read again this often before the last reading is taken.
const READ_ATTEMPTS: usize = 3;

/// A directory cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Reading it failed.
    #[error("cannot read directory {directory}")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More files than a configuration has.
    #[error("more than {MAX_FILES} YAML files in {directory}; is it the right directory?")]
    TooMany {
        /// The directory.
        directory: PathBuf,
    },
}

/// How carefully to look for changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Files whose time, size or inode changed.
    Stat,
    /// Every file, by content.
    Contents,
}

/// What a file held when it was last read.
#[derive(Debug)]
pub(crate) enum FileState {
    /// Its documents.
    Read {
        documents: Vec<(Document, Arc<Parsed>)>,
    },
    /// It is there and cannot be used.
    Unreadable { reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    fingerprint: Option<Fingerprint>,
    text: Option<String>,
    state: FileState,
}

/// All files.
#[derive(Debug)]
pub(crate) struct Files {
    directories: Vec<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Files {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            entries: BTreeMap::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &FileState)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_path(), &entry.state))
    }

    /// Reads what changed and says whether anything did.
    pub(crate) fn scan(&mut self, depth: Depth) -> Result<bool, ScanError> {
        let mut present = Vec::new();
        for directory in &self.directories {
            list(directory, &mut present)?;
        }
        present.sort();
        present.dedup();
        let before = self.entries.len();
        self.entries
            .retain(|path, _| present.binary_search(path).is_ok());
        let mut changed = self.entries.len() != before;
        for path in present {
            changed |= self.refresh(path, depth);
        }
        Ok(changed)
    }

    fn refresh(&mut self, path: PathBuf, depth: Depth) -> bool {
        let known = self.entries.get(&path);
        if depth == Depth::Stat
            && let (Some(entry), Ok(metadata)) = (known, fs::metadata(&path))
            && entry.fingerprint == Some(Fingerprint::of(&metadata))
        {
            return false;
        }
        match read(&path) {
            Ok(None) => self.entries.remove(&path).is_some(),
            Ok(Some((fingerprint, text))) => {
                if known.is_some_and(|entry| entry.text.as_ref() == Some(&text)) {
                    if let Some(entry) = self.entries.get_mut(&path) {
                        entry.fingerprint = Some(fingerprint);
                    }
                    return false;
                }
                let documents = parse(&text, known);
                self.entries.insert(
                    path,
                    Entry {
                        fingerprint: Some(fingerprint),
                        text: Some(text),
                        state: FileState::Read { documents },
                    },
                );
                true
            }
            Err(reason) => {
                let same = matches!(known.map(|entry| &entry.state),
                    Some(FileState::Unreadable { reason: before }) if *before == reason);
                let entry = Entry {
                    fingerprint: None,
                    text: None,
                    state: FileState::Unreadable { reason },
                };
                self.entries.insert(path, entry);
                !same
            }
        }
    }
}

/// Documents of a text, taking the reading of those that were there before.
fn parse(text: &str, before: Option<&Entry>) -> Vec<(Document, Arc<Parsed>)> {
    let mut known: HashMap<&str, &Arc<Parsed>> = HashMap::new();
    if let Some(FileState::Read { documents }) = before.map(|entry| &entry.state) {
        known.extend(
            documents
                .iter()
                .map(|(document, parsed)| (document.text.as_str(), parsed)),
        );
    }
    let read = |document: &Document| match known.get(document.text.as_str()) {
        Some(parsed) => Arc::clone(parsed),
        None => Arc::new(decode_document(document)),
    };
    split(text)
        .into_iter()
        .map(|document| {
            let parsed = read(&document);
            (document, parsed)
        })
        .collect()
}

fn list(directory: &Path, found: &mut Vec<PathBuf>) -> Result<(), ScanError> {
    let failed = |source| ScanError::Directory {
        directory: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        // Hidden files are those of editors.
        if name.starts_with('.') || !(name.ends_with(".yaml") || name.ends_with(".yml")) {
            continue;
        }
        found.push(path);
        if found.len() > MAX_FILES {
            return Err(ScanError::TooMany {
                directory: directory.to_owned(),
            });
        }
    }
    Ok(())
}

/// The text of a file, `None` when it has gone meanwhile or is a directory.
fn read(path: &Path) -> Result<Option<(Fingerprint, String)>, String> {
    let mut last = None;
    for _ in 0..READ_ATTEMPTS {
        match read_once(path) {
            Ok(Some((fingerprint, text, Steady::Yes))) => return Ok(Some((fingerprint, text))),
            Ok(Some((fingerprint, text, Steady::No))) => last = Some((fingerprint, text)),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(last)
}

/// Whether a file stayed the same while it was read.
enum Steady {
    Yes,
    No,
}

fn read_once(path: &Path) -> io::Result<Option<(Fingerprint, String, Steady)>> {
    // Not opened before it is known to be a file: a pipe would block.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Ok(None);
    }
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let before = Fingerprint::of(&file.metadata()?);
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_FILE_BYTES + 1);
    limited.read_to_end(&mut bytes)?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    let after = Fingerprint::of(&limited.into_inner().metadata()?);
    let text = String::from_utf8(bytes)
        .map_err(|error| io::Error::other(format!("not UTF-8 text: {}", error.utf8_error())))?;
    let steady = if before == after && after.size == size {
        Steady::Yes
    } else {
        Steady::No
    };
    Ok(Some((after, text, steady)))
}
