//! The admin server of the node (facts A17), loopback only, and the two public ones: metrics and readiness.

mod profile;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, VARY},
};
use http_body_util::Full;
use leyline_runtime::{Drain, Readiness, http as server};
use leyline_telemetry::{log::LogHandle, metrics::MetricsHandle};
use leyline_types::WorkloadName;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::info;

use crate::{
    agent::pods::{PodSet, Pods},
    config::Config,
    explain,
    proxy::{Shared, connections::Shown},
};

const INDEX: &str = "<!doctype html><title>ztunnel</title><h1>ztunnel</h1><ul>\
<li><a href=\"/config_dump\">config_dump</a>: workloads, services, policies, certificates, connections</li>\
<li>/explain?from=NAMESPACE/POD&amp;to=ADDRESS:PORT: what would become of a connection (&amp;format=json for programs)</li>\
<li>POST /logging?level=LEVEL: log levels at run time</li>\
<li>/debug/pprof/profile[?seconds=1..300][&amp;frequency=1..1000]: a CPU profile for pprof</li>\
<li>/debug/pprof/heap: a profile of the memory in use for pprof, while it is sampled</li>\
<li>/debug/pprof/heap/profiling[?activate=true|false]: switches that sampling on and off</li>\
<li>POST /quitquitquit: graceful shutdown</li></ul>";

/// What the admin pages show and do.
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: Arc<PodSet>,
    pub(crate) config: Arc<Config>,
    pub(crate) log: LogHandle,
    pub(crate) quit: mpsc::Sender<()>,
}

impl Admin {
    pub(crate) fn handler(self: Arc<Self>) -> server::Handler {
        server::handler(move |request| {
            let admin = self.clone();
            async move {
                match request.uri().path() {
                    // Boxed: it is large and rare.
                    "/debug/pprof/profile" => {
                        let query = request.uri().query().unwrap_or_default();
                        Box::pin(profile::cpu(query)).await
                    }
                    "/debug/pprof/heap" => profile::heap::page().await,
                    "/debug/pprof/heap/profiling" => {
                        let query = request.uri().query().unwrap_or_default();
                        profile::heap::profiling(query).await
                    }
                    _ => admin.answer(&request),
                }
            }
        })
    }

    /// A profile takes its time.
    pub(crate) fn limits() -> server::HttpLimits {
        let limits = server::HttpLimits::default();
        server::HttpLimits {
            request_deadline: profile::LONGEST + limits.request_deadline,
            lifetime: profile::LONGEST + limits.request_deadline,
            ..limits
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/" => server::typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
            "/config_dump" => match serde_json::to_vec_pretty(&self.dump()) {
                Ok(body) => server::typed(StatusCode::OK, "application/json", body),
                Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            "/explain" => self.explain(request.uri().query().unwrap_or_default()),
            "/logging" => {
                let (status, body) = self
                    .log
                    .handle_logging_request(request.method().as_str(), request.uri().query());
                server::text(status_code(status), body)
            }
            "/quitquitquit" if request.method() == Method::POST => {
                info!("shutdown asked for by the admin page");
                // A second request finds the queue full, and shutdown under way.
                self.quit.try_send(()).ok();
                server::text(StatusCode::OK, "shutdown now\n")
            }
            "/quitquitquit" => server::text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
            _ => server::text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    fn explain(&self, query: &str) -> Response<Full<Bytes>> {
        let value = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let found = pairs.find_map(|(name, value)| (name == key).then_some(value));
            found.map(|value| percent_decode_str(value).decode_utf8_lossy().into_owned())
        };
        let Some((from, to)) = value("from").zip(value("to")) else {
            let usage = "usage: /explain?from=NAMESPACE/POD&to=ADDRESS:PORT[&format=json]\n";
            return server::text(StatusCode::BAD_REQUEST, usage);
        };
        let snapshot = self.shared.store.snapshot();
        let question = explain::Question { from, to };
        let explained = match explain::explain(&snapshot, &self.shared.certificates, &question) {
            Ok(explained) => explained,
            Err(error) => return server::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        if value("format").as_deref() != Some("json") {
            return server::text(StatusCode::OK, explain::render(&explained));
        }
        match serde_json::to_string_pretty(&explained) {
            Ok(json) => server::typed(StatusCode::OK, "application/json", json + "\n"),
            Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// The shape that `istioctl ztunnel-config` reads.
    fn dump(&self) -> Value {
        let snapshot = self.shared.store.snapshot();
        let mut dump = json!({
            "certificates": self.shared.certificates.dump(),
            "workloadState": workload_state(&self.pods.now()),
            "staticConfig": { "workloads": [], "policies": [], "services": [] },
            "version": crate::version::info(),
            "config": self.config.shown(),
        });
        if let (Value::Object(dump), Ok(Value::Object(state))) =
            (&mut dump, serde_json::to_value(snapshot.dump()))
        {
            dump.extend(state);
        }
        dump
    }
}

/// Pods by uid. The connections of one that left and came back are those of all its lives.
fn workload_state(pods: &Pods) -> BTreeMap<String, PodState<'_>> {
    let mut states = BTreeMap::new();
    for waiting in &pods.waiting {
        states.insert(
            waiting.uid.to_string(),
            PodState::new(&waiting.name, State::Pending, Some(&waiting.error)),
        );
    }
    for pod in &pods.served {
        let life = if pod.is_draining() {
            State::Draining
        } else {
            State::Up
        };
        let state = states
            .entry(pod.uid.to_string())
            .or_insert_with(|| PodState::new(&pod.name, life, None));
        state.state = state.state.max(life);
        let (inbound, outbound) = pod.connections.dump();
        state.connections.inbound.extend(inbound);
        state.connections.outbound.extend(outbound);
    }
    states
}

#[derive(Debug, Serialize)]
struct PodState<'a> {
    state: State,
    connections: ConnectionsOf,
    info: &'a WorkloadName,
    /// Why it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// In the order of what is told of a pod that has several lives at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum State {
    Draining,
    Pending,
    Up,
}

#[derive(Debug, Default, Serialize)]
struct ConnectionsOf {
    inbound: Vec<Shown>,
    outbound: Vec<Shown>,
}

impl<'a> PodState<'a> {
    fn new(info: &'a WorkloadName, state: State, error: Option<&'a str>) -> Self {
        Self {
            state,
            connections: ConnectionsOf::default(),
            info,
            error,
        }
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// `/metrics` and `/stats/prometheus`.
pub(crate) fn metrics_handler(metrics: MetricsHandle) -> server::Handler {
    server::handler(move |request: Request<_>| {
        let header = |name| {
            let value = request.headers().get::<HeaderName>(name)?;
            value.to_str().ok()
        };
        let answer = match request.uri().path() {
            "/metrics" | "/stats/prometheus" => {
                let page = metrics.page(header(ACCEPT), header(ACCEPT_ENCODING));
                let mut answer = server::typed(StatusCode::OK, page.content_type, page.body);
                let headers = answer.headers_mut();
                headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
                if let Some(encoding) = page.encoding {
                    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
                }
                answer
            }
            _ => server::text(StatusCode::NOT_FOUND, "not found\n"),
        };
        std::future::ready(answer)
    })
}

/// Serves readiness on every listener given.
pub(crate) fn serve_readiness(
    listener: tokio::net::TcpListener,
    readiness: Readiness,
    drain: &Drain,
) {
    server::serve(
        listener,
        server::readiness_handler(readiness),
        drain,
        server::HttpLimits::default(),
    );
}
