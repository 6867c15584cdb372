//! Waits for changes of the watched directories.
//!
//! The kernel tells of changes; a slow second look catches what it does not tell (symlink targets, lost events, network
//! file systems). A file that is being written is left alone until its writer closes it, for a short while. So is one that
//! is missing: many editors and `git` remove a file before they write it anew, and a policy must not be off meanwhile.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use crate::objects::loader::{Depth, GoodDocument, Loaded, Loader, ScanError};

/// Collects the events of one edit (write, rename, chmod), which follow each other within a millisecond.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How long an open writer or a missing file may hold up reading; then what is there is read.
const WRITER_PATIENCE: Duration = Duration::from_millis(250);
/// How often to look whether writers are done and files are back.
const WRITER_POLL: Duration = Duration::from_millis(10);
/// The slow second look. Costs one `stat` for each file.
const RESCAN: Duration = Duration::from_millis(500);
/// Writers that are remembered; beyond this, files are read while being written, which only costs a second reading.
const MAX_WRITERS: usize = 1024;

/// Why watching cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A directory cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// No inotify.
    #[error("cannot watch {directory}; check fs.inotify.max_user_watches")]
    Notify {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
}

#[derive(Default)]
struct Events {
    changed: Notify,
    writers: Mutex<HashSet<PathBuf>>,
}

impl Events {
    fn record(&self, event: Event) {
        let mut writers = self.writers.lock();
        match event.kind {
            // Also what our own reading causes.
            EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write) => return,
            EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(_) => {
                if writers.len() < MAX_WRITERS {
                    writers.extend(event.paths);
                }
            }
            EventKind::Access(_)
            | EventKind::Any
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => {
                for path in &event.paths {
                    writers.remove(path);
                }
            }
        }
        drop(writers);
        self.changed.notify_one();
    }

    fn has_writers(&self) -> bool {
        !self.writers.lock().is_empty()
    }
}

/// Reads directories and waits for their changes.
pub struct Watcher {
    directories: Vec<PathBuf>,
    loader: Arc<Mutex<Loader>>,
    events: Arc<Events>,
    notify: RecommendedWatcher,
    rescan: Interval,
    unreadable: Option<String>,
}

impl Watcher {
    /// Reads everything once and starts watching. `remembered` are last good versions of an earlier process.
    ///
    /// # Errors
    /// When a directory cannot be read or watched.
    pub fn start(
        directories: Vec<PathBuf>,
        remembered: Vec<GoodDocument>,
    ) -> Result<(Self, Loaded), WatchError> {
        let events = Arc::new(Events::default());
        let sink = Arc::clone(&events);
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) => sink.record(event),
            // For example an overflow: look at everything.
            Err(_) => sink.changed.notify_one(),
        };
        let failed = |directory: &Path, source| WatchError::Notify {
            directory: directory.to_owned(),
            source,
        };
        let first = directories.first().cloned().unwrap_or_default();
        let mut notify = notify::recommended_watcher(handler).map_err(|e| failed(&first, e))?;
        let mut loader = Loader::new(directories.clone());
        loader.remember(remembered);
        // Watched before read, so that no edit falls between.
        let watched = watch_all(&mut notify, &directories);
        let loaded = loader.load()?;
        watched.map_err(|(directory, source)| failed(&directory, source))?;
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Self {
            directories,
            loader: Arc::new(Mutex::new(loader)),
            events,
            notify,
            rescan,
            unreadable: None,
        };
        Ok((watcher, loaded))
    }

    /// Waits until something changed and returns everything. Not cancel safe: a change whose reading is cut is lost, so
    /// that it is only cut at the end.
    pub async fn changed(&mut self) -> Loaded {
        loop {
            let depth = tokio::select! {
                () = self.events.changed.notified() => {
                    self.settle().await;
                    Depth::Contents
                }
                _ = self.rescan.tick() => Depth::Stat,
            };
            self.wait_for_missing_files().await;
            let loader = Arc::clone(&self.loader);
            let read = tokio::task::spawn_blocking(move || loader.lock().reload(depth)).await;
            match read {
                Ok(Ok(loaded)) => {
                    self.readable_again();
                    if let Some(loaded) = loaded {
                        return loaded;
                    }
                }
                Ok(Err(error)) => self.cannot_read(&error),
                Err(error) => warn!(%error, "reading the configuration was cut"),
            }
        }
    }

    async fn settle(&self) {
        let start = Instant::now();
        sleep(DEBOUNCE).await;
        while self.events.has_writers() && start.elapsed() < WRITER_PATIENCE {
            sleep(WRITER_POLL).await;
        }
        self.events.writers.lock().clear();
    }

    async fn wait_for_missing_files(&self) {
        let start = Instant::now();
        while start.elapsed() < WRITER_PATIENCE {
            let loader = Arc::clone(&self.loader);
            let look = tokio::task::spawn_blocking(move || loader.lock().misses_files());
            if !matches!(look.await, Ok(true)) {
                return;
            }
            sleep(WRITER_POLL).await;
        }
    }

    fn cannot_read(&mut self, error: &ScanError) {
        let text = error.to_string();
        if self.unreadable.as_ref() != Some(&text) {
            warn!(
                error = text,
                source = std::error::Error::source(error).map(tracing::field::display),
                "configuration is not readable, the last one stays in force"
            );
            self.unreadable = Some(text);
        }
    }

    /// A directory that was away has lost its watch.
    fn readable_again(&mut self) {
        if self.unreadable.take().is_some() {
            info!("configuration is readable again");
            if let Err((directory, error)) = watch_all(&mut self.notify, &self.directories) {
                warn!(directory = %directory.display(), %error, "not watched, changes are found by looking twice a second");
            }
        }
    }
}

fn watch_all(
    notify: &mut RecommendedWatcher,
    directories: &[PathBuf],
) -> Result<(), (PathBuf, notify::Error)> {
    for directory in directories {
        notify
            .watch(directory, RecursiveMode::NonRecursive)
            .map_err(|error| (directory.clone(), error))?;
    }
    Ok(())
}
