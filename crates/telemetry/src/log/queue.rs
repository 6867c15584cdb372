//! The bounded queue of finished lines and the thread that writes them.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

use super::format::{self, Format};

/// Lines that may wait. At 10,000 lines a second a writer may stall one second without a loss.
const CAPACITY: usize = 10_000;

/// Lines of one write: enough to make the system call cheap, few enough to show lines soon.
const BATCH: usize = 64;

/// How long lines that follow a write closely are gathered. Without it a busy proxy wakes the writer for every line,
/// which costs as much as the line.
const GATHER: Duration = Duration::from_millis(5);

/// Lines that found the queue full since the process started.
static DROPPED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[derive(Debug)]
pub(super) struct Queue {
    format: Format,
    gather: Duration,
    /// Held only to move lines in or out.
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    dropped: u64,
    writing: bool,
    /// When the writer last took lines.
    taken: Option<Instant>,
}

impl Queue {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            gather: GATHER,
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// Takes a line that ends in a line feed, or drops and counts it.
    pub(super) fn push(&self, line: String) {
        let mut state = self.state.lock();
        if state.lines.len() >= CAPACITY {
            state.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.push_back(line);
        let wake = !state.writing || state.lines.len() == BATCH;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Waits, at most `deadline`, until everything is written.
    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let mut state = self.state.lock();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        !self
            .emptied
            .wait_while_for(&mut state, busy, deadline)
            .timed_out()
    }

    /// Waits for lines and puts some of them, joined, into `batch`.
    fn next_batch(&self, batch: &mut String) {
        batch.clear();
        let mut state = self.state.lock();
        state.writing = false;
        let waits = state.lines.is_empty();
        if waits {
            self.emptied.notify_all();
            self.filled
                .wait_while(&mut state, |state| state.lines.is_empty());
        }
        state.writing = true;
        if waits && state.taken.is_some_and(|at| at.elapsed() < self.gather) {
            let few = |state: &mut State| state.lines.len() < BATCH;
            self.filled.wait_while_for(&mut state, few, self.gather);
        }
        state.taken = Some(Instant::now());
        let count = state.lines.len().min(BATCH);
        batch.extend(state.lines.drain(..count));
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        if dropped > 0 {
            batch.push_str(&format::dropped_line(self.format, dropped));
        }
    }
}

/// Starts the thread that writes for the rest of the process's life. A line that cannot be written is lost: there
/// is no other place to report it to.
pub(super) fn start_writer(
    queue: Arc<Queue>,
    mut output: impl Write + Send + 'static,
) -> io::Result<()> {
    let write = move || {
        let mut batch = String::new();
        loop {
            queue.next_batch(&mut batch);
            let written = output.write_all(batch.as_bytes());
            drop(written.and_then(|()| output.flush()));
        }
    };
    let builder = std::thread::Builder::new().name("log".to_owned());
    builder.spawn(write).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Hands each write to the test, which may leave it waiting.
    struct Output(SyncSender<String>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Arc<Queue>, Receiver<String>) {
        start_gathering(GATHER)
    }

    fn start_gathering(gather: Duration) -> (Arc<Queue>, Receiver<String>) {
        // No buffer: a write waits until the test takes it.
        let (sender, receiver) = sync_channel(0);
        let queue = Arc::new(Queue {
            gather,
            ..Queue::new(Format::Plain)
        });
        start_writer(queue.clone(), Output(sender)).unwrap();
        (queue, receiver)
    }

    #[test]
    fn writes_in_order_and_in_batches() {
        let (queue, written) = start();
        queue.push("first\n".to_owned());
        let mut all = written.recv_timeout(DEADLINE).unwrap();
        assert_eq!(all, "first\n");
        queue.push("block\n".to_owned());
        for line in 0..BATCH * 2 {
            queue.push(format!("{line}\n"));
        }
        all.clear();
        let mut writes = 0;
        while all.lines().count() < BATCH * 2 + 1 {
            let batch = written.recv_timeout(DEADLINE).unwrap();
            assert!(batch.lines().count() <= BATCH);
            all.push_str(&batch);
            writes += 1;
        }
        assert!(writes <= 4, "{writes}");
        let numbers: Vec<String> = (0..BATCH * 2).map(|line| line.to_string()).collect();
        assert_eq!(all.lines().skip(1).collect::<Vec<_>>(), numbers);
        assert!(queue.flush(DEADLINE));
    }

    #[test]
    fn lines_that_follow_a_write_closely_are_gathered() {
        let (queue, written) = start_gathering(DEADLINE);
        queue.push("at once\n".to_owned());
        assert_eq!(written.recv_timeout(DEADLINE).unwrap(), "at once\n");
        for _ in 0..BATCH {
            queue.push("x\n".to_owned());
        }
        let batch = written.recv_timeout(DEADLINE).unwrap();
        assert_eq!(batch.lines().count(), BATCH);
    }

    #[test]
    fn a_stalled_writer_costs_lines_and_never_blocks() {
        let (queue, written) = start();
        for _ in 0..CAPACITY * 2 {
            queue.push("x\n".to_owned());
        }
        assert!(!queue.flush(Duration::ZERO));
        // The writer took at most one batch before it stalled.
        assert!(dropped_lines() >= u64::try_from(CAPACITY - BATCH).unwrap());
        let mut reported = false;
        while !reported {
            let batch = written.recv_timeout(DEADLINE).unwrap();
            reported = batch.contains("log lines dropped");
        }
    }
}
