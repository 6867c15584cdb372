//! The host that a request is for, where its cluster is of hosts that requests name (`envoy.filters.http.dynamic_forward_proxy`).

use http::StatusCode;

use super::{
    forward::Forwarding,
    pipeline::Exchange,
    reply::{Flag, Reply},
};
use crate::{
    config::cluster::{Cluster, EndpointSource},
    upstream::dynamic::Host,
};

/// Looks the host of a request up; `None` where the cluster has endpoints of its own.
///
/// # Errors
/// The answer to a request for another host, or for one without an address.
pub(super) async fn of(
    forwarding: Forwarding<'_>,
    cluster: &Cluster,
    exchange: &Exchange,
) -> Result<Option<Host>, Reply> {
    let EndpointSource::Request(source) = &cluster.endpoints else {
        return Ok(None);
    };
    // Routes let only hosts of the service's domain through; whoever made these.
    let named = source.of_authority(&exchange.authority);
    let named = named.ok_or_else(Reply::no_route)?;
    let finding = Host::find(&forwarding.conn.shared, source, named);
    let found = Box::pin(finding).await.map_err(|failure| {
        let details = format!("dns_resolution_failure{{{failure}}}");
        let (status, flag) = (StatusCode::SERVICE_UNAVAILABLE, Flag::DnsFailure);
        Reply::new(status, flag, details, "DNS resolution failure")
    })?;
    Ok(Some(found))
}
