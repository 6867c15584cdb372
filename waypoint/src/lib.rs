//! The waypoint: an L7 proxy that node proxies send the traffic of services to. It is configured by Envoy xDS in the shape
//! that istiod gives an `istio-waypoint`; `tests` and `main` use nothing but [`run`].

mod app;

mod listener;
mod sniff;

mod http;
mod tcp;

mod upstream;

mod config;
mod discovery;
mod dns;
mod export;
mod jwks;
mod logs;
mod otlp;

mod authorizer;
mod cel;
mod format;
mod shadow;
mod spans;
mod stats;

mod admin;
mod settings;

pub use app::run;
