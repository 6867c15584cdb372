//! Shutdown in two steps, for the process, one pod, or anything in between.
//!
//! A [`Drain`] is a node of a tree. Tasks are spawned on a node with [`crate::spawn`].
//!
//! 1. *Graceful.* `run` (or `start`) tells every task of the node and of the nodes below it that shutdown was asked
//!    for: [`Drain::started`] resolves. Listeners stop accepting, connections finish what they carry. Nothing is cut.
//! 2. *Forced.* When the deadline passes, every task that is still there is cut: [`Drain::forced`] resolves, and
//!    `spawn` drops the task's future at its next suspension point, whatever the task is waiting for. No task can
//!    refuse; one that blocks its thread is counted as left behind after a short wait.
//!
//! A parent waits for the tasks of its children, and its signals reach them; a child that drains alone leaves its
//! parent and its siblings running. A drained node stays drained: a task spawned on it afterwards, for example by a
//! task that was just finishing, is cut before it runs. So when `run` returns, nothing runs on the node.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{AbortHandle, AbortRegistration};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long `run` waits for tasks that it has cut. A cut task ends at its next suspension point, within microseconds;
/// only one that blocks its thread takes longer, and must not hold up the exit of the process.
const CUT_DEADLINE: Duration = Duration::from_secs(1);

/// Shutdown of a group of tasks; clones are the same group.
#[derive(Clone, Debug)]
pub struct Drain {
    node: Arc<Node>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainOutcome {
    /// All tasks ended by themselves.
    Finished,
    /// The deadline passed and this many tasks were cut.
    Forced {
        /// Tasks of the node and of its children that were still running at the deadline.
        tasks: usize,
    },
}

#[derive(Debug)]
struct Node {
    graceful: CancellationToken,
    forced: CancellationToken,
    /// Tasks of this node and of all below it.
    running: AtomicUsize,
    idle: Notify,
    /// Held only for map operations. Cutting goes through one handle per task and not through `forced`, because a
    /// task that polls a shared token takes the token's lock at every wake-up.
    members: Mutex<Members>,
    parent: Option<Link>,
}

#[derive(Debug, Default)]
struct Members {
    next_key: u64,
    cut: bool,
    tasks: HashMap<u64, AbortHandle>,
    children: HashMap<u64, Weak<Node>>,
}

/// A child's place in its parent.
#[derive(Debug)]
struct Link {
    parent: Arc<Node>,
    key: u64,
}

/// Marks one task as running, on its node and all above it, until dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    node: Arc<Node>,
    key: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A root: drains only when asked itself.
    pub fn new() -> Self {
        Self {
            node: Arc::new(Node {
                graceful: CancellationToken::new(),
                forced: CancellationToken::new(),
                running: AtomicUsize::new(0),
                idle: Notify::new(),
                members: Mutex::default(),
                parent: None,
            }),
        }
    }

    /// A group that drains with this one or alone, and that this one waits for.
    pub fn child(&self) -> Self {
        let mut members = self.node.members.lock();
        let key = members.key();
        let node = Arc::new(Node {
            graceful: self.node.graceful.child_token(),
            forced: self.node.forced.child_token(),
            running: AtomicUsize::new(0),
            idle: Notify::new(),
            members: Mutex::new(Members {
                cut: members.cut,
                ..Members::default()
            }),
            parent: Some(Link {
                parent: self.node.clone(),
                key,
            }),
        });
        members.children.insert(key, Arc::downgrade(&node));
        Self { node }
    }

    /// Resolves when graceful shutdown was asked for. Cancel safe; takes a lock at each poll, so wait for it per
    /// connection or per request, not per read.
    pub async fn started(&self) {
        self.node.graceful.cancelled().await;
    }

    /// Whether graceful shutdown was asked for.
    pub fn is_started(&self) -> bool {
        self.node.graceful.is_cancelled()
    }

    /// Resolves when the deadline of a drain has passed, or the drain is over. Tasks need not wait for it to be cut.
    pub async fn forced(&self) {
        self.node.forced.cancelled().await;
    }

    /// Asks for graceful shutdown without waiting for it; `run` may follow.
    pub fn start(&self) {
        self.node.graceful.cancel();
    }

    /// Tasks now running on this group and below it.
    pub fn tasks(&self) -> usize {
        self.node.running.load(Ordering::Acquire)
    }

    /// Asks for graceful shutdown, waits for the tasks, and cuts those that are left at the deadline. The caller must
    /// not be one of these tasks. Cancel safe: graceful shutdown stays asked for.
    pub async fn run(&self, deadline: Duration) -> DrainOutcome {
        self.start();
        if timeout(deadline, self.node.wait_idle()).await.is_ok() {
            self.node.cut();
            return DrainOutcome::Finished;
        }
        let tasks = self.tasks();
        self.node.cut();
        if timeout(CUT_DEADLINE, self.node.wait_idle()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks(),
                "tasks that block their thread are left behind after the drain"
            );
        }
        if tasks == 0 {
            DrainOutcome::Finished
        } else {
            DrainOutcome::Forced { tasks }
        }
    }

    /// Registers a task that is about to start; it is to be wrapped so that the registration can abort it.
    pub(crate) fn track(&self) -> (Tracked, AbortRegistration) {
        let (handle, registration) = AbortHandle::new_pair();
        let mut members = self.node.members.lock();
        let key = members.key();
        if members.cut {
            handle.abort();
        }
        members.tasks.insert(key, handle);
        for node in self.node.and_above() {
            node.running.fetch_add(1, Ordering::AcqRel);
        }
        drop(members);
        let tracked = Tracked {
            node: self.node.clone(),
            key,
        };
        (tracked, registration)
    }
}

impl Members {
    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }
}

impl Node {
    /// This node, its parent, and so on to the root.
    fn and_above(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| {
            node.parent.as_ref().map(|link| &*link.parent)
        })
    }

    /// Cancel safe.
    async fn wait_idle(&self) {
        loop {
            // Registered before the check, so that a task that ends in between is not missed.
            let idle = self.idle.notified();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Ends every task here and below, now and in future.
    fn cut(&self) {
        let children: Vec<Weak<Self>> = {
            let mut members = self.members.lock();
            members.cut = true;
            for task in members.tasks.values() {
                task.abort();
            }
            members.children.values().cloned().collect()
        };
        self.forced.cancel();
        // Without the lock: a child that goes away takes its parent's lock.
        for child in children {
            if let Some(child) = child.upgrade() {
                child.cut();
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(link) = &self.parent {
            link.parent.members.lock().children.remove(&link.key);
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.node.members.lock().tasks.remove(&self.key);
        for node in self.node.and_above() {
            if node.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                node.idle.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests;
