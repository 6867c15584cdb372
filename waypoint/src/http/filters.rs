//! The HTTP filters of a chain, each in its place of the pipeline, and what routes override of them.
//!
//! To add one: a file here with its compiled `Config`, a row in [`Filters::compile`] (and in [`Overrides::compile`] where
//! routes may override it), and a step in `pipeline`. A filter that may refuse requests and is not known refuses the
//! chain; one that only observes is left out with a warning.

pub(crate) mod cors;
mod ext_authz;
pub(crate) mod fault;
pub(crate) mod grpc_web;
pub(crate) mod header_mutation;
pub(crate) mod jwt;
pub(crate) mod local_ratelimit;
pub(crate) mod ratelimit;
mod rbac;
pub(crate) mod security;

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::{
            http::{
                cors::v3::{Cors, CorsPolicy},
                dynamic_forward_proxy::v3::{
                    FilterConfig as DynamicForwardProxy, filter_config::ImplementationSpecifier,
                },
                ext_authz::v3::ExtAuthz,
                fault::v3::HttpFault,
                grpc_stats::v3::FilterConfig as GrpcStats,
                grpc_web::v3::GrpcWeb,
                header_mutation::v3::HeaderMutation,
                jwt_authn::v3::JwtAuthentication,
                local_ratelimit::v3::LocalRateLimit,
                ratelimit::v3::{RateLimit, RateLimitPerRoute},
                rbac::v3::Rbac,
                router::v3::Router,
            },
            network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
        },
    },
    google::protobuf::Any,
};
use leyline_types::Str;
use prost::Name;
use tracing::warn;

use self::ratelimit::global;

use crate::config::{
    any::{Extension, decode, extension},
    error::{At, Compiled, Unsupported},
    telemetry::{MetricsPlan, STATS},
};

/// Filters that only observe. Their work is done by the request log, whatever they are configured to.
const OBSERVING: [&str; 4] = [
    STATS,
    "type.googleapis.com/io.istio.http.peer_metadata.Config",
    "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
    "type.googleapis.com/envoy.extensions.filters.http.alternate_protocols_cache.v3.FilterConfig",
];

/// The filters of one chain, compiled.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    /// What is done to a request's headers before all else.
    pub(crate) mutations: header_mutation::Config,
    /// Who may ask for what, in the order of the chain.
    pub(crate) security: security::Checks,
    pub(crate) grpc_web: grpc_web::GrpcWeb,
    /// By the name that routes replace them by.
    pub(crate) local_rate_limits: Vec<(Str, local_ratelimit::Config)>,
    pub(crate) global_rate_limits: Vec<global::Config>,
    /// For the telemetry of the chain.
    pub(crate) metrics: MetricsPlan,
}

/// What a route, a virtual host or a weighted cluster sets differently.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) cors: Option<cors::Config>,
    pub(crate) fault: Option<fault::Config>,
    pub(crate) local_rate_limits: Vec<(Str, local_ratelimit::Config)>,
    pub(crate) global_rate_limit: Option<global::Override>,
}

impl Filters {
    pub(crate) fn compile(filters: &[HttpFilter]) -> Compiled<Self> {
        let mut compiled = Self::default();
        let Some((last, before)) = filters.split_last() else {
            return Err(Unsupported::missing("http_filters"));
        };
        for filter in before {
            compiled.add(filter).at(format!("filter {}", filter.name))?;
        }
        let router = typed_config(last)?;
        if router.type_url() != Router::type_url() {
            return Err(Unsupported::new("the last filter is not the router"));
        }
        Ok(compiled)
    }

    fn add(&mut self, filter: &HttpFilter) -> Compiled<()> {
        if filter.disabled {
            return Err(Unsupported::new("disabled, to be enabled by routes"));
        }
        let config = typed_config(filter)?;
        if let Extension::Struct(url, config) = &config
            && url == STATS
        {
            self.metrics = MetricsPlan::compile(config)?;
        }
        match config.type_url() {
            url if url == Rbac::type_url() => {
                let rbac = rbac::Config::compile(&message(&config)?)?;
                self.security.add(security::Check::Rbac(rbac));
            }
            url if url == ExtAuthz::type_url() => {
                let authorizer = ext_authz::Config::compile(&message(&config)?)?;
                self.security
                    .add(security::Check::ExtAuthz(Box::new(authorizer)));
            }
            url if url == JwtAuthentication::type_url() => {
                let jwt = jwt::Config::compile(&message(&config)?)?;
                self.security.add(security::Check::Jwt(jwt));
            }
            url if url == LocalRateLimit::type_url() => {
                let limit = local_ratelimit::Config::compile(&message(&config)?)?;
                self.local_rate_limits
                    .push((filter.name.as_str().into(), limit));
            }
            url if url == RateLimit::type_url() => {
                let limit = global::Config::compile(&message(&config)?)?;
                self.global_rate_limits.push(limit);
            }
            url if url == HeaderMutation::type_url() => {
                let mutations = header_mutation::Config::compile(&message(&config)?)?;
                self.mutations.extend(mutations);
            }
            url if url == GrpcWeb::type_url() => self.grpc_web = grpc_web::GrpcWeb::On,
            // Active only where routes carry a policy.
            url if url == Cors::type_url() => {}
            url if url == HttpFault::type_url() => require_empty::<HttpFault>(&config)?,
            // The cluster says the same; routes that lead elsewhere need no look-up.
            url if url == DynamicForwardProxy::type_url() => {
                lookups(&message(&config)?)?;
            }
            url if url == GrpcStats::type_url() || OBSERVING.contains(&url) => {}
            url => return Err(Unsupported::new(format!("HTTP filter {url}"))),
        }
        Ok(())
    }
}

impl Overrides {
    pub(crate) fn compile(configs: &HashMap<String, Any>) -> Compiled<Self> {
        let mut overrides = Self::default();
        for (name, any) in configs {
            overrides.add(name, any).at(format!("filter {name}"))?;
        }
        Ok(overrides)
    }

    /// Takes from the level above what is not set here.
    pub(crate) fn inherit(&mut self, above: &Self) {
        if self.cors.is_none() {
            self.cors.clone_from(&above.cors);
        }
        if self.fault.is_none() {
            self.fault.clone_from(&above.fault);
        }
        if self.global_rate_limit.is_none() {
            self.global_rate_limit.clone_from(&above.global_rate_limit);
        }
        for (name, limit) in &above.local_rate_limits {
            if !self
                .local_rate_limits
                .iter()
                .any(|(known, _)| known == name)
            {
                self.local_rate_limits.push((name.clone(), limit.clone()));
            }
        }
    }

    fn add(&mut self, name: &str, any: &Any) -> Compiled<()> {
        match any.type_url.as_str() {
            url if url == FilterConfig::type_url() => {
                let inner: FilterConfig = decode(any)?;
                let config = inner.config.filter(|_| !inner.disabled);
                let config =
                    config.ok_or_else(|| Unsupported::new("a filter disabled on a route"))?;
                self.add_plain(name, &config)
            }
            _ => self.add_plain(name, any),
        }
    }

    fn add_plain(&mut self, name: &str, any: &Any) -> Compiled<()> {
        let config = extension(any)?;
        match config.type_url() {
            url if url == CorsPolicy::type_url() => {
                self.cors = cors::Config::compile(&message(&config)?)?;
                Ok(())
            }
            url if url == HttpFault::type_url() => {
                self.fault = Some(fault::Config::compile(&message(&config)?)?);
                Ok(())
            }
            url if url == LocalRateLimit::type_url() => {
                let limit = local_ratelimit::Config::compile(&message(&config)?)?;
                self.local_rate_limits.push((name.into(), limit));
                Ok(())
            }
            url if url == RateLimitPerRoute::type_url() => {
                let limit = global::Override::compile(&message(&config)?)?;
                self.global_rate_limit = Some(limit);
                Ok(())
            }
            url => Err(Unsupported::new(format!("override of {url}"))),
        }
    }
}

/// What is not said by the cluster.
fn lookups(filter: &DynamicForwardProxy) -> Compiled<()> {
    if filter.allow_dynamic_host_from_filter_state {
        return Err(Unsupported::new("allow_dynamic_host_from_filter_state"));
    }
    match filter.implementation_specifier {
        Some(ImplementationSpecifier::DnsCacheConfig(_)) => Ok(()),
        Some(ImplementationSpecifier::SubClusterConfig(_)) => {
            Err(Unsupported::new("sub_cluster_config"))
        }
        None => Err(Unsupported::missing("dns_cache_config")),
    }
}

/// A filter in the chain that does nothing without overrides.
fn require_empty<M: prost::Message + Name + Default + PartialEq>(
    config: &Extension<'_>,
) -> Compiled<()> {
    let message: M = message(config)?;
    if message == M::default() {
        Ok(())
    } else {
        Err(Unsupported::new(format!(
            "{} for all routes",
            M::full_name()
        )))
    }
}

fn typed_config(filter: &HttpFilter) -> Compiled<Extension<'_>> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => extension(any),
        Some(ConfigType::ConfigDiscovery(_)) => Err(Unsupported::new("configuration by discovery")),
        None => Err(Unsupported::missing("typed_config")),
    }
}

fn message<M: prost::Message + Name + Default>(config: &Extension<'_>) -> Compiled<M> {
    match config {
        Extension::Message(any) => decode(any),
        Extension::Struct(url, _) => {
            warn!(url, "a filter is configured by a struct");
            Err(Unsupported::new("configured by a struct"))
        }
    }
}
