//! Access logs that go to services: Envoy's own protocol (ALS) for requests and for connections, and OTLP. What is logged is put
//! together when a request ends; `export` brings it to its service.

pub(crate) mod als;
pub(crate) mod otlp;

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry},
        service::accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            stream_access_logs_message::{
                HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
            },
        },
    },
    opentelemetry::proto::common::v1::KeyValue,
};
use tracing::warn;

use crate::{
    app::Shared,
    export::{self, Signal},
    otlp::{Otlp, Response, attribute},
    upstream::{
        call::{CallFailure, Target},
        grpc,
    },
};

const ALS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
const OTLP: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// What is told.
#[derive(Debug)]
pub(crate) struct ServiceLogs;

/// A service that takes logs.
#[derive(Debug, PartialEq)]
pub(crate) struct Collector {
    pub(crate) target: Target,
    pub(crate) wire: Wire,
    pub(crate) log_name: String,
}

/// How it is told.
#[derive(Debug, PartialEq)]
pub(crate) enum Wire {
    Als,
    Otlp {
        how: Otlp,
        /// Of each message.
        resource: Vec<KeyValue>,
        built_in: BuiltIn,
    },
}

/// Attributes of the resource that Envoy adds: the log, the node, its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BuiltIn {
    Added,
    LeftOut,
}

/// One request or connection.
#[derive(Debug)]
pub(crate) enum Entry {
    Http(Box<HttpAccessLogEntry>),
    Tcp(Box<TcpAccessLogEntry>),
    Record(otlp::Record),
}

impl Signal for ServiceLogs {
    type Item = Entry;
    type Collector = Collector;
    const METRIC: &'static str = "leyline_waypoint_access_log_entries_total";

    async fn send(shared: Arc<Shared>, collector: Arc<Collector>, entries: Vec<Entry>) {
        let count = entries.len() as u64;
        let sent = match &collector.wire {
            Wire::Als => by_als(&shared, &collector, entries).await,
            Wire::Otlp {
                how,
                resource,
                built_in,
            } => {
                let mut attributes = resource.clone();
                if *built_in == BuiltIn::Added {
                    attributes.extend(own_attributes(&shared, &collector));
                }
                let request = otlp::request(attributes, entries);
                let told = how.export(&shared, &collector.target, OTLP, &request).await;
                told.map(|response| rejected(response, count))
            }
        };
        match sent {
            Ok(rejected) => {
                export::count_taken::<Self>(count, rejected);
            }
            Err(error) => {
                let cluster = collector.target.cluster.as_str();
                warn!(cluster, entries = count, %error, "the access log service does not take them");
                export::count::<Self>("failed", count);
            }
        }
    }
}

/// One stream for each message, so that its end tells whether all of it has come.
async fn by_als(
    shared: &Arc<Shared>,
    collector: &Collector,
    entries: Vec<Entry>,
) -> Result<u64, CallFailure> {
    let (mut requests, mut connections) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Http(entry) => requests.push(*entry),
            Entry::Tcp(entry) => connections.push(*entry),
            // Another wire's.
            Entry::Record(_) => {}
        }
    }
    let requests = (!requests.is_empty()).then_some(LogEntries::HttpLogs(HttpAccessLogEntries {
        log_entry: requests,
    }));
    let connections =
        (!connections.is_empty()).then_some(LogEntries::TcpLogs(TcpAccessLogEntries {
            log_entry: connections,
        }));
    for entries in [requests, connections].into_iter().flatten() {
        let node = &shared.settings.node;
        let message = StreamAccessLogsMessage {
            identifier: Some(Identifier {
                node: Some(Node {
                    id: node.id(),
                    cluster: node.cluster(),
                    user_agent_name: "leyline".to_owned(),
                    ..Node::default()
                }),
                log_name: collector.log_name.clone(),
            }),
            log_entries: Some(entries),
        };
        let config = shared.config.load_full();
        let told = grpc::ask(shared, &config, &collector.target, ALS, &message);
        let _nothing: Option<StreamAccessLogsResponse> = Box::pin(told).await?;
    }
    Ok(0)
}

/// How many were rejected.
fn rejected(response: Response, of: u64) -> u64 {
    let (rejected, reason) = response.rejected(of);
    if rejected > 0 {
        warn!(rejected, reason, "the access log service rejects some");
    }
    rejected
}

fn own_attributes(shared: &Shared, collector: &Collector) -> [KeyValue; 4] {
    let node = &shared.settings.node;
    [
        attribute("log_name", collector.log_name.clone()),
        // A waypoint is told no locality of its own.
        attribute("zone_name", String::new()),
        attribute("cluster_name", node.cluster()),
        attribute("node_name", node.id()),
    ]
}
