//! The traffic metrics: counters of each set of labels, shared by all connections that have these labels.
//!
//! They are kept here and not in the process's registry, because their number follows the mesh: sets whose workloads are
//! gone are forgotten, and there is a bound. A set that a connection holds is never forgotten, so that nothing is lost.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    hash::{Hash, Hasher},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leyline_types::{Identity, Str};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::{
    Reporter, ResponseFlag, Security, ServiceLabels, WorkloadLabels,
    labels::{BEFORE_FLAGS, KeptLabels, NAMES},
};

/// Sets of labels at once, about 1 KiB each. More pairs than this within the expiry are counted under `unknown`.
const MAX_SETS: usize = 10_000;
/// How long a set outlives its last connection. Longer than any usual interval of scrapes, so that no last value is
/// missed; short enough that a node which sees many short-lived pods does not collect them.
const EXPIRY: Duration = Duration::from_secs(15 * 60);

/// Everything that the labels of a connection are made of, except how it ended. Two are equal when the labels are that are
/// written: pods of one workload have other names and the same labels.
#[derive(Clone, Debug)]
pub(super) struct LabelSet {
    pub(super) kept: KeptLabels,
    pub(super) reporter: Reporter,
    pub(super) security: Security,
    pub(super) source: Option<Arc<WorkloadLabels>>,
    pub(super) destination: Option<Arc<WorkloadLabels>>,
    pub(super) service: Option<Arc<ServiceLabels>>,
    pub(super) source_identity: Option<Identity>,
    pub(super) destination_identity: Option<Identity>,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn increment(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one label set.
#[derive(Debug)]
pub(super) struct Series {
    labels: LabelSet,
    pub(super) opened: Counter,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    closed: [Counter; ResponseFlag::COUNT],
    failed: [Counter; ResponseFlag::COUNT],
    idle: Mutex<Idle>,
}

/// Since when nothing was counted, as far as was looked.
#[derive(Debug)]
struct Idle {
    since: Instant,
    total: u64,
}

impl Series {
    /// The counters of these labels.
    pub(super) fn of(labels: &LabelSet) -> Arc<Self> {
        TABLE.series(labels)
    }

    fn new(labels: LabelSet) -> Self {
        Self {
            labels,
            opened: Counter::default(),
            sent: Counter::default(),
            received: Counter::default(),
            closed: Default::default(),
            failed: Default::default(),
            idle: Mutex::new(Idle {
                since: Instant::now(),
                total: 0,
            }),
        }
    }

    /// Connections that ended with this flag.
    pub(super) fn closed(&self, flag: ResponseFlag) -> &Counter {
        &self.closed[flag.index()]
    }

    /// Connections that failed with this flag.
    pub(super) fn failed(&self, flag: ResponseFlag) -> &Counter {
        &self.failed[flag.index()]
    }

    /// How long nothing was counted.
    fn idle(&self, now: Instant) -> Duration {
        let ends: u64 = self.closed.iter().map(Counter::get).sum();
        let total = [&self.opened, &self.sent, &self.received]
            .into_iter()
            .map(Counter::get)
            .fold(ends, u64::wrapping_add);
        let mut idle = self.idle.lock();
        if idle.total != total {
            *idle = Idle { since: now, total };
        }
        now.saturating_duration_since(idle.since)
    }
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(MAX_SETS));

/// Appends the traffic metrics to a page.
pub(crate) fn append(text: &mut String) {
    TABLE.append(text);
}

/// Forgets the sets that nobody has used for a while; says how many. Called regularly.
pub(crate) fn expire() -> usize {
    let expired = TABLE.expire(Instant::now(), EXPIRY);
    metrics::counter!(EXPIRED).increment(expired as u64);
    expired
}

const EXPIRED: &str = "leyline_metric_series_expired_total";
const OVERFLOW: &str = "leyline_metric_series_overflow_total";

struct Table {
    capacity: usize,
    /// Held for one look-up or insertion, and to list what there is.
    series: RwLock<HashMap<LabelSet, Arc<Series>>>,
}

impl Table {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            series: RwLock::default(),
        }
    }

    fn series(&self, labels: &LabelSet) -> Arc<Series> {
        if let Some(found) = self.series.read().get(labels) {
            return found.clone();
        }
        let mut all = self.series.write();
        if all.len() < self.capacity || all.contains_key(labels) {
            return all
                .entry(labels.clone())
                .or_insert_with_key(|labels| Arc::new(Series::new(labels.clone())))
                .clone();
        }
        metrics::counter!(OVERFLOW).increment(1);
        // Two reporters and two kinds of security: four more than the bound at most.
        all.entry(labels.unknown())
            .or_insert_with_key(|labels| Arc::new(Series::new(labels.clone())))
            .clone()
    }

    /// While the table is locked nobody can begin to use what only the table holds.
    fn expire(&self, now: Instant, after: Duration) -> usize {
        let mut all = self.series.write();
        let before = all.len();
        all.retain(|_, series| series.idle(now) < after || Arc::strong_count(series) > 1);
        before - all.len()
    }

    fn append(&self, text: &mut String) {
        // Listed first: rendering takes a while, and new labels would wait for it.
        let all: Vec<Arc<Series>> = self.series.read().values().cloned().collect();
        let all: Vec<(&Series, Labels)> = all
            .iter()
            .map(|series| (series.as_ref(), series.labels.render()))
            .collect();
        // A waypoint has these families from elsewhere.
        if all.is_empty() {
            return;
        }
        let plain = |text: &mut String, name, help, counter: fn(&Series) -> &Counter| {
            head(text, name, help);
            for (series, labels) in &all {
                labels.line(text, name, ResponseFlag::None, counter(series).get());
            }
        };
        let (opened, sent) = (
            "istio_tcp_connections_opened_total",
            "istio_tcp_sent_bytes_total",
        );
        let received = "istio_tcp_received_bytes_total";
        plain(text, opened, "Connections opened.", |s| &s.opened);
        plain(
            text,
            sent,
            "Bytes sent by the destination to the source.",
            |s| &s.sent,
        );
        plain(
            text,
            received,
            "Bytes sent by the source to the destination.",
            |s| &s.received,
        );
        let by_flag = |text: &mut String, name, help, counter: ByFlag| {
            head(text, name, help);
            for (series, labels) in &all {
                let counts = ResponseFlag::ALL.map(|flag| (flag, counter(series, flag).get()));
                for (flag, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
                    labels.line(text, name, flag, count);
                }
            }
        };
        let (closed, failed) = (
            "istio_tcp_connections_closed_total",
            "istio_tcp_connections_failed_total",
        );
        by_flag(text, closed, "Connections ended.", Series::closed);
        by_flag(
            text,
            failed,
            "Connections ended by a failure.",
            Series::failed,
        );
    }
}

/// Selects a counter of a series.
type ByFlag = fn(&Series, ResponseFlag) -> &Counter;

fn head(text: &mut String, name: &str, help: &str) {
    // A string takes everything, here and below.
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter").ok();
}

/// Rendered labels, around the value of `response_flags`.
struct Labels {
    before: String,
    after: String,
}

impl Labels {
    fn line(&self, text: &mut String, name: &str, flag: ResponseFlag, value: u64) {
        let (before, after, flag) = (&self.before, &self.after, flag.as_str());
        writeln!(text, "{name}{{{before}{flag}{after}}} {value}").ok();
    }
}

impl LabelSet {
    /// What stands for sets beyond the bound.
    fn unknown(&self) -> Self {
        Self {
            kept: self.kept,
            reporter: self.reporter,
            security: self.security,
            source: None,
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
        }
    }

    /// The values of [`NAMES`].
    // tidy: table
    fn values(&self) -> [Value<'_>; NAMES.len()] {
        fn of<'a>(
            workload: Option<&'a WorkloadLabels>,
            text: fn(&WorkloadLabels) -> &Str,
        ) -> Value<'a> {
            Value::Text(workload.map_or("", |workload| text(workload).as_str()))
        }
        let (source, destination) = (self.source.as_deref(), self.destination.as_deref());
        let service = |text: fn(&ServiceLabels) -> &Str| {
            let service = self.service.as_deref();
            Value::Text(service.map_or("", |service| text(service).as_str()))
        };
        [
            Value::Text(self.reporter.as_str()),
            of(source, |w| &w.workload),
            of(source, |w| &w.canonical_service),
            of(source, |w| &w.canonical_revision),
            of(source, |w| &w.namespace),
            Value::Principal(self.source_identity.as_ref()),
            of(source, |w| &w.app),
            of(source, |w| &w.version),
            of(source, |w| &w.cluster),
            service(|s| &s.hostname),
            service(|s| &s.namespace),
            service(|s| &s.name),
            of(destination, |w| &w.workload),
            of(destination, |w| &w.canonical_service),
            of(destination, |w| &w.canonical_revision),
            of(destination, |w| &w.namespace),
            Value::Principal(self.destination_identity.as_ref()),
            of(destination, |w| &w.app),
            of(destination, |w| &w.version),
            of(destination, |w| &w.cluster),
            Value::Text("tcp"),
            Value::Text(self.security.as_str()),
            of(source, |w| &w.region),
            of(source, |w| &w.zone),
            of(destination, |w| &w.region),
            of(destination, |w| &w.zone),
        ]
    }

    /// Those that are written.
    fn kept(&self) -> impl Iterator<Item = (usize, Value<'_>)> {
        let values = self.values().into_iter().enumerate();
        values.filter(|(index, _)| self.kept.has(*index))
    }

    /// Labels of a traffic metric, in Istio's order.
    fn render(&self) -> Labels {
        let mut labels = Labels {
            before: String::with_capacity(768),
            after: String::with_capacity(192),
        };
        let (mut before, mut after) = (&mut labels.before, &mut labels.after);
        for (index, value) in self.kept() {
            let name = NAMES[index];
            match index < BEFORE_FLAGS {
                true => write!(&mut before, "{name}=\"{value}\",").ok(),
                false => write!(&mut after, ",{name}=\"{value}\"").ok(),
            };
        }
        labels.before.push_str("response_flags=\"");
        labels.after.insert(0, '"');
        labels
    }
}

impl PartialEq for LabelSet {
    fn eq(&self, other: &Self) -> bool {
        self.kept == other.kept && self.kept().eq(other.kept())
    }
}

impl Eq for LabelSet {}

impl Hash for LabelSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kept().for_each(|(_, value)| value.hash(state));
    }
}

/// One label's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Value<'a> {
    /// Empty where nothing is known.
    Text(&'a str),
    Principal(Option<&'a Identity>),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text("") | Self::Principal(None) => f.write_str(UNKNOWN),
            Self::Text(text) => Escaped(text).fmt(f),
            Self::Principal(Some(identity)) => Escaped(&identity.to_string()).fmt(f),
        }
    }
}

/// What Istio writes where it knows nothing.
const UNKNOWN: &str = "unknown";

/// A label's value, as the text format wants it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(['\\', '"', '\n']) {
            return f.write_str(self.0);
        }
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str) -> LabelSet {
        LabelSet {
            kept: KeptLabels::ALL,
            reporter: Reporter::Source,
            security: Security::Unknown,
            source: Some(Arc::new(WorkloadLabels {
                workload: workload.into(),
                ..WorkloadLabels::default()
            })),
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
        }
    }

    fn text(table: &Table) -> String {
        let mut text = String::new();
        table.append(&mut text);
        text
    }

    #[test]
    fn equal_labels_share_their_counters() {
        let table = Table::new(10);
        let first = table.series(&labels("a"));
        assert!(Arc::ptr_eq(&first, &table.series(&labels("a"))));
        assert!(!Arc::ptr_eq(&first, &table.series(&labels("b"))));
    }

    /// Prometheus refuses a page that has a series twice.
    #[test]
    fn pods_of_one_workload_share_their_counters() {
        let table = Table::new(10);
        let of_pod = |name: &str| LabelSet {
            source: Some(Arc::new(WorkloadLabels {
                name: name.into(),
                workload: "web".into(),
                ..WorkloadLabels::default()
            })),
            ..labels("")
        };
        table.series(&of_pod("web-1")).opened.increment(1);
        table.series(&of_pod("web-2")).opened.increment(1);
        table.series(&labels("")).opened.increment(1);
        table.series(&labels("").unknown()).opened.increment(1);
        let text = text(&table);
        let opened = text
            .lines()
            .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
        let mut counts: Vec<&str> = opened
            .map(|line| line.rsplit(' ').next().unwrap())
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, ["2", "2"], "{text}");
    }

    #[test]
    fn what_is_told_by_removed_labels_only_is_one() {
        let table = Table::new(10);
        let kept = KeptLabels::without("source_workload, source_zone").unwrap();
        for workload in ["a", "b"] {
            let labels = LabelSet {
                kept,
                ..labels(workload)
            };
            table.series(&labels).opened.increment(1);
        }
        let text = text(&table);
        assert!(
            text.contains(
                "istio_tcp_connections_opened_total{reporter=\"source\",source_canonical_service="
            ),
            "{text}"
        );
        assert!(!text.contains("source_zone"), "{text}");
        assert_eq!(table.series.read().len(), 1);
    }

    #[test]
    fn beyond_the_bound_counting_goes_on_without_names() {
        let table = Table::new(10);
        for number in 0..100 {
            table
                .series(&labels(&number.to_string()))
                .opened
                .increment(1);
        }
        assert_eq!(table.series.read().len(), 11);
        let rest = table.series(&labels("new").unknown());
        assert_eq!(rest.opened.get(), 90);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_expires_and_what_is_used_does_not() {
        let table = Table::new(10);
        let after = Duration::from_secs(60);
        let held = table.series(&labels("held"));
        table.series(&labels("gone")).opened.increment(1);
        table.series(&labels("busy")).opened.increment(1);
        assert_eq!(table.expire(Instant::now(), after), 0);
        tokio::time::advance(after).await;
        table.series(&labels("busy")).opened.increment(1);
        assert_eq!(table.expire(Instant::now(), after), 1);
        assert!(!text(&table).contains("\"gone\""));
        held.sent.increment(7);
        assert!(text(&table).contains("\"held\"") && text(&table).contains("\"busy\""));
        drop(held);
        assert_eq!(
            table.expire(Instant::now(), after),
            0,
            "it has just counted"
        );
        tokio::time::advance(after).await;
        assert_eq!(table.expire(Instant::now(), after), 2);
    }

    #[test]
    fn values_cannot_break_out_of_their_quotes() {
        let table = Table::new(1);
        table.series(&labels("a\"} 1\n\\")).opened.increment(1);
        let text = text(&table);
        assert!(text.contains(r#"source_workload="a\"} 1\n\\","#), "{text}");
    }
}
