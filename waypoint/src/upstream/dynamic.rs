//! The endpoints of a host that a request or a connection names.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::names::NameFailure;
use crate::{
    app::Shared,
    config::{
        cluster::{
            Cluster,
            dynamic::{DynamicSource, Named},
        },
        endpoints::{Endpoint, EndpointAddress},
    },
};

/// A host with its addresses.
#[derive(Debug)]
pub(crate) struct Host {
    named: Named,
    addresses: Arc<[IpAddr]>,
}

impl Host {
    /// Looks a host up.
    ///
    /// # Errors
    /// When it has no address, or nobody says.
    pub(crate) async fn find(
        shared: &Shared,
        source: &DynamicSource,
        named: Named,
    ) -> Result<Self, NameFailure> {
        let path = &shared.settings.resolv_conf;
        let found = shared.names.addresses(path, &named.host, source.family);
        let addresses = found.await?;
        Ok(Self { named, addresses })
    }

    /// The endpoint at the first of its addresses that was not tried, or at the first of all.
    pub(crate) fn endpoint(
        &self,
        cluster: &Cluster,
        tried: &[EndpointAddress],
    ) -> Option<Arc<Endpoint>> {
        let at = |ip: &IpAddr| SocketAddr::new(*ip, self.named.port);
        let mut addresses = self.addresses.iter().map(at);
        let fresh = addresses.clone().find(|addr| {
            let was_tried = |one: &EndpointAddress| one.addr() == *addr;
            !tried.iter().any(was_tried)
        });
        let addr = fresh.or_else(|| addresses.next())?;
        let host = Some(self.named.host.clone());
        Some(cluster.state.direct.endpoint(addr, host))
    }
}
