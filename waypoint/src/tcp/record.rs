//! What is told of a TCP connection: Istio's metrics while it lasts, and its lines at the end.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use tokio::time::{Duration, Instant, interval};
use tracing::debug;

use super::Moved;
use crate::{
    app::Shared,
    config::{
        access_log::millis, cluster::Cluster, endpoints::EndpointAddress, telemetry::Telemetry,
    },
    format::{Field, Source, Told},
    http::{flags::Flags, reply::Flag, server::Destination},
    listener::Client,
    stats::{
        Metric, Series,
        labels::{Labels, Peer},
    },
};

/// How often bytes of a connection that lasts are counted: Istio's default.
const REPORT: Duration = Duration::from_secs(5);

/// One connection.
pub(super) struct Record<'a> {
    shared: &'a Shared,
    telemetry: &'a Telemetry,
    client: &'a Client,
    destination: &'a Destination,
    start: Instant,
    start_time: SystemTime,
    cluster: Option<Arc<Cluster>>,
    upstream: Option<EndpointAddress>,
    flags: Flags,
    details: String,
    received: u64,
    sent: u64,
}

impl<'a> Record<'a> {
    pub(super) fn begin(
        shared: &'a Shared,
        telemetry: &'a Telemetry,
        client: &'a Client,
        destination: &'a Destination,
    ) -> Self {
        Self {
            shared,
            telemetry,
            client,
            destination,
            start: Instant::now(),
            start_time: SystemTime::now(),
            cluster: None,
            upstream: None,
            flags: Flags::default(),
            details: String::new(),
            received: 0,
            sent: 0,
        }
    }

    pub(super) fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.cluster = Some(cluster.clone());
    }

    /// An endpoint was chosen; it may not be reached.
    pub(super) fn upstream(&mut self, endpoint: EndpointAddress) {
        self.upstream = Some(endpoint);
    }

    /// It did not get, or not stay, through.
    pub(super) fn failed(&mut self, flag: Flag, details: impl Into<String>) {
        self.flags.insert(flag);
        self.details = details.into();
    }

    /// Counts what passes, until it is dropped.
    pub(super) async fn count(&self, moved: &Moved, counted: &Counted) {
        let mut ticks = interval(REPORT);
        loop {
            ticks.tick().await;
            counted.add(moved);
        }
    }

    /// Series of the connection, whose opening is counted now.
    pub(super) fn opened(&self) -> Counted {
        let counted = Counted {
            received: self.series(Metric::TcpReceived),
            sent: self.series(Metric::TcpSent),
            told: parking_lot::Mutex::default(),
        };
        if let Some(opened) = self.series(Metric::TcpOpened) {
            opened.add(1.0);
        }
        counted
    }

    /// Counts the end and writes the lines.
    pub(super) fn closed(mut self, moved: &Moved) {
        self.received = moved.received.load(Ordering::Relaxed);
        self.sent = moved.sent.load(Ordering::Relaxed);
        if let Some(closed) = self.series(Metric::TcpClosed) {
            closed.add(1.0);
        }
        for line in self.telemetry.logs.lines(&self) {
            self.shared.log.write_line(line);
        }
        for (collector, entry) in self.telemetry.logs.entries(&self) {
            self.shared.service_logs.send(collector, entry);
        }
        debug!(
            target: "access",
            bytes_received = self.received,
            bytes_sent = self.sent,
            duration = millis(self.start.elapsed()),
            response_flags = %self.flags,
            details = self.details,
            upstream_host = self.upstream.map(|it| tracing::field::display(it.addr())),
            downstream_local_address = %self.destination,
            downstream_remote_address = %self.client.addr,
            source_principal = &*self.client.principal,
            "connection complete"
        );
    }

    fn series(&self, metric: Metric) -> Option<Arc<Series>> {
        let mesh = self.shared.mesh.snapshot();
        let source = Peer::source(&mesh, self.client);
        let destination = self.upstream.map(|it| Peer::destination(&mesh, it));
        let destination = destination.unwrap_or_default();
        let mut labels = Labels::default();
        labels.of_source(&source);
        labels.of_destination(&destination);
        labels.secure(&source, &destination);
        let cluster = self.cluster.as_ref();
        if let Some(service) = cluster.and_then(|cluster| cluster.service.as_ref()) {
            labels.of_service(service);
        }
        labels.set("request_protocol", "tcp");
        labels.set("response_flags", self.flags.to_string());
        let labels = self.telemetry.metrics.labels(metric, &labels, self)?;
        Some(self.shared.stats.series(metric, &labels))
    }
}

/// Bytes of one connection, as far as they are counted.
pub(super) struct Counted {
    received: Option<Arc<Series>>,
    sent: Option<Arc<Series>>,
    told: parking_lot::Mutex<(u64, u64)>,
}

impl Counted {
    /// Counts what has passed since the last time.
    // Exact up to 2^53.
    pub(super) fn add(&self, moved: &Moved) {
        let received = moved.received.load(Ordering::Relaxed);
        let sent = moved.sent.load(Ordering::Relaxed);
        let mut told = self.told.lock();
        let (known_received, known_sent) = std::mem::replace(&mut *told, (received, sent));
        drop(told);
        if let Some(series) = &self.received {
            series.add(received.saturating_sub(known_received) as f64);
        }
        if let Some(series) = &self.sent {
            series.add(sent.saturating_sub(known_sent) as f64);
        }
    }
}

impl Source for Record<'_> {
    fn request(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn response(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn trailer(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn metadata(&self, _path: &[String]) -> Option<Cow<'_, str>> {
        None
    }

    fn start(&self) -> SystemTime {
        self.start_time
    }

    fn field(&self, field: Field) -> Option<Told<'_>> {
        let upstream = self.upstream.map(EndpointAddress::addr);
        let details = Some(self.details.as_str()).filter(|details| !details.is_empty());
        match field {
            // As Envoy writes it.
            Field::ResponseCode => Some(Told::Number(0)),
            Field::ResponseFlags => Some(Told::text(self.flags.to_string())),
            Field::ResponseFlagsLong => Some(Told::text(self.flags.long())),
            Field::ConnectionTerminationDetails | Field::UpstreamTransportFailureReason => {
                details.map(Told::text)
            }
            Field::BytesReceived => Some(Told::Number(self.received)),
            Field::BytesSent => Some(Told::Number(self.sent)),
            Field::Duration => Some(Told::Number(millis(self.start.elapsed()))),
            Field::UpstreamHost => upstream.map(|addr| Told::text(addr.to_string())),
            Field::UpstreamHostWithoutPort => {
                upstream.map(|addr| Told::text(addr.ip().to_string()))
            }
            Field::UpstreamCluster => {
                let cluster = self.cluster.as_ref()?;
                Some(Told::text(cluster.name.as_str()))
            }
            other => self.client.field(self.destination, other),
        }
    }
}
