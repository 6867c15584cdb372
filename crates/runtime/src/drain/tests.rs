use std::{future::pending, sync::atomic::AtomicBool};

use tokio::sync::oneshot;
use tracing::Span;

use super::*;
use crate::spawn;

const DEADLINE: Duration = Duration::from_secs(5);

fn spawn_forever(drain: &Drain) -> tokio::task::JoinHandle<Option<()>> {
    spawn("forever", Span::none(), drain, pending())
}

fn spawn_until_started(drain: &Drain) -> tokio::task::JoinHandle<Option<&'static str>> {
    let own = drain.clone();
    spawn("polite", Span::none(), drain, async move {
        own.started().await;
        "finished"
    })
}

#[tokio::test(start_paused = true)]
async fn finishes_at_once_without_tasks() {
    let drain = Drain::new();
    assert!(!drain.is_started());
    assert_eq!(drain.run(DEADLINE).await, DrainOutcome::Finished);
    assert!(drain.is_started());
}

#[tokio::test(start_paused = true)]
async fn waits_for_tasks_that_end_by_themselves() {
    let drain = Drain::new();
    let task = spawn_until_started(&drain);
    assert_eq!(drain.tasks(), 1);
    assert_eq!(drain.run(DEADLINE).await, DrainOutcome::Finished);
    assert_eq!(task.await.unwrap(), Some("finished"));
}

#[tokio::test(start_paused = true)]
async fn cuts_at_the_deadline_and_not_before() {
    let drain = Drain::new();
    let task = spawn_forever(&drain);
    let before = tokio::time::Instant::now();
    assert_eq!(drain.run(DEADLINE).await, DrainOutcome::Forced { tasks: 1 });
    assert_eq!(before.elapsed(), DEADLINE);
    assert_eq!(task.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn guards_of_a_cut_task_have_run_when_the_drain_returns() {
    struct Guard(Arc<AtomicBool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let drain = Drain::new();
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Guard(dropped.clone());
    let _task = spawn("guarded", Span::none(), &drain, async move {
        let _guard = guard;
        pending::<()>().await;
    });
    tokio::task::yield_now().await;
    drain.run(Duration::ZERO).await;
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_parent_waits_for_and_cuts_its_children() {
    let root = Drain::new();
    let pod = root.child();
    let connection = pod.child();
    let polite = spawn_until_started(&connection);
    let stuck = spawn_forever(&connection);
    assert_eq!((root.tasks(), pod.tasks(), connection.tasks()), (2, 2, 2));
    assert_eq!(root.run(DEADLINE).await, DrainOutcome::Forced { tasks: 1 });
    assert_eq!(polite.await.unwrap(), Some("finished"));
    assert_eq!(stuck.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_task_keeps_a_child_alive_whose_handles_are_gone() {
    let root = Drain::new();
    let task = spawn_forever(&root.child());
    assert_eq!(root.run(DEADLINE).await, DrainOutcome::Forced { tasks: 1 });
    assert_eq!(task.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_child_drains_alone() {
    let root = Drain::new();
    let (gone, stays) = (root.child(), root.child());
    let cut = spawn_forever(&gone);
    let kept = spawn_until_started(&stays);
    assert_eq!(gone.run(DEADLINE).await, DrainOutcome::Forced { tasks: 1 });
    assert_eq!(cut.await.unwrap(), None);
    assert!(!root.is_started() && !stays.is_started());
    assert_eq!(root.tasks(), 1);
    assert_eq!(root.run(DEADLINE).await, DrainOutcome::Finished);
    assert_eq!(kept.await.unwrap(), Some("finished"));
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_on_a_drained_group() {
    let drain = Drain::new();
    drain.run(DEADLINE).await;
    drain.forced().await;
    assert_eq!(spawn_forever(&drain).await.unwrap(), None);
    assert_eq!(spawn_forever(&drain.child()).await.unwrap(), None);
    assert_eq!(drain.tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_may_spawn_another_while_draining() {
    let drain = Drain::new();
    let own = drain.clone();
    let (report, reported) = oneshot::channel();
    let _first = spawn("first", Span::none(), &drain, async move {
        own.started().await;
        let _second = spawn("second", Span::none(), &own, async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            report.send(()).ok();
        });
    });
    assert_eq!(drain.run(DEADLINE).await, DrainOutcome::Finished);
    reported.await.unwrap();
}

#[tokio::test]
async fn a_panicking_task_is_not_waited_for() {
    let drain = Drain::new();
    let task = spawn("panics", Span::none(), &drain, async {
        panic!("on purpose");
    });
    let outcome: Result<Option<()>, _> = task.await;
    assert!(outcome.unwrap_err().is_panic());
    assert_eq!(drain.run(DEADLINE).await, DrainOutcome::Finished);
}

#[test]
fn a_child_that_goes_away_leaves_no_trace() {
    let root = Drain::new();
    drop(root.child());
    assert!(root.node.members.lock().children.is_empty());
}
