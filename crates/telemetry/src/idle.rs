//! Connections that a proxy closes because nothing happens on them any more.

use metrics::{counter, describe_counter};

/// Why one was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// One direction had ended, and the other was silent.
    HalfClosed,
    /// It was silent.
    Idle,
}

/// One was closed.
pub fn reaped(reason: Reaped) {
    let reason = match reason {
        Reaped::HalfClosed => "half_closed",
        Reaped::Idle => "idle",
    };
    counter!("leyline_connections_reaped_total", "reason" => reason).increment(1);
}

pub(crate) fn describe() {
    describe_counter!(
        "leyline_connections_reaped_total",
        "Connections closed because nothing happened on them any more, by reason."
    );
}
