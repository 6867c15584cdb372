//! What the ways to a SPIFFE agent have in common.

use std::time::Duration;

use spiffe::transport::Endpoint;

use crate::certificate::CertificateError;

/// The agent is on this node: it answers at once, or not at all.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// An agent that is being replaced is back within seconds.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Why an agent gives no certificate for an identity.
#[derive(Debug, thiserror::Error)]
pub enum SvidSourceError {
    /// The agent has not given anything yet.
    #[error("the SPIFFE agent has given no SVID yet: {0}")]
    NoAnswer(String),
    /// There is no registration entry that lets this process have it.
    #[error(
        "the SPIFFE agent has no SVID of this identity for this process among {0}, is it registered?"
    )]
    NotRegistered(usize),
    /// The SVID cannot be used.
    #[error("the SVID is unusable: {0}")]
    Certificate(#[from] CertificateError),
}

/// The address of an agent is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is no SPIFFE endpoint, use unix:///path/of/socket: {reason}")]
pub struct EndpointError {
    address: String,
    reason: String,
}

/// Reads the address of an agent.
///
/// # Errors
/// When it is not one.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, EndpointError> {
    Endpoint::parse(address).map_err(|error| EndpointError {
        address: address.to_owned(),
        reason: error.to_string(),
    })
}

/// The pause before the agent is tried again, after this many failures one after the other; `random` is from 0 to 1.
pub(crate) fn pause(failures: u32, random: f64) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(BACKOFF_MAX)
        .mul_f64(0.8 + 0.4 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        for (failures, random, expected) in [
            (0, 0.5, 100),
            (1, 0.0, 160),
            (1, 1.0, 240),
            (5, 0.5, 3200),
            (6, 0.5, 5000),
            (u32::MAX, 1.0, 6000),
        ] {
            let got = pause(failures, random).as_millis();
            assert_eq!(got, expected, "{failures} {random}");
        }
    }
}
