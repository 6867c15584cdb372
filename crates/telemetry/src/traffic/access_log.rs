//! The guard of one connection: it counts from its opening to its drop, and then writes its line.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use leyline_types::{Identity, Str};
use tokio::time::Instant;

use super::{
    Carrier, Connection, Direction, Reporter, ResponseFlag, Security, ServiceLabels,
    WorkloadLabels,
    labels::KeptLabels,
    series::{LabelSet, Series},
};

/// One connection in the access log and the traffic metrics. Dropped at the end of the connection.
#[derive(Debug)]
pub struct AccessLog {
    labels: LabelSet,
    direction: Direction,
    src_addr: SocketAddr,
    dst_addr: SocketAddr,
    hbone_addr: Option<String>,
    carrier: Carrier,
    series: Arc<Series>,
    opened: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    /// Destinations that were tried.
    attempts: u32,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    flag: ResponseFlag,
    error: String,
}

impl AccessLog {
    /// Counts the connection as opened.
    pub fn open(connection: Connection) -> Self {
        Self::open_carried_by(connection, Carrier::Wire)
    }

    /// The same, of a connection that need not go by the wire.
    pub fn open_carried_by(connection: Connection, carrier: Carrier) -> Self {
        let (direction, src_addr) = (connection.direction, connection.src_addr);
        let (dst_addr, hbone_addr) = (connection.dst_addr, connection.hbone_addr.clone());
        let labels = labels_of(connection);
        let series = Series::of(&labels);
        series.opened.increment(1);
        let log = Self {
            labels,
            direction,
            src_addr,
            dst_addr,
            hbone_addr,
            carrier,
            series,
            opened: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            attempts: 1,
            failure: None,
        };
        log.emit_opened();
        log
    }

    /// The destination could not be reached, and another is tried. The metrics count what was tried as a connection that
    /// failed; the log has one line, of the last destination, and says how many there were.
    pub fn redirect(&mut self, flag: ResponseFlag, connection: Connection) {
        self.series.closed(flag).increment(1);
        self.series.failed(flag).increment(1);
        self.dst_addr = connection.dst_addr;
        self.hbone_addr.clone_from(&connection.hbone_addr);
        self.labels = labels_of(connection);
        self.series = Series::of(&self.labels);
        self.series.opened.increment(1);
        self.attempts += 1;
        self.emit_opened();
    }

    /// Left out where the first destination was the last.
    fn told_attempts(&self) -> Option<u32> {
        (self.attempts > 1).then_some(self.attempts)
    }

    /// Bytes that the reporting workload has sent to its peer.
    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        // The metrics name both directions from the destination's side, whoever reports.
        match self.labels.reporter {
            Reporter::Source => self.series.received.increment(bytes),
            Reporter::Destination => self.series.sent.increment(bytes),
        }
    }

    /// Bytes that the reporting workload has received from its peer.
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        match self.labels.reporter {
            Reporter::Source => self.series.sent.increment(bytes),
            Reporter::Destination => self.series.received.increment(bytes),
        }
    }

    /// Bytes that came from the connection that was accepted: the source's.
    pub fn moved_from_downstream(&self, bytes: u64) {
        match self.labels.reporter {
            Reporter::Source => self.sent(bytes),
            Reporter::Destination => self.received(bytes),
        }
    }

    /// Bytes that came from the connection that was opened for it: the destination's.
    pub fn moved_from_upstream(&self, bytes: u64) {
        match self.labels.reporter {
            Reporter::Source => self.received(bytes),
            Reporter::Destination => self.sent(bytes),
        }
    }

    /// Bytes so far, in both directions.
    pub fn moved(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed)
    }

    /// Notes why the connection fails. The first reason stays: what follows is its consequence.
    pub fn fail(&mut self, flag: ResponseFlag, error: impl Display) {
        self.failure.get_or_insert_with(|| Failure {
            flag,
            error: error.to_string(),
        });
    }

    fn source(&self, text: fn(&WorkloadLabels) -> &Str) -> Option<&str> {
        known(self.labels.source.as_deref().map(text))
    }

    fn destination(&self, text: fn(&WorkloadLabels) -> &Str) -> Option<&str> {
        known(self.labels.destination.as_deref().map(text))
    }

    fn service(&self, text: fn(&ServiceLabels) -> &Str) -> Option<&str> {
        known(self.labels.service.as_deref().map(text))
    }

    /// An identity is told only when it was proven.
    fn proven(&self, identity: Option<&Identity>) -> Option<String> {
        match self.labels.security {
            Security::MutualTls => identity.map(ToString::to_string),
            Security::Unknown => None,
        }
    }
}

fn labels_of(connection: Connection) -> LabelSet {
    LabelSet {
        kept: KeptLabels::now(),
        reporter: connection.reporter,
        security: connection.security,
        source: connection.source,
        destination: connection.destination,
        service: connection.service,
        source_identity: connection.source_identity,
        destination_identity: connection.destination_identity,
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        match &self.failure {
            None => {
                self.series.closed(ResponseFlag::None).increment(1);
                self.emit_complete();
            }
            Some(failure) => {
                self.series.closed(failure.flag).increment(1);
                if failure.flag != ResponseFlag::None {
                    self.series.failed(failure.flag).increment(1);
                }
                self.emit_failed(&failure.error);
            }
        }
    }
}

fn known(text: Option<&Str>) -> Option<&str> {
    text.filter(|text| !text.is_empty()).map(Str::as_str)
}

/// The keys and their order are Istio's, a contract with whoever reads the log; an absent value leaves its key out.
macro_rules! access_event {
    ($log:ident, $level:ident, $message:literal $(, $key:ident = $value:expr)*) => {
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::$level,
            src.addr = %$log.src_addr,
            src.workload = $log.source(|w| &w.name),
            src.namespace = $log.source(|w| &w.namespace),
            src.identity = $log.proven($log.labels.source_identity.as_ref()),
            src.cluster = $log.source(|w| &w.cluster),
            dst.addr = %$log.dst_addr,
            dst.hbone_addr = $log.hbone_addr.as_ref().map(tracing::field::display),
            dst.service = $log.service(|s| &s.hostname),
            dst.workload = $log.destination(|w| &w.name),
            dst.namespace = $log.destination(|w| &w.namespace),
            dst.identity = $log.proven($log.labels.destination_identity.as_ref()),
            dst.cluster = $log.destination(|w| &w.cluster),
            direction = $log.direction.as_str(),
            path = $log.carrier.shown(),
            $($key = $value,)*
            $message
        )
    };
}

impl AccessLog {
    fn emit_opened(&self) {
        access_event!(self, DEBUG, "connection opened");
    }

    fn emit_complete(&self) {
        access_event!(
            self,
            INFO,
            "connection complete",
            bytes_sent = self.sent.load(Ordering::Relaxed),
            bytes_recv = self.received.load(Ordering::Relaxed),
            duration = self.duration(),
            attempts = self.told_attempts()
        );
    }

    fn emit_failed(&self, error: &str) {
        access_event!(
            self,
            ERROR,
            "connection complete",
            bytes_sent = self.sent.load(Ordering::Relaxed),
            bytes_recv = self.received.load(Ordering::Relaxed),
            duration = self.duration(),
            attempts = self.told_attempts(),
            error = error
        );
    }

    fn duration(&self) -> String {
        format!("{}ms", self.opened.elapsed().as_millis())
    }
}
