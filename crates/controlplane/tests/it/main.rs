//! The real control plane on a real port, spoken to over TLS as a proxy would.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod binary;
mod certificates;
mod commands;
mod discovery;
mod enrolment;
mod harness;
mod interop;
mod strangers;
