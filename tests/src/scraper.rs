//! A scraper that shares no code with Leyline: Python's `prometheus_client` from PyPI, with its strict OpenMetrics parser.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use leyline_net::NetNs;
use serde::Deserialize;
use tokio::process::Command;

use crate::{
    peers::{make_environment, run_to_end, script, works},
    process::{Program, output},
};

/// What is installed; the versions are those that were tried.
const PACKAGES: [&str; 3] = [
    "prometheus-client==0.26.0",
    "brotli==1.2.1",
    "zstandard==0.25.0",
];
/// Above the deadlines of the script.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the scraper read.
#[derive(Clone, Debug, Deserialize)]
pub struct Scrape {
    /// All samples.
    pub samples: usize,
    /// Types of families, by name.
    pub types: BTreeMap<String, String>,
    /// Labels of families, by name.
    pub labels: BTreeMap<String, Vec<String>>,
    /// Bytes of the page in each encoding.
    pub sizes: BTreeMap<String, usize>,
    /// Families without help.
    pub undocumented: Vec<String>,
}

/// Scrapes a page from inside `namespace`, in every form and encoding; installs what is missing.
///
/// # Errors
/// When the page is not what was asked for, or cannot be read.
pub async fn scrape(directory: &Path, namespace: &NetNs, page: SocketAddr) -> Result<Scrape> {
    let python = install(directory).await?;
    let program = Program {
        name: "scraper".to_owned(),
        path: python,
        args: vec![
            script("scrape.py").into(),
            format!("http://{page}/metrics").into(),
        ],
        env: BTreeMap::new(),
        namespace: namespace.clone(),
    };
    let printed = output(&program, DEADLINE).await?;
    serde_json::from_str(&printed).with_context(|| format!("reading `{printed}`"))
}

async fn install(directory: &Path) -> Result<PathBuf> {
    let python = directory.join("bin/python");
    let probe = "import prometheus_client, brotli, zstandard";
    if !works(&python, &["-c", probe]).await {
        make_environment(directory).await?;
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "install", "--quiet"]);
        run_to_end(command.args(PACKAGES)).await?;
    }
    Ok(python)
}
