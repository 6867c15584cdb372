//! What both rate limit filters have in common: descriptors of a request, and headers of its answer.

pub(crate) mod global;
pub(crate) mod headers;

use leyline_types::Str;

use super::{
    Filters,
    local_ratelimit::{self, Quota},
};
use crate::{
    config::{
        Config,
        descriptors::{Descriptor, Limit, Request},
        route::{Route, VirtualHost},
    },
    http::{
        pipeline::Exchange, reply::Reply, request_source::RequestSource, server::HttpConnection,
    },
};

/// What is done with the limits of a virtual host where its route has some, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum VirtualHostLimits {
    /// They count only where the route has none.
    #[default]
    Override,
    /// Both count.
    Include,
    /// They never count.
    Ignore,
}

/// What the route that a request took says about limits.
#[derive(Debug, Default)]
pub(crate) struct RouteLimits<'a> {
    pub(crate) of_route: &'a [Limit],
    pub(crate) of_host: &'a [Limit],
    /// Local filters that it replaces, by name.
    pub(crate) local: &'a [(Str, local_ratelimit::Config)],
    /// What it sets of global filters.
    pub(crate) global: Option<&'a global::Override>,
}

impl<'a> RouteLimits<'a> {
    pub(crate) fn of(host: &'a VirtualHost, route: &'a Route) -> Self {
        Self {
            of_route: &route.rate_limits,
            of_host: &host.rate_limits,
            local: &route.overrides.local_rate_limits,
            global: route.overrides.global_rate_limit.as_ref(),
        }
    }

    /// Asks the local limits first: they cost nothing.
    ///
    /// # Errors
    /// The answer of a refused request.
    pub(crate) async fn check(
        &self,
        filters: &Filters,
        config: &Config,
        exchange: &mut Exchange,
        conn: &HttpConnection,
    ) -> Result<Quota, Reply> {
        let local = &filters.local_rate_limits;
        let mut quota = local_ratelimit::check(local, self, exchange, conn)?;
        let global = &filters.global_rate_limits;
        quota.tighten_by(global::check(global, self, config, exchange, conn).await?);
        Ok(quota)
    }

    pub(crate) fn lists(&self, how: VirtualHostLimits) -> [&'a [Limit]; 2] {
        let host = match how {
            VirtualHostLimits::Override if self.of_route.is_empty() => self.of_host,
            VirtualHostLimits::Override | VirtualHostLimits::Ignore => &[],
            VirtualHostLimits::Include => self.of_host,
        };
        [self.of_route, host]
    }
}

/// The descriptors of a request at one stage.
pub(crate) fn descriptors_of(
    lists: [&[Limit]; 2],
    stage: u32,
    exchange: &Exchange,
    conn: &HttpConnection,
) -> Vec<Descriptor> {
    let source = RequestSource { exchange, conn };
    let request = Request {
        head: exchange.request_head(),
        source: &source,
        remote: exchange.remote_ip(conn),
        cluster: &conn.shared.settings.node.workload_name,
    };
    let limits = lists.into_iter().flatten();
    limits
        .filter(|limit| limit.stage == stage)
        .filter_map(|limit| limit.descriptor(&request))
        .collect()
}
