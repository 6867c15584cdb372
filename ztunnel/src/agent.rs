//! The part of ztunnel that decides which pods it carries: what istio-cni is to Istio's ztunnel.

pub(crate) mod counters;
pub(crate) mod enrolment;
pub(crate) mod pods;
