//! The application of the demo's pods, and with `call` a small HTTP client for looking around in them.

use std::{io::Write, sync::atomic::AtomicU64, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use leyline_net::NetNs;
use leyline_tests::{
    client::Client,
    echo::{EchoArgs, Me, serve},
    session::Session,
};

/// For a call.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    echo: EchoArgs,
    /// Name of the pod, for replies.
    #[arg(long, default_value = "")]
    pod: String,
    /// Namespace of the pod, for replies.
    #[arg(long, default_value = "")]
    namespace: String,
}

#[derive(Subcommand)]
enum Command {
    /// Ask http://ADDRESS/PATH and print what comes.
    Call {
        /// IP address and port.
        address: std::net::SocketAddr,
        #[arg(default_value = "/")]
        path: String,
        /// `NAME: VALUE`; may be given several times.
        #[arg(long = "header", short = 'H')]
        headers: Vec<String>,
        /// POST and so on.
        #[arg(long = "request", short = 'X', default_value = "GET")]
        method: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Call {
            address,
            path,
            headers,
            method,
        }) => {
            let headers: Option<Vec<(&str, &str)>> = headers
                .iter()
                .map(|line| line.split_once(':'))
                .map(|pair| pair.map(|(name, value)| (name.trim(), value.trim())))
                .collect();
            let headers = headers.context("a header is NAME: VALUE")?;
            let client = Client::new(NetNs::current().context("entering the own namespace")?);
            let mut session = Session::open(&client, address, DEADLINE).await?;
            let body = bytes::Bytes::new();
            let reply = session.request(&method, &path, &headers, body).await?;
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", reply.status)?;
            Ok(out.write_all(&reply.body)?)
        }
        None => {
            let ServeArgs {
                echo,
                pod,
                namespace,
            } = arguments.serve;
            let me = Me {
                pod,
                namespace,
                version: echo.version.clone(),
                fail: echo.fail,
                requests: AtomicU64::default(),
            };
            serve(me, &echo).await
        }
    }
}
