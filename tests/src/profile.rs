//! Profiles of the proxies, read by a program that shares no code with Leyline: Google's protobuf in Python.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use leyline_net::NetNs;
use serde::Deserialize;

use crate::{
    peers::{grpc_python, script},
    process::{Program, output},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a profile says.
#[derive(Clone, Debug, Deserialize)]
pub struct Profile {
    /// `type/unit` of each value of a sample.
    pub types: Vec<String>,
    /// What is between two samples: nanoseconds, or bytes.
    pub period: i64,
    /// How long it was taken.
    pub seconds: f64,
    /// All of them.
    pub samples: Vec<Sample>,
}

/// A stack that was seen.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// In the order of the types.
    pub values: Vec<u64>,
    /// On which thread, of time.
    pub thread: String,
    /// Functions, the innermost first.
    pub stack: Vec<String>,
}

/// Reads the profile in `file`; installs what is missing into the virtual environment `directory`.
///
/// # Errors
/// When it is not of pprof's form.
pub async fn read(directory: &Path, namespace: &NetNs, file: &Path) -> Result<Profile> {
    let program = Program {
        name: "pprof-reader".to_owned(),
        path: grpc_python(directory).await?,
        args: vec![script("pprof_read.py").into(), file.into()],
        env: BTreeMap::new(),
        namespace: namespace.clone(),
    };
    let printed = output(&program, DEADLINE).await?;
    serde_json::from_str(&printed).context("reading what the reader printed")
}
