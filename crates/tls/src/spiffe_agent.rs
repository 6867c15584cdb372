//! What the ways to a SPIFFE agent have in common.

use std::time::Duration;

use leyline_types::TrustDomain;
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
    /// No registration entry matches what is known of the pods.
    #[error(
        "the SPIRE agent has no SVID of this identity for its pods on this node ({pods}); check the registration entry: \
        its parent is the agent of this node, and its selectors are among k8s:ns, k8s:sa, k8s:pod-name, k8s:node-name \
        and, with istio-cni, k8s:pod-uid{}",
        also_given(.instead)
    )]
    NoEntry {
        /// How many pods were asked for.
        pods: usize,
        /// What the agent has given for them that is of no use.
        instead: String,
    },
    /// Nobody has told of a pod.
    #[error("no pod of this identity is carried here, so that the SPIRE agent was not asked")]
    NoPod,
    /// Nothing to verify anybody with.
    #[error("the SPIRE agent has no bundle of trust domain {0}, is it the agent's own?")]
    NoBundle(TrustDomain),
    /// The SVID cannot be used.
    #[error("the SVID is unusable: {0}")]
    Certificate(#[from] CertificateError),
}

fn also_given(instead: &str) -> String {
    if instead.is_empty() {
        String::new()
    } else {
        format!("; what it gives: {instead}")
    }
}

/// The address of an agent is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is no SPIFFE endpoint, use unix:///path/of/socket: {reason}")]
pub struct EndpointError {
    address: String,
    reason: String,
}

impl EndpointError {
    /// It is an address, but not of a Unix socket.
    pub(crate) fn not_local(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            reason: "it is not a Unix socket".to_owned(),
        }
    }
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

/// Tries that failed one after the other.
#[derive(Debug)]
pub(crate) struct Failures {
    /// The next one is this many after the last answer; 0 is that of a try that was answered.
    next: u32,
}

impl Failures {
    /// None yet, and no answer.
    pub(crate) fn new() -> Self {
        Self { next: 1 }
    }

    /// The agent has answered.
    pub(crate) fn answered(&mut self) {
        self.next = 0;
    }

    /// A try has failed: how long to wait before the next one.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = pause(self.next, rand::random());
        self.next = self.next.saturating_add(1);
        pause
    }
}

/// The pause before the agent is tried again, after this many failures one after the other; `random` is from 0 to 1.
fn pause(failures: u32, random: f64) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(BACKOFF_MAX)
        .mul_f64(0.8 + 0.4 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_there_is_an_answer() {
        let mut failures = Failures::new();
        let check = |failures: &mut Failures, expected: u32| {
            let (least, most) = (pause(expected, 0.0), pause(expected, 1.0));
            let got = failures.pause();
            assert!((least..=most).contains(&got), "{expected}: {got:?}");
        };
        check(&mut failures, 1);
        check(&mut failures, 2);
        failures.answered();
        check(&mut failures, 0);
        check(&mut failures, 1);
    }

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
