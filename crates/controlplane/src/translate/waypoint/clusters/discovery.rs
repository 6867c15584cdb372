//! How the endpoints of a cluster are found: they are told, looked up by name, or named by the client (facts A.5).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{
        ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbConfig, LbPolicy,
        OriginalDstLbConfig,
    },
};

use super::{Policy, Which, by_ads, dynamic, endpoints};
use crate::translate::{
    services::{ConnectStrategy, Resolution},
    waypoint::{pb, view::ServiceView},
};

/// Sets what the resolution of the service asks for. A rule that passes connections through has no eye for endpoints.
pub(super) fn set(
    cluster: &mut Cluster,
    service: &ServiceView<'_>,
    which: &Which,
    policy: &Policy,
    labels: Option<&BTreeMap<String, String>>,
) {
    let kind = match service.resolution {
        Resolution::Request => return dynamic::set(cluster, service, which, policy),
        _ if policy.passes_through() => {
            cluster.lb_policy = LbPolicy::ClusterProvided.into();
            cluster.lb_config = None;
            DiscoveryType::OriginalDst
        }
        Resolution::Address => {
            cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(by_ads()),
                service_name: cluster.name.clone(),
            });
            DiscoveryType::Eds
        }
        Resolution::Names | Resolution::OneName => {
            let assignment =
                endpoints::assignment(&cluster.name, service, which.port, labels, None);
            let places = &assignment.endpoints;
            let names: usize = places.iter().map(|it| it.lb_endpoints.len()).sum();
            cluster.load_assignment = Some(assignment);
            // All addresses of a name are then ways to one endpoint, and not an endpoint each.
            let raced = service.connect_strategy == ConnectStrategy::RaceFirstTcpConnect;
            cluster.dns_lookup_family = match raced {
                true => DnsLookupFamily::All.into(),
                false => DnsLookupFamily::V4Preferred.into(),
            };
            #[expect(deprecated, reason = "istiod uses it, and Envoy understands it")]
            {
                cluster.respect_dns_ttl = true;
            }
            // Envoy takes no more than one name there.
            if service.resolution == Resolution::OneName || (raced && names == 1) {
                DiscoveryType::LogicalDns
            } else {
                DiscoveryType::StrictDns
            }
        }
        Resolution::Client => {
            let port = service.ports.iter().find(|port| port.number == which.port);
            let other = port.and_then(|port| port.target.filter(|target| *target != port.number));
            cluster.lb_policy = LbPolicy::ClusterProvided.into();
            cluster.lb_config = other.map(|port| {
                LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                    upstream_port_override: pb::uint32(port.into()),
                    ..OriginalDstLbConfig::default()
                })
            });
            DiscoveryType::OriginalDst
        }
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
}
