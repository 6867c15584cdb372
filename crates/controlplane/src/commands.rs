//! The commands that end: `controlplane token`, `validate` and `status`.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use leyline_controlplane::{
    StateDir, TokenKey,
    objects::Severity,
    status::{Shown, render},
    validate::validate as check_files,
};
use leyline_net::{ConnectOptions, NetNs, Source, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::TokenArgs;

/// For the whole question. The answer is made from memory.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub(crate) struct ValidateArgs {
    /// Files of YAML, or directories of *.yaml and *.yml files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Prints a token.
pub(crate) fn token(args: &TokenArgs) -> Result<ExitCode> {
    let key = TokenKey::open(&StateDir::open(&args.state_dir)?)?;
    say(&key.issue(&args.caller(), args.ttl, SystemTime::now()));
    Ok(ExitCode::SUCCESS)
}

/// Prints what is wrong in files; fails where a document would be rejected.
pub(crate) fn validate(args: ValidateArgs) -> Result<ExitCode> {
    for file in &args.files {
        ensure!(file.exists(), "there is no {}", file.display());
    }
    let issues = check_files(args.files)?;
    let errors = issues.iter().filter(|it| it.severity == Severity::Rejected);
    let errors = errors.count();
    for issue in &issues {
        say(&issue.to_string());
    }
    let warnings = issues.len() - errors;
    say(&format!("{errors} errors, {warnings} warnings"));
    Ok(ExitCode::from(u8::from(errors > 0)))
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// The admin address of the control plane, as it was given to `controlplane serve`.
    #[arg(long, value_name = "ADDR:PORT")]
    admin: SocketAddr,
    /// All objects, also those of Kubernetes' own kinds with nothing to say.
    #[arg(long)]
    all: bool,
    /// As the admin page says it.
    #[arg(long)]
    json: bool,
}

/// Asks the control plane that runs, and prints its answer.
pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = async {
        let asked = tokio::time::timeout(DEADLINE, get(args.admin, "/status"));
        asked.await.context("no answer in time")?
    };
    let answer = runtime
        .block_on(answer)
        .with_context(|| format!("asking the control plane at {}", args.admin))?;
    if args.json {
        say(answer.trim_end());
    } else {
        let status = serde_json::from_str(&answer).context("reading its answer")?;
        let shown = if args.all { Shown::All } else { Shown::OfMesh };
        say(render(&status, shown).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "it is the output of the command")]
fn say(text: &str) {
    println!("{text}");
}

async fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let options = ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline: DEADLINE,
        keepalive: None,
        announce: None,
    };
    let mut stream = connect(&NetNs::current()?, admin, &options).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("what answers does not speak HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("it answers `{}`", head.lines().next().unwrap_or_default()),
    }
}
