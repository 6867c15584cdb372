//! Finished spans on their way to their collectors, in batches. A collector that is slow, dead or full costs spans, which are
//! counted, and nothing else: no request waits for it.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Method, Request, header};
use leyline_runtime::Drain;
use metrics::counter;
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, warn};

use super::otlp;
use crate::{
    app::Shared,
    config::tracing::{Collector, Wire},
    http::body::Body,
    upstream::{
        call::{self, CallFailure},
        grpc,
    },
};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Spans between requests and the exporter: a moment's worth of a busy waypoint. Those that find no place are dropped.
const QUEUE: usize = 4096;
/// Spans of one message; some hundred kB.
const BATCH: usize = 512;
/// Spans that wait for one collector while it is slow, at most. Later ones are dropped.
const WAITING: usize = 4096;
/// How long a span waits for others.
const INTERVAL: Duration = Duration::from_secs(1);
/// Last spans of a waypoint that goes are not waited for longer.
const LAST: Duration = Duration::from_secs(2);

/// Takes finished spans.
#[derive(Debug)]
pub(crate) struct Spans(mpsc::Sender<Item>);

#[derive(Debug)]
enum Item {
    Span(Arc<Collector>, Box<otlp::Span>),
    /// Everything is to be sent now.
    Flush(oneshot::Sender<()>),
}

/// Sends them.
#[derive(Debug)]
pub(crate) struct Exporter {
    queue: mpsc::Receiver<Item>,
    batches: Vec<Batch>,
}

/// Spans that wait for one collector.
#[derive(Debug)]
struct Batch {
    collector: Arc<Collector>,
    waiting: Vec<otlp::Span>,
    /// One message at a time: a slow collector is not given more to do.
    is_sending: bool,
}

/// The collector whose message has come to its end.
type Sending = BoxFuture<'static, Arc<Collector>>;

impl Spans {
    pub(crate) fn new() -> (Self, Exporter) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let exporter = Exporter {
            queue,
            batches: Vec::new(),
        };
        (Self(sender), exporter)
    }

    /// Never waits.
    pub(crate) fn send(&self, collector: &Arc<Collector>, span: otlp::Span) {
        let item = Item::Span(collector.clone(), Box::new(span));
        if self.0.try_send(item).is_err() {
            count("dropped", 1);
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
            debug!("the last spans were not sent");
        }
    }
}

impl Exporter {
    /// Until `ends`.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, ends: Drain) {
        let mut sending: FuturesUnordered<Sending> = FuturesUnordered::new();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed: Vec<oneshot::Sender<()>> = Vec::new();
        loop {
            tokio::select! {
                () = ends.started() => return,
                item = self.queue.recv() => match item {
                    Some(Item::Span(collector, span)) => {
                        if self.put(collector, *span) == Fill::Full {
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

    fn put(&mut self, collector: Arc<Collector>, span: otlp::Span) -> Fill {
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
            count("dropped", 1);
        } else {
            batch.waiting.push(span);
        }
        if batch.waiting.len() >= BATCH {
            Fill::Full
        } else {
            Fill::Some
        }
    }

    /// Begins a message to each collector that has at least so much to be told and is not being told already.
    fn start(&mut self, shared: &Arc<Shared>, sending: &FuturesUnordered<Sending>, least: Fill) {
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
            let spans: Vec<otlp::Span> = batch.waiting.drain(..most).collect();
            let (shared, collector) = (shared.clone(), batch.collector.clone());
            sending.push(
                async move {
                    send(&shared, &collector, spans).await;
                    collector
                }
                .boxed(),
            );
        }
    }

    fn ended(&mut self, collector: &Arc<Collector>) {
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

/// One message. What a collector does not take is lost: a later attempt would find later spans.
async fn send(shared: &Arc<Shared>, collector: &Collector, spans: Vec<otlp::Span>) {
    let sent = spans.len() as u64;
    let request = request(collector, spans);
    match export(shared, collector, &request).await {
        Ok(response) => {
            let partial = response.partial_success.unwrap_or_default();
            let rejected = u64::try_from(partial.rejected_spans).unwrap_or_default();
            let rejected = rejected.min(sent);
            if rejected > 0 {
                let reason = partial.error_message;
                warn!(rejected, reason, "the collector of spans rejects some");
                count("rejected", rejected);
            }
            count("sent", sent - rejected);
        }
        Err(error) => {
            let cluster = collector.target.cluster.as_str();
            warn!(cluster, spans = sent, %error, "the collector of spans does not take them");
            count("failed", sent);
        }
    }
}

async fn export(
    shared: &Arc<Shared>,
    collector: &Collector,
    request: &otlp::Request,
) -> Result<otlp::Response, CallFailure> {
    let config = shared.config.load_full();
    match &collector.wire {
        Wire::Grpc => {
            let asked = grpc::call(shared, &config, &collector.target, METHOD, request);
            Box::pin(asked).await
        }
        Wire::Http { path, headers } => {
            let mut post = Request::new(Body::full(request.encode_to_vec()));
            *post.method_mut() = Method::POST;
            let kind = HeaderValue::from_static("application/x-protobuf");
            post.headers_mut().insert(header::CONTENT_TYPE, kind);
            headers.apply(post.headers_mut());
            let asked = call::http(shared, &config, &collector.target, path, post);
            let answer = Box::pin(asked).await?;
            if !answer.status().is_success() {
                return Err(CallFailure::Http(answer.status()));
            }
            // Some collectors answer with nothing, or in JSON.
            let body: Bytes = answer.into_body();
            Ok(otlp::Response::decode(body).unwrap_or_default())
        }
    }
}

fn request(collector: &Collector, spans: Vec<otlp::Span>) -> otlp::Request {
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        otlp::attribute("service.name", collector.service_name.as_str()),
        otlp::attribute("telemetry.sdk.language", "rust"),
        otlp::attribute("telemetry.sdk.name", "leyline"),
        otlp::attribute("telemetry.sdk.version", version),
    ];
    otlp::Request {
        resource_spans: vec![otlp::ResourceSpans {
            resource: Some(otlp::Resource { attributes }),
            scope_spans: vec![otlp::ScopeSpans {
                scope: Some(otlp::Scope {
                    name: "leyline-waypoint".to_owned(),
                    version: version.to_owned(),
                }),
                spans,
            }],
        }],
    }
}

fn count(result: &'static str, spans: u64) {
    counter!("leyline_waypoint_spans_total", "result" => result).increment(spans);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_collector_costs_spans_and_nothing_else() {
        let (_spans, mut exporter) = Spans::new();
        let collector = Arc::new(Collector::default());
        for number in 1..=WAITING + 10 {
            let fill = exporter.put(collector.clone(), otlp::Span::default());
            assert_eq!(fill == Fill::Full, number >= BATCH, "{number}");
        }
        // The same collector, named by another chain.
        exporter.put(Arc::new(Collector::default()), otlp::Span::default());
        assert_eq!(exporter.batches.len(), 1);
        assert_eq!(exporter.batches[0].waiting.len(), WAITING);
    }

    #[test]
    fn a_full_queue_does_not_wait() {
        let (spans, exporter) = Spans::new();
        let collector = Arc::new(Collector::default());
        for _ in 0..QUEUE + 1 {
            spans.send(&collector, otlp::Span::default());
        }
        assert_eq!(exporter.queue.len(), QUEUE);
    }
}
