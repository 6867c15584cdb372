//! The directory of YAML that the control plane watches, edited as a user's editor or `kubectl` would: whole files,
//! replaced at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A directory of YAML files.
#[derive(Clone, Debug)]
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// Takes an existing directory.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies every `.yaml` file of `from` into it.
    pub fn copy_from(&self, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let path = entry?.path();
            if is_yaml(&path)
                && let Some(name) = path.file_name()
            {
                self.write(&name.to_string_lossy(), &fs::read_to_string(&path)?)?;
            }
        }
        Ok(())
    }

    /// Writes a file so that a reader sees the old text or the new one, nothing between.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        // Not `.yaml`: a watcher must not take it for a document.
        let draft = self.path.join(format!(".{name}.draft"));
        fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("renaming to {}", path.display()))
    }

    /// The text of a file.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Removes a file; that it is not there is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {name}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Every YAML file with its text, in the order of names.
    pub fn files(&self) -> Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if is_yaml(&path)
                && let Some(name) = path.file_name()
            {
                files.push((
                    name.to_string_lossy().into_owned(),
                    fs::read_to_string(&path)?,
                ));
            }
        }
        files.sort();
        Ok(files)
    }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}
