//! Routes: which request goes where. A table is compiled whole or not at all, so that no request takes a route that was
//! written for others because the right one could not be understood.

pub(crate) mod action;
pub(crate) mod hash;
pub(crate) mod headers;
pub(crate) mod matching;
pub(crate) mod retry;

use envoy_types::pb::envoy::config::route::v3 as proto;
use leyline_types::Str;

use self::{action::Action, headers::HeaderOps, matching::RouteMatch};
use super::{
    descriptors::Limit,
    error::{At, Compiled, Unsupported},
};
use crate::http::filters::Overrides;

/// The routes of one service port.
#[derive(Debug)]
pub(crate) struct RouteTable {
    hosts: Vec<VirtualHost>,
    /// What responses lose and get on every route.
    pub(crate) headers: HeaderOps,
    /// Whether the port of a request's host counts.
    ports: HostPort,
}

/// What becomes of the port when a host is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostPort {
    Counts,
    Ignored,
}

/// The routes of some hosts.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    domains: Vec<Domain>,
    pub(crate) routes: Vec<Route>,
    pub(crate) headers: HeaderOps,
    pub(crate) rate_limits: Vec<Limit>,
}

/// In the order in which Envoy prefers them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Domain {
    Exact(String),
    /// `*.example.com`, by the end of the host.
    Suffix(String),
    /// `example.*`, by its start.
    Prefix(String),
    Any,
}

/// One route.
#[derive(Debug)]
pub(crate) struct Route {
    /// For logs.
    pub(crate) name: Str,
    /// For spans.
    pub(crate) operation: Option<Str>,
    pub(crate) matching: RouteMatch,
    pub(crate) action: Action,
    pub(crate) headers: HeaderOps,
    pub(crate) overrides: Overrides,
    pub(crate) rate_limits: Vec<Limit>,
}

impl RouteTable {
    pub(crate) fn compile(config: &proto::RouteConfiguration) -> Compiled<Self> {
        if config.vhds.is_some() || !config.cluster_specifier_plugins.is_empty() {
            return Err(Unsupported::new("vhds or cluster_specifier_plugins"));
        }
        if !config.request_mirror_policies.is_empty() {
            return Err(Unsupported::new("request_mirror_policies of all routes"));
        }
        let table = Overrides::compile(&config.typed_per_filter_config)?;
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for host in &config.virtual_hosts {
            hosts.push(VirtualHost::compile(host, &table).at(format!("host {}", host.name))?);
        }
        Ok(Self {
            hosts,
            ports: if config.ignore_port_in_host_matching {
                HostPort::Ignored
            } else {
                HostPort::Counts
            },
            headers: HeaderOps::compile(
                &config.request_headers_to_remove,
                &config.request_headers_to_add,
                &config.response_headers_to_remove,
                &config.response_headers_to_add,
            )?,
        })
    }

    /// The routes of a host: exact before longest suffix before longest prefix before any.
    pub(crate) fn host(&self, authority: &str) -> Option<&VirtualHost> {
        let lower = match self.ports {
            HostPort::Counts => authority,
            HostPort::Ignored => without_port(authority),
        };
        let lower = lower.to_ascii_lowercase();
        let best = |host: &VirtualHost| host.domains.iter().filter_map(|it| it.rank(&lower)).max();
        let fitting = self
            .hosts
            .iter()
            .filter_map(|host| Some((best(host)?, host)));
        // Of equal ones the first counts; a minimum is the first of its equals.
        fitting
            .min_by_key(|(rank, _)| std::cmp::Reverse(*rank))
            .map(|(_, host)| host)
    }

    /// For the admin page.
    pub(crate) fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }
}

impl VirtualHost {
    /// As they were written.
    pub(crate) fn domains(&self) -> impl Iterator<Item = String> {
        self.domains.iter().map(|domain| match domain {
            Domain::Exact(host) => host.clone(),
            Domain::Suffix(suffix) => format!("*{suffix}"),
            Domain::Prefix(prefix) => format!("{prefix}*"),
            Domain::Any => "*".to_owned(),
        })
    }

    fn compile(host: &proto::VirtualHost, table: &Overrides) -> Compiled<Self> {
        if host.matcher.is_some() || host.require_tls != 0 {
            return Err(Unsupported::new("matcher or require_tls"));
        }
        if !host.request_mirror_policies.is_empty() {
            return Err(Unsupported::new("request_mirror_policies of a host"));
        }
        let mut overrides = Overrides::compile(&host.typed_per_filter_config)?;
        overrides.inherit(table);
        let mut routes = Vec::with_capacity(host.routes.len());
        for (index, route) in host.routes.iter().enumerate() {
            routes.push(Route::compile(route, host, &overrides).at_item("routes", index)?);
        }
        Ok(Self {
            domains: host
                .domains
                .iter()
                .map(|domain| Domain::of(domain))
                .collect(),
            routes,
            rate_limits: Limit::compile_all(&host.rate_limits)?,
            headers: HeaderOps::compile(
                &host.request_headers_to_remove,
                &host.request_headers_to_add,
                &host.response_headers_to_remove,
                &host.response_headers_to_add,
            )?,
        })
    }
}

impl Route {
    fn compile(
        route: &proto::Route,
        host: &proto::VirtualHost,
        of_host: &Overrides,
    ) -> Compiled<Self> {
        let matching = route.r#match.as_ref();
        let matching = matching.ok_or_else(|| Unsupported::missing("match"))?;
        let mut overrides = Overrides::compile(&route.typed_per_filter_config)?;
        overrides.inherit(of_host);
        Ok(Self {
            name: route.name.as_str().into(),
            operation: route
                .decorator
                .as_ref()
                .map(|decorator| decorator.operation.as_str().into()),
            matching: RouteMatch::compile(matching).at("match")?,
            action: Action::compile(route, host)?,
            headers: HeaderOps::compile(
                &route.request_headers_to_remove,
                &route.request_headers_to_add,
                &route.response_headers_to_remove,
                &route.response_headers_to_add,
            )?,
            overrides,
            rate_limits: rate_limits(route, host)?,
        })
    }
}

/// `host`, `host:port`, `[address]:port`.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        Some(_) | None => authority,
    }
}

/// Those of the route, with those of its host where it says so.
#[expect(deprecated, reason = "the filter's own option came later")]
fn rate_limits(route: &proto::Route, host: &proto::VirtualHost) -> Compiled<Vec<Limit>> {
    let Some(proto::route::Action::Route(action)) = &route.action else {
        return Ok(Vec::new());
    };
    let mut limits = Limit::compile_all(&action.rate_limits)?;
    if action.include_vh_rate_limits.is_some_and(|flag| flag.value) && !limits.is_empty() {
        limits.extend(Limit::compile_all(&host.rate_limits)?);
    }
    Ok(limits)
}

impl Domain {
    fn of(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            Self::Any
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(text)
        }
    }

    /// How well it fits, if it does; more is better. A wildcard stands for at least one character.
    fn rank(&self, host: &str) -> Option<(u8, usize)> {
        match self {
            Self::Exact(exact) => (exact == host).then_some((3, 0)),
            Self::Suffix(suffix) => {
                let fits = host.len() > suffix.len() && host.ends_with(suffix.as_str());
                fits.then_some((2, suffix.len()))
            }
            Self::Prefix(prefix) => {
                let fits = host.len() > prefix.len() && host.starts_with(prefix.as_str());
                fits.then_some((1, prefix.len()))
            }
            Self::Any => Some((0, 0)),
        }
    }
}
