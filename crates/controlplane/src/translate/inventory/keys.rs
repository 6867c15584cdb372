//! Labels and annotations of Istio's domain and of ours.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leyline_types::NamespacedName;

use super::Teller;
use crate::{
    objects::{Kind, ObjectKey, Objects},
    translate::Advice,
};

/// Those that something here acts on.
const ACTED_ON: [&str; 31] = [
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/dns-capture",
    "ambient.istio.io/redirection",
    "ambient.istio.io/waypoint-inbound-binding",
    "ambient.istio.io/xfcc-include-client-identity",
    "gateway.istio.io/managed",
    "gateway.istio.io/service-account",
    "istio.io/connect-strategy",
    "istio.io/dataplane-mode",
    "istio.io/dry-run",
    "istio.io/for-service-account",
    "istio.io/ingress-use-waypoint",
    "istio.io/reroute-virtual-interfaces",
    "istio.io/use-waypoint",
    "istio.io/use-waypoint-canary",
    "istio.io/use-waypoint-canary-namespace",
    "istio.io/use-waypoint-canary-weight",
    "istio.io/use-waypoint-namespace",
    "istio.io/waypoint-for",
    "leyline.io/require-waypoint",
    "networking.istio.io/traffic-distribution",
    "networking.istio.io/tunnel",
    "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision",
    "service.istio.io/workload-name",
    "sidecar.istio.io/status",
    "topology.istio.io/cluster",
    "topology.istio.io/network",
    "topology.istio.io/subzone",
    // Written by the mesh itself, or about who installs it.
    "operator.istio.io/component",
    "install.operator.istio.io/owning-resource",
];
/// A mesh with one control plane has one revision.
const REVISIONS: [&str; 2] = ["istio.io/rev", "istio.io/tag"];
const DOMAINS: [&str; 2] = ["istio.io", "leyline.io"];

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, object) in &objects.namespaces {
        let key = ObjectKey::new(Kind::Namespace, None, name);
        let mut teller = Teller {
            object: key,
            advice,
        };
        of(&object.metadata, &mut teller);
    }
    macro_rules! each {
        ($($kind:ident: $objects:ident;)*) => {$(
            for (name, object) in &objects.$objects {
                object_of(Kind::$kind, name, &object.metadata, advice);
            }
        )*};
    }
    each! {
        Pod: pods;
        Service: services;
        Gateway: gateways;
        ServiceEntry: service_entries;
        WorkloadEntry: workload_entries;
        AuthorizationPolicy: authorization_policies;
        RequestAuthentication: request_authentications;
        VirtualService: virtual_services;
        DestinationRule: destination_rules;
        HttpRoute: http_routes;
        GrpcRoute: grpc_routes;
        TcpRoute: tcp_routes;
        TlsRoute: tls_routes;
        RateLimit: rate_limits;
        BackendTlsPolicy: backend_tls_policies;
        PeerAuthentication: peer_authentications;
        Telemetry: telemetries;
        EnvoyFilter: envoy_filters;
        ReferenceGrant: reference_grants;
        ProxyConfig: proxy_configs;
    }
}

fn object_of(kind: Kind, name: &NamespacedName, metadata: &ObjectMeta, advice: &mut Vec<Advice>) {
    of(metadata, &mut Teller::new(kind, name, advice));
}

fn of(metadata: &ObjectMeta, teller: &mut Teller<'_>) {
    let maps = [
        ("labels", &metadata.labels),
        ("annotations", &metadata.annotations),
    ];
    for (part, map) in maps {
        for key in map.iter().flat_map(|map| map.keys()) {
            if is_ignored(key) {
                let reason = "has no effect: nothing here acts on it";
                teller.tell(format!("metadata.{part}.{key}"), reason);
            }
        }
    }
}

fn is_ignored(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else {
        return false;
    };
    let ours = DOMAINS.iter().any(|ours| {
        domain
            .strip_suffix(ours)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    ours && !ACTED_ON.contains(&key) && !REVISIONS.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_mesh_are_known_or_told() {
        for (key, ignored) in [
            ("app", false),
            ("example.com/owner", false),
            ("notistio.io/x", false),
            ("istio.io/use-waypoint", false),
            ("istio.io/rev", false),
            ("istio.io/use-waypiont", true),
            ("sidecar.istio.io/inject", true),
            ("leyline.io/require-waypiont", true),
        ] {
            assert_eq!(is_ignored(key), ignored, "{key}");
        }
    }
}
