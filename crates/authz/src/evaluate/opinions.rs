//! What each policy says of a connection, for people. The decision is [`super::evaluate`]'s.

use std::sync::Arc;

use super::{Connection, ConnectionFacts, PolicySet};
use crate::policy::Policy;

/// One policy of a set and what it says.
#[derive(Clone, Debug)]
pub struct PolicyOpinion {
    /// The policy.
    pub policy: Arc<Policy>,
    /// What it says.
    pub says: PolicyMatch,
}

/// Whether a policy fits a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyMatch {
    /// One of its rules fits.
    Matches,
    /// None does.
    DoesNotMatch,
    /// It has a condition that could not be parsed: field and reason.
    Malformed(String),
}

/// The opinion of every policy of the set, in the order of the set; dry-run ones too.
pub fn opinions(set: &PolicySet, facts: &ConnectionFacts) -> Vec<PolicyOpinion> {
    let connection = Connection::new(facts);
    let opinion = |policy: &Arc<Policy>| PolicyOpinion {
        says: match policy.malformed() {
            Some(reason) => PolicyMatch::Malformed(reason.to_owned()),
            None if connection.fits_policy(policy) => PolicyMatch::Matches,
            None => PolicyMatch::DoesNotMatch,
        },
        policy: Arc::clone(policy),
    };
    set.policies.iter().map(opinion).collect()
}
