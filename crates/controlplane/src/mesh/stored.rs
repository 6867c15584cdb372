//! A value that survives restarts as a JSON file of the state directory, written when it changes.

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::state_dir::StateDir;

pub(super) struct Stored<T> {
    name: &'static str,
    directory: StateDir,
    /// As in the file.
    written: Mutex<Option<T>>,
}

impl<T: Clone + Default + PartialEq + Serialize + DeserializeOwned> Stored<T> {
    pub(super) fn new(name: &'static str, directory: StateDir) -> Self {
        Self {
            name,
            directory,
            written: Mutex::new(None),
        }
    }

    /// What was stored; nothing when it cannot be read, which is reported: the state directory is then damaged, and a
    /// control plane that does not start would be worse.
    pub(super) fn load(&self) -> T {
        let read = match self.directory.read(self.name) {
            Ok(None) => return T::default(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let value: T = read.unwrap_or_else(|error| {
            warn!(
                file = self.name,
                error, "what was known before the restart is lost"
            );
            T::default()
        });
        *self.written.lock() = Some(value.clone());
        value
    }

    pub(super) fn store(&self, value: &T) {
        let mut written = self.written.lock();
        if written.as_ref() == Some(value) {
            return;
        }
        // Text, numbers and paths that came from UTF-8 names or fail here and are reported.
        let bytes = match serde_json::to_vec(value) {
            Ok(bytes) => bytes,
            Err(error) => return warn!(file = self.name, %error, "not stored"),
        };
        // Documents may be Secrets.
        match self.directory.replace_secret(self.name, &bytes) {
            Ok(()) => *written = Some(value.clone()),
            Err(error) => {
                warn!(file = self.name, %error, "not stored and not known after a restart")
            }
        }
    }
}
