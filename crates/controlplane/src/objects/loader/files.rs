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
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::objects::{
    decode::{Parsed, decode_document},
    document::{Document, split},
    loader::DOCUMENTS_FILE,
};

/// A file beyond this is a mistake (a dump, an image); it keeps one file from taking the memory of all.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Keeps a wrong directory (say `/`) from being taken for configuration.
const MAX_FILES: usize = 50_000;
/// A file that is written while it is read is read again this often before the last reading is taken.
const READ_ATTEMPTS: usize = 3;
/// Times of files are this coarse: of two writes so near to each other the second may not show. Kernels tick every
/// 10 ms at most; network file systems are coarser and found by the slow second look.
const TICK: Duration = Duration::from_millis(50);
/// Files that come and go while the directory is read; an edit is over long before so many looks.
const SCAN_ATTEMPTS: usize = 3;

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
    /// Another directory than before, with nothing in it: a mount that is missing, or a half-done replacement.
    #[error(
        "{directory} was replaced by an empty directory; put the files back, or remove them one by one to delete what \
         they say"
    )]
    Replaced {
        /// The directory.
        directory: PathBuf,
    },
    /// Nothing is left of what an earlier process read there.
    #[error(
        "{directory} has no YAML files, but had when the control plane last ran; put them back, or remove {DOCUMENTS_FILE} \
         from the state directory if all of it is to be deleted"
    )]
    Emptied {
        /// The directory.
        directory: PathBuf,
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
    /// The same, and files that were read while they may have been written.
    Contents,
}

/// What a file held when it was last read.
#[derive(Debug)]
pub(crate) enum FileState {
    /// Its documents.
    Read {
        documents: Vec<(Arc<Document>, Arc<Parsed>)>,
    },
    /// It is there and cannot be used.
    Unreadable { reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    modified: (i64, i64),
    /// Also moves when somebody sets the other time back.
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
        }
    }

    /// Whether the file was last written so long before that a later write has another time.
    fn is_before(&self, now: SystemTime) -> bool {
        let newest = self.modified.max(self.changed);
        let nanos = i128::from(newest.0) * 1_000_000_000 + i128::from(newest.1);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(now.as_nanos())
            .is_ok_and(|now| nanos + i128::try_from(TICK.as_nanos()).unwrap_or_default() < now)
    }
}

#[derive(Debug)]
struct Entry {
    fingerprint: Option<Fingerprint>,
    /// Whether any later write must show in the fingerprint.
    settled: bool,
    text: Option<String>,
    state: FileState,
}

/// Which directory it is, however it is named.
type DirectoryId = (u64, u64, Option<SystemTime>);

fn directory_id(path: &Path) -> Option<DirectoryId> {
    let metadata = fs::metadata(path).ok()?;
    // Inode numbers are used again, times of birth are not.
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

/// All files.
#[derive(Debug)]
pub(crate) struct Files {
    directories: Vec<PathBuf>,
    /// Files besides, whatever they are called.
    single: Vec<PathBuf>,
    /// Of the directories when they were last listed, in their order.
    listed: Vec<Option<DirectoryId>>,
    entries: BTreeMap<Arc<Path>, Entry>,
}

impl Files {
    pub(crate) fn new(directories: Vec<PathBuf>, single: Vec<PathBuf>) -> Self {
        Self {
            directories,
            single,
            listed: Vec::new(),
            entries: BTreeMap::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<Path>, &FileState)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path, &entry.state))
    }

    /// Whether a file is gone now that was there at the last scan.
    pub(crate) fn misses_some(&self) -> bool {
        // Listing costs far less than asking for each. A directory that cannot be listed is found by the scan.
        let Ok(present) = self.list() else {
            return false;
        };
        let gone = |path: &Arc<Path>| !contains(&present, path);
        self.entries.keys().any(gone)
    }

    /// Reads what changed and says whether anything did.
    pub(crate) fn scan(&mut self, depth: Depth) -> Result<bool, ScanError> {
        for _ in 0..SCAN_ATTEMPTS {
            let listed = self.list()?;
            let mut present = listed.clone();
            let mut changes = Vec::new();
            for path in &listed {
                match self.look(path, depth) {
                    Look::Same => {}
                    Look::Gone => present.retain(|other| other != path),
                    Look::Different(entry) => changes.push((path.clone(), entry)),
                }
            }
            // A file that went while we looked was deleted, or its directory was moved away, which must not count as
            // deleting all: only two equal lists are believed.
            if self.list()? == listed {
                self.listed = self.directory_ids();
                return Ok(self.take(&present, changes));
            }
        }
        // Still in motion; the events of that, or the next regular look, lead here again.
        Ok(false)
    }

    fn list(&self) -> Result<Vec<PathBuf>, ScanError> {
        let mut present = self.single.clone();
        for (index, directory) in self.directories.iter().enumerate() {
            let before = present.len();
            list(directory, &mut present)?;
            if present.len() == before && self.is_replaced(index, directory) {
                let directory = directory.clone();
                return Err(ScanError::Replaced { directory });
            }
        }
        // By bytes: comparing paths part by part takes several times as long.
        present.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        present.dedup();
        Ok(present)
    }

    fn directory_ids(&self) -> Vec<Option<DirectoryId>> {
        let directories = self.directories.iter();
        directories.map(|path| directory_id(path)).collect()
    }

    /// Whether it had files and is another directory now.
    fn is_replaced(&self, index: usize, directory: &Path) -> bool {
        let had_files = self
            .entries
            .keys()
            .any(|path| path.parent() == Some(directory));
        let known = self.listed.get(index).copied().flatten();
        had_files && known.is_some() && known != directory_id(directory)
    }

    /// A directory that an earlier process had files of and that has none now.
    pub(crate) fn emptied<'a>(
        &self,
        mut earlier: impl Iterator<Item = &'a Path>,
    ) -> Option<&PathBuf> {
        let now = |directory: &&PathBuf| {
            let mut paths = self.entries.keys();
            !paths.any(|path| path.parent() == Some(directory))
        };
        let empty: Vec<&PathBuf> = self.directories.iter().filter(now).collect();
        earlier.find_map(|path| {
            let mut empty = empty.iter();
            empty
                .find(|directory| path.parent() == Some(directory))
                .copied()
        })
    }

    fn take(&mut self, present: &[PathBuf], changes: Vec<(PathBuf, Entry)>) -> bool {
        let before = self.entries.len();
        self.entries.retain(|path, _| contains(present, path));
        let mut changed = self.entries.len() != before;
        for (path, entry) in changes {
            let known = self.entries.get(path.as_path());
            changed |= known.is_none_or(|known| !known.says_the_same(&entry));
            self.entries.insert(path.into(), entry);
        }
        changed
    }

    fn look(&self, path: &Path, depth: Depth) -> Look {
        let known = self.entries.get(path);
        if let (Some(entry), Ok(metadata)) = (known, fs::metadata(path))
            && entry.fingerprint == Some(Fingerprint::of(&metadata))
            && (depth == Depth::Stat || entry.settled)
        {
            return Look::Same;
        }
        let now = SystemTime::now();
        match read(path) {
            Ok(Reading::Gone) => Look::Gone,
            Ok(Reading::NotAFile) => Look::Same,
            Ok(Reading::Text(fingerprint, text)) => {
                let settled = fingerprint.is_before(now);
                let same = known.is_some_and(|entry| {
                    entry.fingerprint == Some(fingerprint)
                        && entry.settled == settled
                        && entry.text.as_ref() == Some(&text)
                });
                if same {
                    return Look::Same;
                }
                Look::Different(Entry {
                    fingerprint: Some(fingerprint),
                    settled,
                    state: FileState::Read {
                        documents: parse(&text, known),
                    },
                    text: Some(text),
                })
            }
            Err(reason) => Look::Different(Entry {
                fingerprint: None,
                settled: false,
                text: None,
                state: FileState::Unreadable { reason },
            }),
        }
    }
}

/// Whether a sorted list has the path.
fn contains(sorted: &[PathBuf], path: &Path) -> bool {
    let found = sorted.binary_search_by(|other| other.as_os_str().cmp(path.as_os_str()));
    found.is_ok()
}

/// What a look at a file found.
enum Look {
    Same,
    Gone,
    Different(Entry),
}

impl Entry {
    /// Touching a file changes nothing.
    fn says_the_same(&self, other: &Self) -> bool {
        match (&self.state, &other.state) {
            (FileState::Read { .. }, FileState::Read { .. }) => self.text == other.text,
            (FileState::Unreadable { reason }, FileState::Unreadable { reason: after }) => {
                reason == after
            }
            (FileState::Read { .. }, FileState::Unreadable { .. })
            | (FileState::Unreadable { .. }, FileState::Read { .. }) => false,
        }
    }
}

/// Documents of a text, taking the reading of those that were there before.
fn parse(text: &str, before: Option<&Entry>) -> Vec<(Arc<Document>, Arc<Parsed>)> {
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
            (Arc::new(document), parsed)
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

/// What reading a path gave.
enum Reading {
    Text(Fingerprint, String),
    Gone,
    /// A directory of that name.
    NotAFile,
}

fn read(path: &Path) -> Result<Reading, String> {
    let mut last = Reading::Gone;
    for _ in 0..READ_ATTEMPTS {
        match read_once(path) {
            Ok(Some((fingerprint, text, steady))) => {
                last = Reading::Text(fingerprint, text);
                if steady == Steady::Yes {
                    return Ok(last);
                }
            }
            Ok(None) => return Ok(Reading::NotAFile),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What a link led to may be away for a while (a mount); the link is still there.
                return match fs::symlink_metadata(path) {
                    Ok(_) => Err("a link that leads nowhere".to_owned()),
                    Err(_) => Ok(Reading::Gone),
                };
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(last)
}

/// Whether a file stayed the same while it was read.
#[derive(PartialEq, Eq)]
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
