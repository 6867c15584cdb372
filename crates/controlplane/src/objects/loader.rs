//! Reads the files, keeps what was good, and puts the objects together.
//!
//! Only what was clearly deleted is deleted: losing a policy or an `ambient` label opens what was closed. What is broken
//! keeps its last good version, also when it cannot be told which object it was (then all of the file), when the same
//! edit renamed it (then what was at that place in the file), and when a copy of the object elsewhere could step in. A
//! directory that cannot be read or that another, empty one replaced changes nothing.

mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objects::{
    decode::{Decoded, Part, Problem, Slot, decode_document, field_from_text, merge_patch},
    document::Document,
    key::{Kind, ObjectKey},
    set::{Issue, Object, Objects, Severity},
};
use files::{FileState, Files};

/// Last good versions of documents, in the state directory.
pub(crate) const DOCUMENTS_FILE: &str = "last-good.json";

pub(crate) use files::Depth;
pub use files::ScanError;

/// Where an object was read.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// The document within it, from 1.
    pub document: usize,
    source: Arc<Document>,
    decoded: Arc<Decoded>,
}

/// A document with a good object in it, in a form that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoodDocument {
    file: Arc<Path>,
    number: usize,
    document: Arc<Document>,
}

impl Origin {
    /// An issue about a field of the object, found after reading.
    pub fn warning(&self, field: &str, reason: String) -> Issue {
        let line = self.decoded.line_of(&field_from_text(field));
        Issue {
            file: self.file.to_path_buf(),
            document: self.document,
            line: Some(in_file(self.source.first_line, line)),
            object: Some(self.decoded.slot.key.to_string()),
            field: Some(field.to_owned()),
            reason,
            severity: Severity::Warning,
        }
    }
}

/// Lines are counted from 1 in the document and in the file.
fn in_file(first_line: usize, line: u64) -> u64 {
    u64::try_from(first_line)
        .unwrap_or(u64::MAX)
        .saturating_add(line.saturating_sub(1))
}

/// The outcome of reading everything.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The valid objects, and last good versions of the invalid ones.
    pub objects: Arc<Objects>,
    /// Where each was read.
    pub origins: Arc<BTreeMap<ObjectKey, Origin>>,
    /// What is wrong, in the order of files, documents and lines.
    pub issues: Vec<Issue>,
    /// What a later process needs to keep the last good versions.
    pub documents: Arc<[GoodDocument]>,
}

/// Reads directories again and again, and remembers the last good version of each object.
#[derive(Debug)]
pub struct Loader {
    files: Files,
    good: BTreeMap<Slot, Origin>,
    /// Pods with their status patch, so that only what changed is merged again.
    merged: BTreeMap<Slot, Merged>,
}

/// An object and the patch it was merged from.
#[derive(Debug)]
struct Merged {
    object: Arc<Decoded>,
    patch: Arc<Decoded>,
    result: Object,
}

impl Loader {
    /// Will read `*.yaml` and `*.yml` directly in these directories.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self::of(Files::new(directories, Vec::new()))
    }

    /// Likewise, and these files; for a single reading.
    pub fn with_files(directories: Vec<PathBuf>, files: Vec<PathBuf>) -> Self {
        Self::of(Files::new(directories, files))
    }

    fn of(files: Files) -> Self {
        Self {
            files,
            good: BTreeMap::new(),
            merged: BTreeMap::new(),
        }
    }

    /// Takes the last good versions of an earlier process: an object whose document is broken at the start is then not
    /// lost, which for a policy would mean not enforced.
    pub fn remember(&mut self, documents: Vec<GoodDocument>) {
        for good in documents {
            for decoded in decode_document(&good.document).objects {
                let origin = Origin {
                    file: Arc::clone(&good.file),
                    document: good.number,
                    source: Arc::clone(&good.document),
                    decoded,
                };
                self.good.insert(origin.decoded.slot.clone(), origin);
            }
        }
    }

    /// Reads everything; an error when a directory cannot be read, or lost all that is remembered of it.
    ///
    /// # Errors
    /// Names the directory.
    pub fn load(&mut self) -> Result<Loaded, ScanError> {
        let first = self.files.iter().next().is_none();
        self.files.scan(Depth::Contents)?;
        let remembered = self.good.values().map(|origin| &*origin.file);
        if first && let Some(directory) = self.files.emptied(remembered) {
            let directory = directory.clone();
            return Err(ScanError::Emptied { directory });
        }
        Ok(self.assemble())
    }

    /// Reads again what may have changed; `None` when nothing did.
    ///
    /// # Errors
    /// When a directory cannot be read; then nothing changes.
    pub(crate) fn reload(&mut self, depth: Depth) -> Result<Option<Loaded>, ScanError> {
        Ok(self.files.scan(depth)?.then(|| self.assemble()))
    }

    /// Whether a file is gone now that was there at the last reading.
    pub(crate) fn misses_files(&self) -> bool {
        self.files.misses_some()
    }

    fn assemble(&mut self) -> Loaded {
        let mut gathered = Gathered::default();
        for (path, file) in self.files.iter() {
            gathered.add_file(path, file);
        }
        let mut issues = std::mem::take(&mut gathered.issues);
        let mut good = BTreeMap::new();
        for (slot, claimants) in std::mem::take(&mut gathered.claims) {
            let before = self.good.get(&slot);
            let owner = choose_owner(&claimants, before, &gathered.held);
            for (index, claimant) in claimants.into_iter().enumerate() {
                if Some(index) == owner {
                    good.insert(slot.clone(), claimant);
                } else {
                    issues.push(claimant.duplicate());
                }
            }
        }
        for (slot, origin) in std::mem::take(&mut self.good) {
            if !good.contains_key(&slot) && gathered.held.keeps(&origin) {
                good.insert(slot, origin);
            }
        }
        self.good = good;
        let objects = self.objects(&mut issues);
        issues.sort();
        issues.dedup();
        Loaded {
            objects: Arc::new(objects),
            origins: Arc::new(self.origins()),
            issues,
            documents: self.documents().into(),
        }
    }

    fn documents(&self) -> Vec<GoodDocument> {
        let mut documents: Vec<GoodDocument> = Vec::new();
        for origin in self.good.values() {
            let known = documents
                .last()
                .is_some_and(|last| Arc::ptr_eq(&last.document, &origin.source));
            // Items of one list may be apart; then the list is kept twice, which is harmless.
            if !known {
                documents.push(GoodDocument {
                    file: Arc::clone(&origin.file),
                    number: origin.document,
                    document: Arc::clone(&origin.source),
                });
            }
        }
        documents
    }

    fn origins(&self) -> BTreeMap<ObjectKey, Origin> {
        let whole = self
            .good
            .iter()
            .filter(|(slot, _)| slot.part == Part::Whole);
        whole
            .map(|(slot, origin)| (slot.key.clone(), origin.clone()))
            .collect()
    }

    fn objects(&mut self, issues: &mut Vec<Issue>) -> Objects {
        let mut objects = Objects::default();
        let mut known = std::mem::take(&mut self.merged);
        for (slot, origin) in &self.good {
            if slot.part == Part::Whole {
                let object = match self.good.get(&slot.status()) {
                    Some(patch) => {
                        let merged =
                            with_status(&origin.decoded, &patch.decoded, known.remove(slot));
                        let object = merged.result.clone();
                        self.merged.insert(slot.clone(), merged);
                        object
                    }
                    None => origin.decoded.object.clone(),
                };
                objects.insert(&slot.key, object);
            } else if !self.good.contains_key(&slot.whole()) {
                // These make sense without a spec.
                if matches!(slot.key.kind, Kind::Namespace | Kind::Node) {
                    objects.insert(&slot.key, origin.decoded.object.clone());
                } else {
                    let reason = "a status, but no document has the object itself".to_owned();
                    issues.push(origin.warning("status", reason));
                }
            }
        }
        objects
    }
}

/// An object with its status patch, taken from the earlier merge if that was of the same two.
fn with_status(object: &Arc<Decoded>, patch: &Arc<Decoded>, known: Option<Merged>) -> Merged {
    let same =
        |merged: &Merged| Arc::ptr_eq(&merged.object, object) && Arc::ptr_eq(&merged.patch, patch);
    known.filter(same).unwrap_or_else(|| Merged {
        object: Arc::clone(object),
        patch: Arc::clone(patch),
        result: merge(&object.object, patch.status.as_ref()),
    })
}

/// Only a pod's status says something to a mesh.
fn merge(object: &Object, patch: Option<&Value>) -> Object {
    let (Object::Pod(pod), Some(patch)) = (object, patch) else {
        return object.clone();
    };
    let mut merged = serde_json::to_value(&pod.status).unwrap_or(Value::Null);
    merge_patch(&mut merged, patch);
    let mut pod = k8s_openapi::api::core::v1::Pod::clone(pod);
    // Both halves are valid statuses; should their merge not be one, the patch alone is.
    pod.status = serde_json::from_value(merged)
        .or_else(|_| serde_json::from_value(patch.clone()))
        .unwrap_or(pod.status);
    Object::Pod(Arc::new(pod))
}

impl Slot {
    fn whole(&self) -> Self {
        Self {
            key: self.key.clone(),
            part: Part::Whole,
        }
    }

    fn status(&self) -> Self {
        Self {
            key: self.key.clone(),
            part: Part::Status,
        }
    }
}

impl Origin {
    fn duplicate(&self) -> Issue {
        let mut issue = self.warning(
            "metadata.name",
            "another document already defines this object".to_owned(),
        );
        issue.severity = Severity::Rejected;
        issue
    }
}

/// Who owned the object before goes on owning it; otherwise the first in the order of files and documents. `None` when
/// the owner's document is broken now: a forgotten copy elsewhere must not take its place.
fn choose_owner(claimants: &[Origin], before: Option<&Origin>, held: &Held) -> Option<usize> {
    let Some(before) = before else { return Some(0) };
    let exactly = claimants
        .iter()
        .position(|c| c.file == before.file && c.document == before.document);
    let owner = exactly.or_else(|| claimants.iter().position(|c| c.file == before.file));
    match owner {
        None if held.keeps(before) => None,
        owner => Some(owner.unwrap_or(0)),
    }
}

/// What must not be taken for deleted, because something is broken where it was.
#[derive(Default)]
struct Held {
    /// Objects with a broken document now, wherever it is.
    slots: BTreeSet<Slot>,
    /// Broken documents by file and number: one that was renamed and broken in one edit.
    places: BTreeSet<(Arc<Path>, usize)>,
    /// Files with a document that does not even tell its name, or that cannot be read.
    files: BTreeSet<Arc<Path>>,
}

impl Held {
    fn keeps(&self, origin: &Origin) -> bool {
        self.files.contains(&origin.file)
            || self
                .places
                .contains(&(Arc::clone(&origin.file), origin.document))
            || self.slots.contains(&origin.decoded.slot)
    }
}

#[derive(Default)]
struct Gathered {
    claims: BTreeMap<Slot, Vec<Origin>>,
    held: Held,
    issues: Vec<Issue>,
}

impl Gathered {
    fn add_file(&mut self, path: &Arc<Path>, file: &FileState) {
        let documents = match file {
            FileState::Unreadable { reason } => {
                self.held.files.insert(Arc::clone(path));
                self.issues.push(Issue {
                    file: path.to_path_buf(),
                    document: 0,
                    line: None,
                    object: None,
                    field: None,
                    reason: reason.clone(),
                    severity: Severity::Rejected,
                });
                return;
            }
            FileState::Read { documents } => documents,
        };
        for (index, (document, parsed)) in documents.iter().enumerate() {
            for decoded in &parsed.objects {
                self.claims
                    .entry(decoded.slot.clone())
                    .or_default()
                    .push(Origin {
                        file: Arc::clone(path),
                        document: index + 1,
                        source: Arc::clone(document),
                        decoded: Arc::clone(decoded),
                    });
            }
            for problem in &parsed.problems {
                self.add_problem(path, index + 1, document.first_line, problem);
            }
        }
    }

    fn add_problem(
        &mut self,
        path: &Arc<Path>,
        document: usize,
        first_line: usize,
        problem: &Problem,
    ) {
        if problem.severity == Severity::Rejected {
            let path = Arc::clone(path);
            self.held.places.insert((Arc::clone(&path), document));
            match &problem.slot {
                Some(slot) => drop(self.held.slots.insert(slot.clone())),
                None => drop(self.held.files.insert(path)),
            }
        }
        self.issues.push(Issue {
            file: path.to_path_buf(),
            document,
            line: problem.line.map(|line| in_file(first_line, line)),
            object: problem.slot.as_ref().map(|slot| slot.key.to_string()),
            field: problem.field.as_ref().map(ToString::to_string),
            reason: problem.reason.clone(),
            severity: problem.severity,
        });
    }
}

#[cfg(test)]
mod tests;
