//! The admin pages, loopback only, and the metrics.

mod clusters;
mod envoy;
mod routes;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use leyline_runtime::http as server;
use leyline_telemetry::{log::LogHandle, metrics::MetricsHandle};
use leyline_xds::NodeInfo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::info;

use self::envoy::Asked;
use crate::{
    app::Shared,
    config::{Config, listener::Chain},
};

const INDEX: &str = "<!doctype html><title>waypoint</title><h1>waypoint</h1><ul>\
<li><a href=\"/config_dump\">config_dump</a>: what the control plane sent, as Envoy shows it; <a href=\"/config_dump?include_eds\">with endpoints</a></li>\
<li><a href=\"/state\">state</a>: what was made of it: chains, clusters, workloads, certificates</li>\
<li><a href=\"/clusters\">clusters</a>: endpoints and their load, as Envoy shows them; <a href=\"/clusters?format=json\">JSON</a></li>\
<li><a href=\"/listeners\">listeners</a>: chains of services</li>\
<li><a href=\"/routes\">routes</a>: what they match and where they lead</li>\
<li><a href=\"/certs\">certs</a></li>\
<li><a href=\"/unsupported\">unsupported</a>: configuration that is refused, and why</li>\
<li><a href=\"/logging\">logging</a>: log levels; POST /logging?level=LEVEL or level=TARGET=LEVEL,... changes them at run time</li>\
<li>POST /quitquitquit: graceful shutdown</li></ul>";

/// What the admin pages show and do.
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: LogHandle,
    pub(crate) quit: mpsc::Sender<()>,
    /// What the control plane was told.
    pub(crate) node: NodeInfo,
    pub(crate) started: SystemTime,
}

impl Admin {
    pub(crate) fn handler(self: Arc<Self>) -> server::Handler {
        server::handler(move |request| {
            let admin = self.clone();
            async move { admin.answer(&request) }
        })
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let config = self.shared.config.load();
        match request.uri().path() {
            "/" => server::typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
            "/config_dump" => {
                let asked = Asked::parse(request.uri().query());
                json_page(&envoy::dump(&config, &self.node, self.started, &asked))
            }
            "/state" => json_page(&self.state(&config)),
            "/clusters" if wants_json(request.uri().query()) => {
                json_page(&clusters::as_json(&config))
            }
            "/clusters" => server::text(StatusCode::OK, clusters::as_text(&config)),
            "/listeners" => json_page(&chains(&config)),
            "/routes" => json_page(&routes::page(&config)),
            "/certs" => json_page(&json!(self.shared.certificates.dump())),
            "/unsupported" => json_page(&json!(unsupported(&config))),
            "/logging" if request.method() == Method::GET => {
                let levels = format!("current log level is {}\n", self.log.current());
                server::text(StatusCode::OK, levels)
            }
            "/logging" => {
                let (status, body) = self
                    .log
                    .handle_logging_request(request.method().as_str(), request.uri().query());
                let status = StatusCode::from_u16(status);
                server::text(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
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

    fn state(&self, config: &Config) -> Value {
        json!({
            "config": self.shared.settings.shown(),
            "chains": chains(config),
            "clusters": clusters::as_json(config),
            "routes": routes::page(config),
            "unsupported": unsupported(config),
            "certificates": self.shared.certificates.dump(),
            "mesh": self.shared.mesh.snapshot().dump(),
        })
    }
}

fn json_page(value: &Value) -> Response<Full<Bytes>> {
    server::typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// As Envoy's page is asked: text without a word.
fn wants_json(query: Option<&str>) -> bool {
    let mut pairs = query.unwrap_or_default().split('&');
    pairs.any(|pair| pair == "format=json")
}

fn chains(config: &Config) -> Value {
    let chains = config.main.chains.iter();
    let chains: BTreeMap<&str, Value> = chains
        .map(|(name, known)| (name.as_str(), chain(&known.chain)))
        .collect();
    json!(chains)
}

fn chain(chain: &Chain) -> Value {
    match chain {
        Chain::Http(_) => json!("http"),
        Chain::Tcp(_) => json!("tcp"),
        Chain::Refused(reason) => json!({ "refused": reason }),
    }
}

fn unsupported(config: &Config) -> BTreeMap<&str, &str> {
    let all = config.unsupported.iter();
    all.map(|(what, reason)| (what.as_str(), reason.as_str()))
        .collect()
}

/// `/metrics` and `/stats/prometheus`.
pub(crate) fn metrics_handler(metrics: MetricsHandle) -> server::Handler {
    server::handler(move |request: Request<_>| {
        let answer = match request.uri().path() {
            "/metrics" | "/stats/prometheus" => server::typed(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                metrics.render(),
            ),
            _ => server::text(StatusCode::NOT_FOUND, "not found\n"),
        };
        std::future::ready(answer)
    })
}
