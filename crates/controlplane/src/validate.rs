//! What is wrong in files before they are applied: the command `controlplane validate`.
//!
//! Files are read as the control plane reads its directories, and translated, so that what it would reject or warn of is found.
//! Whether other objects that they name exist is left to `controlplane status`: they need not be in these files.

use std::{fmt, path::PathBuf};

use crate::{
    objects::{Issue, Loader, ScanError, Severity},
    translate::{Captured, MeshSettings, WaypointConfigs, keys::wanted, translate},
};

/// Reads files, and the `*.yaml` and `*.yml` of directories. Returns what is wrong, in the order of files and lines.
///
/// # Errors
/// When a path cannot be read.
pub fn validate(paths: Vec<PathBuf>) -> Result<Vec<Issue>, ScanError> {
    let (directories, files) = paths.into_iter().partition(|path| path.is_dir());
    let loaded = Loader::with_files(directories, files).load()?;
    let mesh = MeshSettings::default();
    let (captured, before) = (Captured::new(), WaypointConfigs::new());
    // Nothing is fetched here: that keys are not known yet says nothing of the file.
    let wanted = wanted(&loaded.objects).into_keys();
    let keys = wanted.map(|source| (source, "".into())).collect();
    let advice = translate(&loaded.objects, &captured, &mesh, &keys, &before).advice;
    let warnings = advice.iter().filter_map(|advice| {
        let origin = loaded.origins.get(&advice.object)?;
        Some(origin.warning(&advice.field, advice.reason.clone()))
    });
    let mut issues = loaded.issues.clone();
    issues.extend(warnings);
    issues.sort();
    issues.dedup();
    Ok(issues)
}

impl fmt::Display for Issue {
    /// `FILE:LINE: error: document 2, VirtualService shop/web, spec.http[0].timeout: not a duration`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        let severity = match self.severity {
            Severity::Rejected => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {severity}: ")?;
        // Of the whole file, where no document is named.
        let document = (self.document > 0).then(|| format!("document {}", self.document));
        let places = [document.as_ref(), self.object.as_ref(), self.field.as_ref()];
        let places: Vec<&str> = places.into_iter().flatten().map(String::as_str).collect();
        if !places.is_empty() {
            write!(f, "{}: ", places.join(", "))?;
        }
        f.write_str(&self.reason)
    }
}
