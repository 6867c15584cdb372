//! Endpoints that the client names: clusters of the kind ORIGINAL_DST.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;

use crate::config::endpoints::{Endpoint, EndpointAddress};

/// Destinations of one cluster whose connections are kept. Clients choose them, so that there is a bound; beyond it those
/// that nobody uses are forgotten, and if all are in use, the new one is not kept.
const MAX_KEPT: usize = 1024;

/// The destinations of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Direct(Mutex<HashMap<SocketAddr, Arc<Endpoint>>>);

impl Direct {
    /// The endpoint at an address. Whether it is reached through a tunnel is decided when it is connected to.
    pub(crate) fn endpoint(&self, addr: SocketAddr) -> Arc<Endpoint> {
        let mut known = self.0.lock();
        if let Some(endpoint) = known.get(&addr) {
            return endpoint.clone();
        }
        if known.len() >= MAX_KEPT {
            known.retain(|_, endpoint| endpoint.state.active() > 0);
        }
        let endpoint = Arc::new(Endpoint {
            address: EndpointAddress::Plain(addr),
            weight: 1,
            told_healthy: true,
            state: Arc::default(),
        });
        if known.len() < MAX_KEPT {
            known.insert(addr, endpoint.clone());
        }
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_kept_within_a_bound() {
        let direct = Direct::default();
        let addr = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        let first = direct.endpoint(addr(1));
        assert!(Arc::ptr_eq(&first, &direct.endpoint(addr(1))));
        let _used = first.state.enter();
        for port in 2..5000 {
            direct.endpoint(addr(port));
        }
        assert!(direct.0.lock().len() <= MAX_KEPT);
        assert!(Arc::ptr_eq(&first, &direct.endpoint(addr(1))));
    }
}
