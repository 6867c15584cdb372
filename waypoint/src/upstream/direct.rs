//! Endpoints that clients and requests name: clusters of the kind ORIGINAL_DST, and of hosts that are looked up.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use leyline_types::Str;
use parking_lot::Mutex;

use crate::config::endpoints::{Endpoint, EndpointAddress};

/// Destinations of one cluster whose connections are kept. Clients choose them, so that there is a bound; beyond it those
/// that nobody uses are forgotten, and if all are in use, the new one is not kept.
const MAX_KEPT: usize = 1024;

/// The destinations of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Direct(Mutex<HashMap<Key, Arc<Endpoint>>>);

/// Two hosts at one address do not share connections: each is asked for by its name.
type Key = (SocketAddr, Option<Str>);

impl Direct {
    /// The endpoint at an address. Whether it is reached through a tunnel is decided when it is connected to.
    pub(crate) fn endpoint(&self, addr: SocketAddr, host: Option<Str>) -> Arc<Endpoint> {
        let key = (addr, host);
        let mut known = self.0.lock();
        if let Some(endpoint) = known.get(&key) {
            return endpoint.clone();
        }
        if known.len() >= MAX_KEPT {
            known.retain(|_, endpoint| endpoint.state.active() > 0);
        }
        let endpoint = Arc::new(Endpoint {
            address: EndpointAddress::Plain(addr),
            others: Box::default(),
            host: key.1.clone(),
            weight: 1,
            told_healthy: true,
            state: Arc::default(),
        });
        if known.len() < MAX_KEPT {
            known.insert(key, endpoint.clone());
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
        let first = direct.endpoint(addr(1), None);
        assert!(Arc::ptr_eq(&first, &direct.endpoint(addr(1), None)));
        let _used = first.state.enter();
        let named = direct.endpoint(addr(1), Some("a.example".into()));
        assert!(!Arc::ptr_eq(&first, &named));
        for port in 2..5000 {
            direct.endpoint(addr(port), None);
        }
        assert!(direct.0.lock().len() <= MAX_KEPT);
        assert!(Arc::ptr_eq(&first, &direct.endpoint(addr(1), None)));
    }
}
