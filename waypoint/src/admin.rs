//! The admin pages, loopback only, and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use leyline_runtime::http as server;
use leyline_telemetry::{log::LogHandle, metrics::MetricsHandle};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tracing::info;

use crate::{
    app::Shared,
    config::{Config, Routes, cluster::Cluster, listener::Chain},
};

const INDEX: &str = "<!doctype html><title>waypoint</title><h1>waypoint</h1><ul>\
<li><a href=\"/config_dump\">config_dump</a>: chains, clusters, workloads, certificates</li>\
<li><a href=\"/clusters\">clusters</a>: endpoints and their load</li>\
<li><a href=\"/routes\">routes</a></li>\
<li><a href=\"/unsupported\">unsupported</a>: configuration that is refused, and why</li>\
<li>POST /logging?level=LEVEL: log levels at run time</li>\
<li>POST /quitquitquit: graceful shutdown</li></ul>";

/// What the admin pages show and do.
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: LogHandle,
    pub(crate) quit: mpsc::Sender<()>,
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
            "/config_dump" => json_page(&self.dump(&config)),
            "/clusters" => json_page(&clusters(&config)),
            "/routes" => json_page(&routes(&config)),
            "/unsupported" => json_page(&json!(unsupported(&config))),
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

    fn dump(&self, config: &Config) -> Value {
        let chains: BTreeMap<&str, Value> = config
            .main
            .chains
            .iter()
            .map(|(name, known)| (name.as_str(), chain(&known.chain)))
            .collect();
        json!({
            "config": self.shared.settings.shown(),
            "chains": chains,
            "clusters": clusters(config),
            "routes": routes(config),
            "unsupported": unsupported(config),
            "certificates": self.shared.certificates.dump(),
            "mesh": self.shared.mesh.snapshot().dump(),
        })
    }
}

fn json_page(value: &Value) -> Response<Full<Bytes>> {
    server::typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn chain(chain: &Chain) -> Value {
    match chain {
        Chain::Http(_) => json!("http"),
        Chain::Tcp(_) => json!("tcp"),
        Chain::Refused(reason) => json!({ "refused": reason }),
    }
}

fn clusters(config: &Config) -> Value {
    let shown = |cluster: &Arc<Cluster>| {
        let set = config.endpoints(cluster);
        let endpoints = set.into_iter().flat_map(|set| set.all());
        let endpoints = endpoints.map(|endpoint| {
            json!({
                "address": endpoint.address.addr(),
                "tunnel": matches!(endpoint.address, crate::config::endpoints::EndpointAddress::Hbone(_)),
                "weight": endpoint.weight,
                "active": endpoint.state.active(),
                "healthy": endpoint.told_healthy,
                "ejected": endpoint.state.back_at(Instant::now()).is_some(),
            })
        });
        (cluster.name.to_string(), Value::from_iter(endpoints))
    };
    let clusters: BTreeMap<String, Value> = config.clusters.values().map(shown).collect();
    json!(clusters)
}

fn routes(config: &Config) -> Value {
    let tables: BTreeMap<&str, Value> = config
        .routes
        .iter()
        .map(|(name, routes)| {
            let shown = match routes {
                Routes::Table(table) => json!({ "routes": table.len() }),
                Routes::Refused(reason) => json!({ "refused": reason }),
            };
            (name.as_str(), shown)
        })
        .collect();
    json!(tables)
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
