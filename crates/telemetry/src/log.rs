//! Logs on standard output: one line per event, plain or JSON, written by a thread of their own.
//!
//! The queue between the process and the writer is bounded. When standard output stalls, lines are dropped and
//! counted (`leyline_log_lines_dropped_total`); the data plane never waits for a log. Levels change at run time
//! through the admin page `/logging`.

mod format;
mod levels;
mod queue;

use std::{fmt, io, sync::Arc, time::Duration};

use tracing_subscriber::{
    Registry, filter::Targets, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::TelemetryError;
use format::LineLayer;
use levels::Levels;
use queue::Queue;

pub use format::Format;
pub(crate) use queue::dropped_lines;

/// The answer to a malformed `/logging` request, after the reason.
const USAGE: &str = "\
usage: POST /logging                                  show the current levels
       POST /logging?level=<level>                    level of everything else
       POST /logging?level=<module>=<level>[,...]     levels of modules
       POST /logging?reset                            back to the levels of the start
       POST /logging?reset&level=<module>=<level>     both
levels: error, warn, info, debug, trace, off
";

/// How the process logs.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Form of a line.
    pub format: Format,
    /// Levels, as `info` or `leyline_ztunnel::proxy=debug,access=off`; what is not named logs at info.
    pub filter: String,
}

/// Changes levels and flushes; clones act on the same log.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    initial: Levels,
    queue: Arc<Queue>,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogHandle({})", self.current())
    }
}

/// Installs the log of this process. Called once, before anything logs.
pub fn init(config: LogConfig) -> Result<LogHandle, TelemetryError> {
    let queue = Arc::new(Queue::new(config.format));
    let (handle, subscriber) = build(config, queue.clone())?;
    queue::start_writer(queue, io::stdout()).map_err(TelemetryError::Writer)?;
    subscriber
        .try_init()
        .map_err(|_occupied| TelemetryError::AlreadyInstalled("logs"))?;
    Ok(handle)
}

fn build(
    config: LogConfig,
    queue: Arc<Queue>,
) -> Result<(LogHandle, impl tracing::Subscriber + Send + Sync), TelemetryError> {
    let initial = Levels::initial(&config.filter)?;
    let (filter, handle) = reload::Layer::new(initial.targets());
    let lines = LineLayer::new(config.format, queue.clone());
    let subscriber = Registry::default().with(filter).with(lines);
    let handle = LogHandle {
        filter: handle,
        initial,
        queue,
    };
    Ok((handle, subscriber))
}

impl LogHandle {
    /// The levels in force, most specific first.
    pub fn current(&self) -> String {
        let current = self.filter.with_current(ToString::to_string);
        current.unwrap_or_else(|_gone| String::new())
    }

    /// Sets levels on top of those in force: `debug`, or `module=level` items with commas.
    fn set(&self, levels: &str) -> Result<(), TelemetryError> {
        let current = Levels::parse(&self.current())?;
        self.apply(&current.with(levels)?)
    }

    /// Goes back to the levels of the start.
    fn reset(&self) -> Result<(), TelemetryError> {
        self.apply(&self.initial)
    }

    /// Goes back to the levels of the start and sets levels on top of them.
    fn reset_to(&self, levels: &str) -> Result<(), TelemetryError> {
        self.apply(&self.initial.with(levels)?)
    }

    fn apply(&self, levels: &Levels) -> Result<(), TelemetryError> {
        self.filter
            .reload(levels.targets())
            .map_err(TelemetryError::Reload)
    }

    /// Writes a finished line, which ends in a line feed, to the standard output, in order with the log.
    pub fn write_line(&self, line: String) {
        self.queue.push(line);
    }

    /// Waits until all lines so far are written, at most `deadline`; for the end of the process. Blocks the thread.
    /// Returns whether all are written.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.queue.flush(deadline)
    }

    /// Answers a request to the admin page `/logging`: HTTP status and text.
    pub fn handle_logging_request(&self, method: &str, query: Option<&str>) -> (u16, String) {
        if method != "POST" {
            return (405, "method not allowed\n".to_owned());
        }
        match self.change(query.unwrap_or_default()) {
            Ok(()) => (200, format!("current log level is {}\n", self.current())),
            Err(reason) => (400, format!("{reason}\n{USAGE}")),
        }
    }

    fn change(&self, query: &str) -> Result<(), String> {
        let mut reset = false;
        let mut level = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("reset", _) => reset = true,
                ("level", value) => level = Some(levels::percent_decode(value)),
                (key, _) => return Err(format!("unknown parameter `{key}`")),
            }
        }
        match (reset, level) {
            (false, None) => Ok(()),
            (false, Some(level)) => self.set(&level),
            (true, None) => self.reset(),
            (true, Some(level)) => self.reset_to(&level),
        }
        .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests;
