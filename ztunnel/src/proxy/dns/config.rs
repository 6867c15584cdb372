//! Settings of the DNS proxy, under Istio's names (facts A2).

use leyline_runtime::env::Reader;
use leyline_types::ports;

/// The DNS proxy of every pod.
#[derive(Clone, Debug)]
pub(crate) struct DnsConfig {
    pub(crate) enabled: bool,
    /// Suffix of the names of Kubernetes services.
    pub(crate) cluster_domain: String,
    /// Breaks ties between services of one host.
    pub(crate) preferred_namespace: Option<String>,
}

impl DnsConfig {
    pub(crate) fn read(env: &mut Reader<'_>) -> Self {
        let address = env.string("ISTIO_META_DNS_PROXY_ADDR", "localhost:15053");
        let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
        let is_local = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "[::]"].contains(&host);
        if !is_local || port != ports::DNS.to_string() {
            let reason = "capture leads queries to port 15053 of the pod, and to no other place";
            env.reject("ISTIO_META_DNS_PROXY_ADDR", &address, reason);
        }
        let domain = env.string("CLUSTER_DOMAIN", "cluster.local");
        let preferred = env.string("PREFERED_SERVICE_NAMESPACE", "");
        Self {
            // Istio: whatever is not "true" switches it off.
            enabled: env.string("ISTIO_META_DNS_CAPTURE", "true") == "true",
            cluster_domain: domain.trim_matches('.').to_ascii_lowercase(),
            preferred_namespace: (!preferred.is_empty()).then_some(preferred),
        }
    }
}
