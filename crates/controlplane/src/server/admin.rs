//! `/ready`, `/status` (objects and their conditions, issues, proxies, enrolment) and `/metrics`. Says nothing secret; bind it to loopback.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use leyline_runtime::{
    Drain,
    http::{HttpLimits, handler, serve, text, typed},
};
use tokio::net::TcpListener;

use crate::{clients::Clients, mesh::Mesh, status};

pub(super) struct Admin {
    mesh: Arc<Mesh>,
    clients: Clients,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Admin {
    pub(super) fn new(
        mesh: Arc<Mesh>,
        clients: Clients,
        render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        Self {
            mesh,
            clients,
            render_metrics,
        }
    }

    pub(super) fn serve(self, listener: TcpListener, drain: &Drain) {
        let answer = handler(move |request| {
            std::future::ready(self.answer(request.method(), request.uri().path()))
        });
        serve(listener, answer, drain, HttpLimits::default());
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            // There is nothing to wait for: listening begins once everything is read.
            "/ready" => text(StatusCode::OK, "ready\n"),
            "/status" => typed(StatusCode::OK, "application/json", self.status()),
            "/metrics" => text(StatusCode::OK, (self.render_metrics)()),
            _ => text(StatusCode::NOT_FOUND, "try /ready, /status or /metrics\n"),
        }
    }

    fn status(&self) -> String {
        let published = self.mesh.published();
        let clients = self.clients.list();
        let status = status::status(&published, &self.mesh.enrolments(), &clients);
        format!("{status:#}\n")
    }
}
