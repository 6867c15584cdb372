//! `cargo xtask tidy`: the rules of this code base that no compiler or lint checks.
//!
//! Crate edges and banned dependencies come from cargo; lengths and forbidden patterns from a scan of the source text
//! with comments and strings taken out; and each test that a table in `tests` names must be there. Each finding is printed as `path:line: rule: what`.

mod edges;
mod mask;
mod parity;
mod source;

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: PathBuf,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{path}:{}: {}: {}", self.line, self.rule, self.what)
    }
}

/// Directories that hold no source of ours.
const SKIPPED_DIRS: [&str; 2] = ["target", "gen"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = edges::check(root)?;
    let files = rust_files(root)?;
    let mut sources = Vec::new();
    for path in &files {
        let text = fs::read_to_string(root.join(path))
            .with_context(|| format!("reading {}", path.display()))?;
        findings.extend(source::check(path, &text));
        sources.push((path.as_path(), text));
    }
    let texts: Vec<(&Path, &str)> = sources
        .iter()
        .map(|(path, text)| (*path, &**text))
        .collect();
    for table in parity::TABLES {
        let text = fs::read_to_string(root.join(table)).context("reading a table of tests")?;
        findings.extend(parity::check(table, &text, &texts));
    }
    let mut out = io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    if !findings.is_empty() {
        bail!("{} rules broken; see above", findings.len());
    }
    writeln!(out, "{} files and all crate edges are tidy", files.len())?;
    Ok(())
}

/// Paths of all our Rust files, relative to the root, in order.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if !name.starts_with('.') && !SKIPPED_DIRS.contains(&name.as_str()) {
                    dirs.push(path);
                }
            } else if name.ends_with(".rs") {
                files.push(path.strip_prefix(root)?.to_path_buf());
            }
        }
    }
    files.sort();
    Ok(files)
}
