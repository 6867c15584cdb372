//! Clusters whose endpoints are named: what is to be looked up, and what an answer makes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use envoy_types::pb::envoy::config::{
    cluster::v3::{
        self as proto,
        cluster::{DiscoveryType, DnsLookupFamily},
    },
    core::v3::{SocketAddress, address::Address},
    endpoint::v3::{
        ClusterLoadAssignment, LbEndpoint, endpoint::AdditionalAddress, lb_endpoint::HostIdentifier,
    },
};

use crate::config::{
    any::duration,
    error::{At, Compiled, Unsupported},
};

/// Envoy's default.
const REFRESH: Duration = Duration::from_secs(5);
/// Names of one cluster. A ServiceEntry of a user has a few.
const MAX_NAMES: usize = 256;
/// Addresses of one name: what fits into a large answer.
const MAX_ADDRESSES: usize = 256;

/// What is looked up for a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DnsSource {
    /// With names in place of addresses.
    assignment: ClusterLoadAssignment,
    /// Only the first address counts, or all of them are ways to one endpoint, where both families are asked for.
    logical: bool,
    pub(crate) family: Family,
    /// Where nothing was found.
    pub(crate) refresh: Duration,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
    PreferV4,
    PreferV6,
    Both,
}

impl Family {
    pub(super) fn compile(proto: i32) -> Compiled<Self> {
        match DnsLookupFamily::try_from(proto) {
            Ok(DnsLookupFamily::V4Only) => Ok(Self::V4),
            Ok(DnsLookupFamily::V6Only) => Ok(Self::V6),
            Ok(DnsLookupFamily::Auto) => Ok(Self::PreferV6),
            Ok(DnsLookupFamily::V4Preferred) => Ok(Self::PreferV4),
            Ok(DnsLookupFamily::All) => Ok(Self::Both),
            Err(_) => Err(Unsupported::new("dns_lookup_family")),
        }
    }
}

/// Addresses by name.
pub(crate) type Answers = BTreeMap<String, Vec<IpAddr>>;

impl DnsSource {
    pub(super) fn compile(proto: &proto::Cluster, kind: DiscoveryType) -> Compiled<Self> {
        #[expect(deprecated, reason = "istiod uses it, and Envoy understands it")]
        let refresh = proto.dns_refresh_rate.as_ref();
        let refresh = refresh.map(duration).transpose().at("dns_refresh_rate")?;
        let source = Self {
            assignment: proto.load_assignment.clone().unwrap_or_default(),
            logical: kind == DiscoveryType::LogicalDns,
            family: Family::compile(proto.dns_lookup_family)?,
            refresh: refresh.unwrap_or(REFRESH).max(Duration::from_secs(1)),
        };
        if source.names().len() > MAX_NAMES {
            return Err(Unsupported::new(format!("more than {MAX_NAMES} names")));
        }
        Ok(source)
    }

    /// What is to be looked up.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        let localities = self.assignment.endpoints.iter();
        let endpoints = localities.flat_map(|locality| &locality.lb_endpoints);
        endpoints
            .filter_map(|endpoint| name(socket(endpoint)?))
            .collect()
    }

    /// The endpoints that names stand for; a name without an answer has none.
    pub(crate) fn expand(&self, answers: &Answers) -> ClusterLoadAssignment {
        let mut expanded = self.assignment.clone();
        for locality in &mut expanded.endpoints {
            let endpoints = std::mem::take(&mut locality.lb_endpoints);
            for endpoint in endpoints {
                let Some(name) = socket(&endpoint).and_then(name) else {
                    locality.lb_endpoints.push(endpoint);
                    continue;
                };
                let found = answers.get(name).map(Vec::as_slice).unwrap_or_default();
                let found = found.get(..MAX_ADDRESSES).unwrap_or(found);
                if self.logical {
                    let others = match self.family {
                        Family::Both => found.get(1..).unwrap_or_default(),
                        Family::V4 | Family::V6 | Family::PreferV4 | Family::PreferV6 => &[],
                    };
                    let first = found.first();
                    let first = first.map(|ip| with_others(with_address(&endpoint, *ip), others));
                    locality.lb_endpoints.extend(first);
                    continue;
                }
                locality
                    .lb_endpoints
                    .extend(found.iter().map(|ip| with_address(&endpoint, *ip)));
            }
        }
        expanded
    }
}

fn socket(endpoint: &LbEndpoint) -> Option<&SocketAddress> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return None;
    };
    match host.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => Some(socket),
        Address::Pipe(_) | Address::EnvoyInternalAddress(_) => None,
    }
}

/// The name of an address that is none.
fn name(socket: &SocketAddress) -> Option<&str> {
    let text = socket.address.as_str();
    text.parse::<IpAddr>().is_err().then_some(text)
}

fn with_address(endpoint: &LbEndpoint, ip: IpAddr) -> LbEndpoint {
    let mut endpoint = endpoint.clone();
    if let Some(HostIdentifier::Endpoint(host)) = &mut endpoint.host_identifier
        && let Some(address) = &mut host.address
        && let Some(Address::SocketAddress(socket)) = &mut address.address
    {
        socket.address = ip.to_string();
    }
    endpoint
}

/// With other ways to the same endpoint.
fn with_others(mut endpoint: LbEndpoint, others: &[IpAddr]) -> LbEndpoint {
    if let Some(HostIdentifier::Endpoint(host)) = &mut endpoint.host_identifier
        && let Some(address) = &host.address
    {
        let others = others.iter().map(|ip| {
            let mut address = address.clone();
            if let Some(Address::SocketAddress(socket)) = &mut address.address {
                socket.address = ip.to_string();
            }
            AdditionalAddress {
                address: Some(address),
            }
        });
        host.additional_addresses = others.collect();
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{
        core::v3::{Address as AddressProto, socket_address::PortSpecifier},
        endpoint::v3::{Endpoint, LocalityLbEndpoints},
    };

    use super::*;
    use crate::config::endpoints::EndpointSet;

    fn source(kind: DiscoveryType, hosts: &[&str]) -> DnsSource {
        let endpoint = |host: &&str| LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(AddressProto {
                    address: Some(Address::SocketAddress(SocketAddress {
                        address: (*host).to_owned(),
                        port_specifier: Some(PortSpecifier::PortValue(80)),
                        ..SocketAddress::default()
                    })),
                }),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        };
        let assignment = ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: hosts.iter().map(endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        };
        let proto = proto::Cluster {
            load_assignment: Some(assignment),
            ..proto::Cluster::default()
        };
        DnsSource::compile(&proto, kind).unwrap()
    }

    #[test]
    fn names_become_the_addresses_of_their_answers() {
        let hosts = ["a.example", "10.0.0.9", "b.example", "a.example"];
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let answers = Answers::from([("a.example".to_owned(), vec![ip(1), ip(2)])]);
        for (kind, expected) in [
            (
                DiscoveryType::StrictDns,
                vec!["10.0.0.1", "10.0.0.2", "10.0.0.9", "10.0.0.1", "10.0.0.2"],
            ),
            (
                DiscoveryType::LogicalDns,
                vec!["10.0.0.1", "10.0.0.9", "10.0.0.1"],
            ),
        ] {
            let source = source(kind, &hosts);
            assert_eq!(Vec::from_iter(source.names()), ["a.example", "b.example"]);
            let expanded = source.expand(&answers);
            let endpoints = &expanded.endpoints[0].lb_endpoints;
            let shown: Vec<&str> = endpoints
                .iter()
                .map(|one| socket(one).unwrap().address.as_str())
                .collect();
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn addresses_of_both_families_are_ways_to_one_endpoint() {
        let mut source = source(DiscoveryType::LogicalDns, &["a.example"]);
        source.family = Family::Both;
        let found = ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let answers = Answers::from([("a.example".to_owned(), found.to_vec())]);
        let set = EndpointSet::compile(&source.expand(&answers), None).unwrap();
        let all: Vec<_> = set.all().collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].address.addr(), "10.0.0.1:80".parse().unwrap());
        let others = ["10.0.0.2:80", "[2001:db8::1]:80"].map(|addr| addr.parse().unwrap());
        assert_eq!(*all[0].others, others);
    }
}
