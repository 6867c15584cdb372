//! Metrics of the control-plane client and of the workload manager, and the build. Names are Istio's (facts A19) where it
//! has them. Crates that count for themselves (certificates, tunnels) are described here too.

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// An xDS stream ended; the reasons are the xDS client's, in Istio's words.
pub fn xds_terminated(reason: &'static str) {
    counter!("istio_xds_connection_terminations_total", "reason" => reason).increment(1);
}

/// An xDS response of this type and size arrived.
pub fn xds_message(type_url: &'static str, bytes: u64) {
    counter!("istio_xds_message_total", "url" => type_url).increment(1);
    counter!("istio_xds_message_bytes_total", "url" => type_url).increment(bytes);
}

/// Resources of this type were refused.
pub fn xds_rejected(type_url: &'static str, resources: u64) {
    counter!("leyline_xds_rejected_total", "url" => type_url).increment(resources);
}

/// What runs: `istio_build{component,tag} 1`.
pub fn build(component: &'static str, tag: &str) {
    gauge!("istio_build", "component" => component, "tag" => tag.to_owned()).set(1.0);
}

/// How many pods this node serves, and how many wait to be served.
pub fn workload_proxies(active: u32, pending: u32) {
    gauge!("workload_manager_active_proxy_count").set(active);
    gauge!("workload_manager_pending_proxy_count").set(pending);
}

/// A pod is being served.
pub fn workload_proxy_started() {
    counter!("workload_manager_proxies_started_total").increment(1);
}

/// A pod that could not be served is tried again.
pub fn workload_proxy_retried() {
    counter!("leyline_workload_proxy_retries_total").increment(1);
}

/// istio-cni was told that it asked for something impossible.
pub fn zds_refused() {
    counter!("leyline_zds_nacks_total").increment(1);
}

/// The connection to istio-cni ended, or could not be made.
pub fn zds_lost() {
    counter!("leyline_zds_connection_failures_total").increment(1);
}

/// A pod is not served any more.
pub fn workload_proxy_stopped() {
    counter!("workload_manager_proxies_stopped_total").increment(1);
}

/// A pod's SOCKS5 port could not be opened, so that its applications are refused there.
pub fn socks5_listen_failed() {
    counter!("leyline_socks5_listen_failures_total").increment(1);
}

/// A pod's namespace lets its own connections take the proxy's ports.
pub fn ports_not_reserved() {
    counter!("leyline_ports_not_reserved_total").increment(1);
}

/// An interface that a pod names for its guests is not captured: it is missing, or the kernel refuses.
pub fn guest_interface_not_captured() {
    counter!("leyline_guest_interfaces_not_captured_total").increment(1);
}

/// A connection between two pods of this node goes by a tunnel, for this reason.
pub fn node_local_declined(reason: &'static str) {
    counter!("leyline_node_local_declined_total", "reason" => reason).increment(1);
}

/// What became of a question to the control plane about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demanded {
    /// It was answered.
    Answered,
    /// It was not, in time.
    Deadline,
    /// It could not be asked.
    TooMany,
}

/// A connection had to ask about its destination.
pub fn demanded(outcome: Demanded) {
    let outcome = match outcome {
        Demanded::Answered => "answered",
        Demanded::Deadline => "deadline",
        Demanded::TooMany => "too_many",
    };
    counter!("leyline_xds_on_demand_total", "outcome" => outcome).increment(1);
}

fn describe_agent() {
    describe_counter!(
        "leyline_ports_not_reserved_total",
        "Pods whose own connections may take the proxy's ports, as their namespace does not let them be reserved."
    );
    describe_counter!(
        "leyline_guest_interfaces_not_captured_total",
        "Interfaces that pods name for their guests and that were missing or could not be captured."
    );
    describe_counter!(
        "leyline_socks5_listen_failures_total",
        "Pods whose SOCKS5 port could not be opened."
    );
    describe_counter!(
        "leyline_xds_on_demand_total",
        "Connections that had to ask about their destination, by outcome."
    );
    describe_counter!(
        "leyline_workload_proxy_retries_total",
        "Attempts to serve a pod that could not be served before."
    );
    describe_counter!(
        "leyline_zds_nacks_total",
        "Requests of istio-cni that were answered with an error."
    );
    describe_counter!(
        "leyline_zds_connection_failures_total",
        "Connections to istio-cni that ended or could not be made."
    );
}

fn describe_tunnels() {
    describe_counter!(
        "leyline_hbone_dials_total",
        "Tunnels that were to be made, by result."
    );
    describe_counter!(
        "leyline_hbone_goaways_total",
        "GOAWAY frames in tunnels, by direction and error code."
    );
    describe_counter!(
        "leyline_hbone_streams_refused_total",
        "Connections that were refused in a tunnel before they were looked at (REFUSED_STREAM), by direction."
    );
    describe_counter!(
        "leyline_hbone_retries_total",
        "Requests repeated because their tunnel was going away."
    );
}

pub(crate) fn describe() {
    describe_agent();
    describe_tunnels();
    describe_counter!(
        "istio_xds_connection_terminations_total",
        "xDS streams that ended."
    );
    describe_counter!("istio_xds_message_total", "xDS responses received.");
    describe_counter!(
        "istio_xds_message_bytes_total",
        "Bytes of xDS responses received."
    );
    describe_counter!(
        "leyline_certificate_fetches_total",
        "Certificates asked of the CA, by result."
    );
    describe_counter!(
        "leyline_certificates_refused_total",
        "Identities without a certificate because there are too many."
    );
    describe_counter!(
        "leyline_node_local_declined_total",
        "Connections between pods of this node that go by a tunnel, by reason."
    );
    describe_counter!(
        "leyline_xds_rejected_total",
        "xDS resources that were refused."
    );
    describe_gauge!("istio_build", "What runs.");
    describe_gauge!(
        "workload_manager_active_proxy_count",
        "Pods that are served."
    );
    describe_gauge!(
        "workload_manager_pending_proxy_count",
        "Pods that wait to be served."
    );
    describe_counter!(
        "workload_manager_proxies_started_total",
        "Pods whose service began."
    );
    describe_counter!(
        "workload_manager_proxies_stopped_total",
        "Pods whose service ended."
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{registry, series};

    #[test]
    fn names_and_labels() {
        registry();
        xds_terminated("Reconnect");
        xds_message("type.googleapis.com/test.Mesh", 10);
        xds_message("type.googleapis.com/test.Mesh", 5);
        build("test", "1.2.3");
        workload_proxies(3, 1);
        workload_proxy_started();
        workload_proxy_stopped();
        for (name, label, expected) in [
            (
                "istio_xds_connection_terminations_total",
                "",
                r#"{reason="Reconnect"} 1"#,
            ),
            (
                "istio_xds_message_total",
                "Mesh",
                r#"{url="type.googleapis.com/test.Mesh"} 2"#,
            ),
            (
                "istio_xds_message_bytes_total",
                "Mesh",
                r#"{url="type.googleapis.com/test.Mesh"} 15"#,
            ),
            ("istio_build", "", r#"{component="test",tag="1.2.3"} 1"#),
            ("workload_manager_active_proxy_count", "", " 3"),
            ("workload_manager_pending_proxy_count", "", " 1"),
            ("workload_manager_proxies_started_total", "", " 1"),
            ("workload_manager_proxies_stopped_total", "", " 1"),
        ] {
            assert_eq!(series(name, label), [format!("{name}{expected}")]);
        }
    }
}
