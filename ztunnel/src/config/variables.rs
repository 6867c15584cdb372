//! Every variable that ztunnel reads, for `ztunnel help`. A test compares it with what [`super::Config`] asks for, so that
//! none is read in silence.

use std::fmt::Write;

/// Name, default and meaning. A name that ends in `*` stands for all that begin so.
// tidy: table
const VARIABLES: &[(&str, &str, &str)] = &[
    ("", "", "control plane"),
    (
        "XDS_ADDRESS",
        "istiod",
        "configuration; empty: none is asked for",
    ),
    (
        "XDS_ON_DEMAND",
        "false",
        "ask about a destination when it is called; not with the DNS proxy",
    ),
    ("CA_ADDRESS", "istiod", "certificates"),
    (
        "XDS_ROOT_CA",
        "./var/run/secrets/istio/root-cert.pem",
        "a file, PEM text, or SYSTEM",
    ),
    (
        "CA_ROOT_CA",
        "./var/run/secrets/istio/root-cert.pem",
        "a file, PEM text, or SYSTEM",
    ),
    (
        "ALT_XDS_HOSTNAME",
        "",
        "another name that its certificate may carry",
    ),
    (
        "ALT_CA_HOSTNAME",
        "",
        "another name that its certificate may carry",
    ),
    (
        "AUTH_TOKEN",
        "./var/run/secrets/tokens/istio-token",
        "a file, or the token itself",
    ),
    (
        "XDS_HEADER_*",
        "",
        "further headers of calls for configuration",
    ),
    (
        "CA_HEADER_*",
        "",
        "further headers of calls for certificates",
    ),
    (
        "SECRET_TTL",
        "24h",
        "lifetime asked for in certificate requests",
    ),
    (
        "CRL_PATH",
        "",
        "revocation lists, PEM or DER; followed while it changes",
    ),
    (
        "SPIFFE_ENDPOINT_SOCKET",
        "",
        "unix:///path of a SPIFFE agent: certificates are its SVIDs, CA_ADDRESS is not asked",
    ),
    (
        "SPIRE_ADMIN_ENDPOINT_SOCKET",
        "",
        "unix:///path of a SPIRE agent's admin socket: certificates are the SVIDs that it delegates for the node's pods",
    ),
    (
        "FAKE_CA",
        "false",
        "only false: there is no CA that anybody knows",
    ),
    (
        "PROXY_CONFIG",
        "",
        "YAML over ./etc/istio/config/mesh: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata",
    ),
    (
        "KUBERNETES_SERVICE_HOST",
        "",
        "if set, istiod is istiod.istio-system.svc:15012, else localhost:15012",
    ),
    (
        "LOCAL_XDS_PATH",
        "",
        "a file of workloads, services and policies, with or without a control plane",
    ),
    ("LOCAL_XDS", "", "the same, as text"),
    ("", "", "this node"),
    ("NODE_NAME", "", "which workloads are local; unset: all"),
    ("NETWORK", "", "network of this node"),
    ("CLUSTER_ID", "Kubernetes", "cluster of this node"),
    (
        "ISTIO_META_*",
        "",
        "told to the control plane; ISTIO_META_CLUSTER_ID wins over CLUSTER_ID",
    ),
    ("ISTIO_METAJSON_*", "", "the same, as JSON"),
    ("POD_NAME", "", "name of this proxy's own pod"),
    ("POD_NAMESPACE", "", "its namespace"),
    (
        "SERVICE_ACCOUNT",
        "",
        "its service account; with all three, its metrics are served in tunnels too (port 15008)",
    ),
    ("INSTANCE_IP", "1.1.1.1", "its address"),
    (
        "TRUST_DOMAIN",
        "",
        "of this process's own identity; unset: as the control plane says",
    ),
    (
        "ENABLE_PROXY",
        "true",
        "false: only DNS of pods is answered, behind the rules of others",
    ),
    (
        "PROXY_MODE",
        "shared",
        "one process for all pods of the node; dedicated: for one workload, in its namespace and with its token",
    ),
    (
        "PROXY_WORKLOAD_INFO",
        "",
        "with PROXY_MODE=dedicated: namespace/name/service-account",
    ),
    (
        "INPOD_ENABLED",
        "false",
        "set by Istio's chart: pods come from istio-cni",
    ),
    (
        "INPOD_UDS",
        "/var/run/ztunnel/ztunnel.sock",
        "istio-cni's socket; if set, pods come from istio-cni",
    ),
    (
        "INPOD_PORT_REUSE",
        "true",
        "the next ztunnel may listen in pods while this one runs",
    ),
    (
        "LEYLINE_ENROLMENT",
        "",
        "zds: pods come from istio-cni; controlplane: from Leyline's; unset: as INPOD_* say",
    ),
    (
        "LEYLINE_CAPTURE",
        "",
        "ebpf: ours; cni: rules that istio-cni makes, the default with it",
    ),
    ("", "", "connections"),
    ("KEEPALIVE_ENABLED", "true", "probe silent TCP peers"),
    ("KEEPALIVE_TIME", "180s", "silence before the first probe"),
    ("KEEPALIVE_INTERVAL", "180s", "between probes"),
    (
        "KEEPALIVE_RETRIES",
        "9",
        "unanswered probes before the connection ends",
    ),
    (
        "USER_TIMEOUT_ENABLED",
        "false",
        "the same patience for data that is not acknowledged",
    ),
    (
        "POOL_MAX_STREAMS_PER_CONNECTION",
        "100",
        "connections in one tunnel",
    ),
    (
        "POOL_UNUSED_RELEASE_TIMEOUT",
        "5m",
        "how long an unused tunnel is kept",
    ),
    (
        "HTTP2_STREAM_WINDOW_SIZE",
        "4194304",
        "bytes in flight of one connection",
    ),
    (
        "HTTP2_CONNECTION_WINDOW_SIZE",
        "16777216",
        "bytes in flight of one tunnel",
    ),
    ("HTTP2_FRAME_SIZE", "1048576", "largest frame taken"),
    (
        "PACKET_MARK",
        "1337",
        "mark of the proxy's own sockets; not 0, which capture would take for an application's",
    ),
    (
        "ENABLE_ORIG_SRC",
        "true",
        "applications see the client's address; false: the pod's own",
    ),
    (
        "IPV6_ENABLED",
        "true",
        "false: listen on IPv4 only, and tell mesh services without IPv6 addresses",
    ),
    (
        "ENABLE_RESPONSE_BAGGAGE",
        "true",
        "say in the answer to a tunnelled connection who answered",
    ),
    (
        "UNSTABLE_ENABLE_SOCKS5",
        "false",
        "SOCKS5 for applications, on port 15080 of each pod's loopback addresses",
    ),
    (
        "COMPLIANCE_POLICY",
        "",
        "pqc: X25519MLKEM768 and no other key exchange",
    ),
    ("TLS12_ENABLED", "false", "take TLS 1.2 too"),
    (
        "AUTHZ_POLICY_INFO_LOGGING",
        "false",
        "log decisions of policies at info, not debug",
    ),
    (
        "CONNECTION_TERMINATION_DEADLINE",
        "",
        "how long connections may finish at shutdown",
    ),
    (
        "TERMINATION_GRACE_PERIOD_SECONDS",
        "",
        "the pod's; the deadline is a little less, or 5s",
    ),
    (
        "LOCALHOST_APP_TUNNEL",
        "true",
        "application tunnels end at the pod's loopback address",
    ),
    ("", "", "DNS of pods"),
    (
        "ISTIO_META_DNS_CAPTURE",
        "true",
        "anything else: DNS is left alone",
    ),
    (
        "ISTIO_META_DNS_PROXY_ADDR",
        "localhost:15053",
        "nothing else: capture leads there",
    ),
    (
        "CLUSTER_DOMAIN",
        "cluster.local",
        "last part of the names of Kubernetes services",
    ),
    (
        "PREFERED_SERVICE_NAMESPACE",
        "",
        "whose service answers to a name that several namespaces have",
    ),
    ("", "", "process"),
    (
        "ZTUNNEL_WORKER_THREADS",
        "",
        "a number, NN% of the CPUs, or 0 for all; unset: a quarter, at least 2",
    ),
    (
        "ZTUNNEL_RESOURCE_CPU_LIMIT",
        "",
        "the container's, as 2, 1.5 or 500m",
    ),
    ("ZTUNNEL_RESOURCE_CPU_REQUEST", "", "the container's"),
    (
        "ZTUNNEL_CPU_LIMIT",
        "",
        "CPUs of the node, by the downward API",
    ),
    ("RUST_LOG", "info", "levels: LEVEL, or MODULE=LEVEL[,...]"),
    ("LOG_FORMAT", "plain", "or json"),
    ("", "", "Leyline's own"),
    (
        "LEYLINE_INSTANCE",
        "ztunnel",
        "names this ztunnel's kernel objects",
    ),
    ("LEYLINE_BPFFS", "/sys/fs/bpf", "where capture is pinned"),
    (
        "LEYLINE_CGROUP",
        "",
        "root of the cgroup2 hierarchy; unset: found",
    ),
    (
        "LEYLINE_POD_NETNS_DIR",
        "/run/leyline/pods",
        "each pod's network namespace as namespace_name",
    ),
    (
        "LEYLINE_STEER",
        "by-kernel",
        "before-5.17 forces the capture variant of older kernels",
    ),
    (
        "LEYLINE_HANDSHAKE_DEADLINE",
        "10s",
        "for a TLS handshake, either side",
    ),
    (
        "LEYLINE_MAX_CONNECTIONS_PER_POD",
        "65536",
        "more are reset and counted",
    ),
    (
        "LEYLINE_MAX_HANDSHAKES_PER_POD",
        "512",
        "unfinished handshakes; more wait",
    ),
    (
        "LEYLINE_MAX_TUNNELS_PER_SOURCE",
        "512",
        "tunnels of one source address into one pod; more are reset",
    ),
    (
        "LEYLINE_MAX_WINDOW_PER_SOURCE",
        "134217728",
        "bytes that one source address may have sent into one pod's tunnels unread",
    ),
    (
        "LEYLINE_MAX_WINDOW_PER_IDENTITY",
        "536870912",
        "the same for all addresses of one identity",
    ),
    (
        "LEYLINE_HALF_CLOSED_TIMEOUT",
        "1h",
        "a connection of which one direction has ended and the other is silent is reset; 0: never",
    ),
    (
        "LEYLINE_IDLE_TIMEOUT",
        "0",
        "the same of any silent connection; 0: never",
    ),
    (
        "LEYLINE_WITHDRAWN_ROOT_GRACE",
        "5s",
        "from the withdrawal of a root to the end of tunnels whose peer has no other",
    ),
    (
        "LEYLINE_METRIC_LABELS_REMOVED",
        "",
        "labels that the istio_tcp_* metrics are to do without, with commas",
    ),
    (
        "LEYLINE_NODE_LOCAL",
        "true",
        "connections between two pods of the node stay inside ztunnel",
    ),
    (
        "LEYLINE_PACE_TUNNELS",
        "false",
        "where the node's congestion control is BBR, it governs tunnels of less than 1 ms too; they take CUBIC otherwise",
    ),
];

/// The list as text for a terminal. An entry without a name is a heading.
pub fn listing() -> String {
    let mut text = String::from("environment (durations as 5s, 1m30s; booleans as true, false):\n");
    for (name, default, meaning) in VARIABLES {
        // A string takes everything.
        if name.is_empty() {
            writeln!(text, "\n {meaning}").ok();
            continue;
        }
        write!(text, "  {name:<33} {meaning}").ok();
        if !default.is_empty() {
            write!(text, " [{default}]").ok();
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use leyline_runtime::env::{EnvSource, Reader};

    use super::*;
    use crate::config::Config;

    /// An empty environment that remembers what it was asked for.
    #[derive(Default)]
    struct Asked(RefCell<BTreeSet<String>>);

    impl EnvSource for Asked {
        fn get(&self, name: &str) -> Option<String> {
            self.0.borrow_mut().insert(name.to_owned());
            None
        }

        fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
            self.0.borrow_mut().insert(format!("{prefix}*"));
            Vec::new()
        }
    }

    #[test]
    fn every_variable_that_is_read_is_listed_and_the_other_way_round() {
        let asked = Asked::default();
        Config::read(&mut Reader::new(&asked));
        let asked = asked.0.into_inner();
        let listed: BTreeSet<String> = VARIABLES
            .iter()
            .map(|(name, _, _)| (*name).to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        let by_pattern = |name: &String| {
            let mut patterns = listed.iter().filter_map(|one| one.strip_suffix('*'));
            patterns.any(|prefix| name.starts_with(prefix))
        };
        let hidden: Vec<_> = asked
            .iter()
            .filter(|name| !listed.contains(*name) && !by_pattern(name))
            .collect();
        assert!(
            hidden.is_empty(),
            "add to the table of {}: {hidden:?}",
            file!()
        );
        let unread: Vec<_> = listed.difference(&asked).collect();
        assert!(
            unread.is_empty(),
            "in the table, and nobody reads: {unread:?}"
        );
    }

    /// Facts A2: who comes from Istio finds each of its variables.
    #[test]
    fn every_variable_of_istio_is_listed() {
        let istio = "PROXY_MODE PROXY_WORKLOAD_INFO ENABLE_PROXY XDS_ADDRESS CA_ADDRESS XDS_ROOT_CA CA_ROOT_CA \
            ALT_XDS_HOSTNAME ALT_CA_HOSTNAME AUTH_TOKEN CLUSTER_ID ISTIO_META_CLUSTER_ID CLUSTER_DOMAIN NETWORK \
            NODE_NAME POD_NAME POD_NAMESPACE SERVICE_ACCOUNT INSTANCE_IP TRUST_DOMAIN INPOD_UDS INPOD_PORT_REUSE \
            PACKET_MARK ENABLE_ORIG_SRC IPV6_ENABLED LOCAL_XDS_PATH LOCAL_XDS XDS_ON_DEMAND PREFERED_SERVICE_NAMESPACE \
            SECRET_TTL FAKE_CA KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES \
            USER_TIMEOUT_ENABLED POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT \
            HTTP2_STREAM_WINDOW_SIZE HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE \
            CONNECTION_TERMINATION_DEADLINE TERMINATION_GRACE_PERIOD_SECONDS UNSTABLE_ENABLE_SOCKS5 \
            LOCALHOST_APP_TUNNEL ENABLE_RESPONSE_BAGGAGE CRL_PATH COMPLIANCE_POLICY TLS12_ENABLED \
            AUTHZ_POLICY_INFO_LOGGING RUST_LOG LOG_FORMAT PROXY_CONFIG ISTIO_META_DNS_CAPTURE \
            ISTIO_META_DNS_PROXY_ADDR ISTIO_META_ISTIO_VERSION ISTIO_META_* ISTIO_METAJSON_* XDS_HEADER_* \
            CA_HEADER_* ZTUNNEL_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_REQUEST \
            ZTUNNEL_WORKER_THREADS INPOD_ENABLED";
        let is_listed = |name: &str| {
            VARIABLES.iter().any(|(listed, _, _)| {
                let pattern = listed.strip_suffix('*');
                name == *listed || pattern.is_some_and(|prefix| name.starts_with(prefix))
            })
        };
        let missing: Vec<&str> = istio
            .split_whitespace()
            .filter(|name| !is_listed(name))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_listing_is_for_a_terminal() {
        let text = listing();
        assert!(text.contains(
            "\n  KEEPALIVE_TIME                    silence before the first probe [180s]\n"
        ));
        assert!(text.contains("\n control plane\n"));
    }
}
