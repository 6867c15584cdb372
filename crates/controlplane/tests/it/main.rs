//! The real control plane on a real port, spoken to over TLS as a proxy would.

mod binary;
mod certificates;
mod discovery;
mod enrolment;
mod harness;
