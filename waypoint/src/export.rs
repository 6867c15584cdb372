//! What is told to collectors, in batches: finished spans, and entries of access logs. A collector that is slow, dead or full costs
//! some of it, which is counted, and nothing else: no request waits for it.

use std::{fmt::Debug, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use leyline_runtime::Drain;
use metrics::counter;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, MissedTickBehavior, interval, timeout},
};
use tracing::debug;

use crate::app::Shared;

/// Items between requests and the exporter: a moment's worth of a busy waypoint. Those that find no place are dropped.
const QUEUE: usize = 4096;
/// Items of one message; some hundred kB.
const BATCH: usize = 512;
/// Items that wait for one collector while it is slow, at most. Later ones are dropped.
const WAITING: usize = 4096;
/// How long an item waits for others.
const INTERVAL: Duration = Duration::from_secs(1);
/// Last items of a waypoint that goes are not waited for longer.
const LAST: Duration = Duration::from_secs(2);

/// One kind of what is told.
pub(crate) trait Signal: Debug + Send + Sync + 'static {
    type Item: Debug + Send;
    type Collector: Debug + PartialEq + Send + Sync;
    /// Counts items by what became of them: sent, rejected, failed, dropped.
    const METRIC: &'static str;

    /// One message. What a collector does not take is lost: a later attempt would find later items.
    fn send(
        shared: Arc<Shared>,
        collector: Arc<Self::Collector>,
        items: Vec<Self::Item>,
    ) -> impl Future<Output = ()> + Send;
}

/// Takes items.
#[derive(Debug)]
pub(crate) struct Queue<S: Signal>(mpsc::Sender<Item<S>>);

#[derive(Debug)]
enum Item<S: Signal> {
    One(Arc<S::Collector>, Box<S::Item>),
    /// Everything is to be sent now.
    Flush(oneshot::Sender<()>),
}

/// Sends them.
#[derive(Debug)]
pub(crate) struct Exporter<S: Signal> {
    queue: mpsc::Receiver<Item<S>>,
    batches: Vec<Batch<S>>,
}

/// Items that wait for one collector.
#[derive(Debug)]
struct Batch<S: Signal> {
    collector: Arc<S::Collector>,
    waiting: Vec<S::Item>,
    /// One message at a time: a slow collector is not given more to do.
    is_sending: bool,
}

/// The collector whose message has come to its end.
type Sending<S> = BoxFuture<'static, Arc<<S as Signal>::Collector>>;

/// A queue and its other end.
pub(crate) fn queue<S: Signal>() -> (Queue<S>, Exporter<S>) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let exporter = Exporter {
        queue,
        batches: Vec::new(),
    };
    (Queue(sender), exporter)
}

impl<S: Signal> Queue<S> {
    /// Never waits.
    pub(crate) fn send(&self, collector: &Arc<S::Collector>, item: S::Item) {
        let item = Item::One(collector.clone(), Box::new(item));
        if self.0.try_send(item).is_err() {
            count::<S>("dropped", 1);
        }
    }

    /// Sends what there is, within a deadline.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        let flush = async {
            if self.0.send(Item::Flush(done)).await.is_ok() {
                // Whether it ended well or not, there is nothing more to do.
                is_done.await.ok();
            }
        };
        if timeout(LAST, flush).await.is_err() {
            debug!(metric = S::METRIC, "the last items were not sent");
        }
    }
}

impl<S: Signal> Exporter<S> {
    /// Until `ends`.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, ends: Drain) {
        let mut sending: FuturesUnordered<Sending<S>> = FuturesUnordered::new();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed: Vec<oneshot::Sender<()>> = Vec::new();
        loop {
            tokio::select! {
                () = ends.started() => return,
                item = self.queue.recv() => match item {
                    Some(Item::One(collector, item)) => {
                        if self.put(collector, *item) == Fill::Full {
                            self.start(&shared, &sending, Fill::Full);
                        }
                    }
                    Some(Item::Flush(done)) => {
                        flushed.push(done);
                        self.start(&shared, &sending, Fill::Some);
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    self.start(&shared, &sending, Fill::Some);
                    self.batches.retain(|batch| batch.is_sending || !batch.waiting.is_empty());
                }
                ended = sending.next(), if !sending.is_empty() => {
                    if let Some(collector) = ended {
                        self.ended(&collector);
                    }
                    let least = if flushed.is_empty() { Fill::Full } else { Fill::Some };
                    self.start(&shared, &sending, least);
                }
            }
            if sending.is_empty() && self.batches.iter().all(|batch| batch.waiting.is_empty()) {
                for done in flushed.drain(..) {
                    // Who asked may have gone.
                    done.send(()).ok();
                }
            }
        }
    }

    fn put(&mut self, collector: Arc<S::Collector>, item: S::Item) -> Fill {
        let known = self.batches.iter_mut();
        let known = known
            .into_iter()
            .position(|batch| batch.collector == collector);
        let index = known.unwrap_or_else(|| {
            self.batches.push(Batch {
                collector,
                waiting: Vec::new(),
                is_sending: false,
            });
            self.batches.len() - 1
        });
        let Some(batch) = self.batches.get_mut(index) else {
            return Fill::Some;
        };
        if batch.waiting.len() >= WAITING {
            count::<S>("dropped", 1);
        } else {
            batch.waiting.push(item);
        }
        if batch.waiting.len() >= BATCH {
            Fill::Full
        } else {
            Fill::Some
        }
    }

    /// Begins a message to each collector that has at least so much to be told and is not being told already.
    fn start(&mut self, shared: &Arc<Shared>, sending: &FuturesUnordered<Sending<S>>, least: Fill) {
        let least = match least {
            Fill::Full => BATCH,
            Fill::Some => 1,
        };
        for batch in &mut self.batches {
            if batch.is_sending || batch.waiting.len() < least {
                continue;
            }
            batch.is_sending = true;
            let most = batch.waiting.len().min(BATCH);
            let items: Vec<S::Item> = batch.waiting.drain(..most).collect();
            let (shared, collector) = (shared.clone(), batch.collector.clone());
            sending.push(
                async move {
                    S::send(shared, collector.clone(), items).await;
                    collector
                }
                .boxed(),
            );
        }
    }

    fn ended(&mut self, collector: &Arc<S::Collector>) {
        let batch = self.batches.iter_mut();
        let batch = batch
            .into_iter()
            .find(|batch| batch.collector == *collector);
        if let Some(batch) = batch {
            batch.is_sending = false;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Some,
    Full,
}

/// Counts the items of a message that the collector took, but for those that it rejects.
pub(crate) fn count_taken<S: Signal>(items: u64, rejected: u64) {
    if rejected > 0 {
        count::<S>("rejected", rejected);
    }
    count::<S>("sent", items - rejected);
}

/// Counts items that came to this.
pub(crate) fn count<S: Signal>(result: &'static str, items: u64) {
    counter!(S::METRIC, "result" => result).increment(items);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Numbers;

    impl Signal for Numbers {
        type Item = u64;
        type Collector = &'static str;
        const METRIC: &'static str = "numbers";

        async fn send(_shared: Arc<Shared>, _collector: Arc<&'static str>, _items: Vec<u64>) {}
    }

    #[test]
    fn a_slow_collector_costs_items_and_nothing_else() {
        let (_queue, mut exporter) = queue::<Numbers>();
        let collector = Arc::new("collector");
        for number in 1..=WAITING + 10 {
            let fill = exporter.put(collector.clone(), 1);
            assert_eq!(fill == Fill::Full, number >= BATCH, "{number}");
        }
        // The same collector, named by another chain.
        exporter.put(Arc::new("collector"), 1);
        assert_eq!(exporter.batches.len(), 1);
        assert_eq!(exporter.batches[0].waiting.len(), WAITING);
    }

    #[test]
    fn a_full_queue_does_not_wait() {
        let (queue, exporter) = queue::<Numbers>();
        let collector = Arc::new("collector");
        for _ in 0..QUEUE + 1 {
            queue.send(&collector, 1);
        }
        assert_eq!(exporter.queue.len(), QUEUE);
    }
}
