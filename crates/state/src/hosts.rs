//! What a host name stands for: the question of a DNS proxy, answered from one snapshot.

use std::net::IpAddr;

use leyline_types::{ServiceKey, Str};

use crate::{
    index::SmallSet,
    service::{IpFamilies, Service, serve_family_of},
    snapshot::{ServiceState, Snapshot},
    workload::Protocol,
};

/// Host names that one answer needs; more would take longer than a client waits.
const MAX_HOSTNAMES: usize = 16;

/// Who asks, and what breaks a tie.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    /// The client's namespace.
    pub namespace: &'a Str,
    /// Suffix of the names of Kubernetes services.
    pub cluster_domain: &'a str,
    /// Of services of one host in several namespaces that of this one, after the client's own and the canonical one.
    pub preferred_namespace: Option<&'a str>,
}

/// A host that the mesh knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHost {
    /// The service, whose host may be a wildcard.
    pub service: ServiceKey,
    /// Its addresses that this client can reach, of both families.
    pub addresses: Vec<IpAddr>,
    /// Host names of endpoints of a headless one that have nothing else, and that may be reached without the mesh: an
    /// address that somebody else tells is not known to be an enrolled workload's, and would be called in plaintext.
    pub hostnames: Vec<Str>,
    families: Option<IpFamilies>,
}

impl KnownHost {
    /// Whether the service may have an address of this family.
    pub fn serves_family_of(&self, address: IpAddr) -> bool {
        serve_family_of(self.families, address)
    }

    fn is_nothing(&self) -> bool {
        self.addresses.is_empty() && self.hostnames.is_empty()
    }
}

impl Snapshot {
    /// What a name stands for; `None` if others must be asked. The name is in lower case and without a last dot.
    ///
    /// A service stands for its addresses in the client's network; a headless one of Kubernetes for its endpoints, and
    /// each of these for itself by the name of its pod. Wildcard hosts are tried last, the longest first.
    pub fn known_host(&self, name: &str, view: HostView<'_>) -> Option<KnownHost> {
        if let Some(known) = self.answerable(name, view) {
            return Some(self.known(known, None));
        }
        if let Some((pod, host)) = name.split_once('.')
            && let Some(known) = self.answerable(host, view)
            && is_headless(&known.service, view)
        {
            let found = self.known(known, Some(pod));
            if !found.is_nothing() {
                return Some(found);
            }
        }
        let parents = name.match_indices('.').map(|(at, _)| &name[at..]);
        parents
            .filter_map(|parent| self.answerable(&format!("*{parent}"), view))
            .map(|known| self.known(known, None))
            .next()
    }

    fn answerable(&self, host: &str, view: HostView<'_>) -> Option<&ServiceState> {
        let keys: &SmallSet<ServiceKey> = self.hosts.get(host)?;
        let all = keys.iter().filter_map(|key| self.services.get(key));
        all.filter(|known| known.service.is_visible_to(view.namespace))
            .filter(|known| !known.service.vips.is_empty() || is_headless(&known.service, view))
            // Of equal ones the first.
            .min_by_key(|known| {
                let service = &known.service;
                if service.namespace == *view.namespace {
                    0
                } else if service.canonical {
                    1
                } else if view.preferred_namespace == Some(service.namespace.as_str()) {
                    2
                } else {
                    3
                }
            })
    }

    fn known(&self, known: &ServiceState, pod: Option<&str>) -> KnownHost {
        let service = &known.service;
        let vips = service
            .vips
            .iter()
            .filter(|vip| vip.network == self.local.network)
            .map(|vip| vip.address);
        let mut addresses: Vec<IpAddr> = vips.collect();
        let mut hostnames = Vec::new();
        if service.vips.is_empty() {
            let endpoints = known.endpoints.iter().map(|endpoint| &endpoint.workload);
            let endpoints = endpoints
                .filter(|workload| workload.network == self.local.network)
                .filter(|workload| pod.is_none_or(|pod| workload.name.name.as_str() == pod));
            let named = endpoints.clone().filter(|workload| {
                workload.has_only_hostname() && workload.protocol == Protocol::Tcp
            });
            hostnames = named
                .map(|workload| workload.hostname.clone())
                .take(MAX_HOSTNAMES)
                .collect();
            addresses = endpoints
                .flat_map(|workload| workload.addresses.iter().copied())
                .collect();
        }
        addresses.retain(|address| service.serves_family_of(*address));
        KnownHost {
            service: service.key(),
            addresses,
            hostnames,
            families: service.ip_families,
        }
    }
}

/// A Kubernetes service without an address stands for its endpoints; other services without one are not ours to answer.
fn is_headless(service: &Service, view: HostView<'_>) -> bool {
    let domain = service.hostname.as_str().strip_suffix(view.cluster_domain);
    service.vips.is_empty()
        && service.cidr_vips.is_empty()
        && domain.is_some_and(|rest| rest.ends_with(".svc."))
}

#[cfg(test)]
mod tests;
