//! Metrics of what the node proxy does about endpoints that fail.

use metrics::{counter, describe_counter};

use crate::traffic::ResponseFlag;

/// A connection is tried at another endpoint, as the one before failed in this way.
pub fn retried(flag: ResponseFlag) {
    counter!("leyline_connect_retries_total", "response_flags" => flag.as_str()).increment(1);
}

/// An endpoint is avoided for a while.
pub fn ejected() {
    counter!("leyline_endpoint_ejections_total").increment(1);
}

/// A client is not kept with its endpoint, as too many are.
pub fn session_not_kept() {
    counter!("leyline_sessions_not_kept_total").increment(1);
}

pub(crate) fn describe() {
    describe_counter!(
        "leyline_connect_retries_total",
        "Connections tried at another endpoint, by why the one before failed."
    );
    describe_counter!(
        "leyline_endpoint_ejections_total",
        "Endpoints avoided for a while because they failed."
    );
    describe_counter!(
        "leyline_sessions_not_kept_total",
        "Clients not kept with their endpoint because too many are."
    );
}
