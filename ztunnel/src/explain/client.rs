//! The command `ztunnel explain`: asks the admin page of the ztunnel that runs here, and prints its answer.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use leyline_net::{ConnectOptions, NetNs, Source, connect};
use leyline_types::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// For the whole question. The answer is made from memory.
const DEADLINE: Duration = Duration::from_secs(10);

const USAGE: &str =
    "usage: ztunnel explain --from NAMESPACE/POD --to ADDRESS:PORT [--json] [--admin ADDRESS:PORT]";

/// What the command line says.
struct Asked {
    path: String,
    admin: SocketAddr,
}

/// Runs the command with its arguments; the answer is for standard output.
///
/// # Errors
/// When the arguments are no question, no ztunnel answers, or it cannot answer this one.
pub fn explain(args: impl Iterator<Item = String>) -> Result<String> {
    let asked = parse(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = async {
        tokio::time::timeout(DEADLINE, ask(&asked))
            .await
            .context("no answer in time")?
    };
    runtime
        .block_on(answer)
        .with_context(|| format!("asking the ztunnel at {}", asked.admin))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Asked> {
    let (mut from, mut to, mut format) = (None, None, "text");
    let mut admin = SocketAddr::from(([127, 0, 0, 1], ports::ADMIN));
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value\n{USAGE}"))
        };
        match arg.as_str() {
            "--from" => from = Some(value()?),
            "--to" => to = Some(value()?),
            "--admin" => admin = value()?.parse().context("--admin is not ADDRESS:PORT")?,
            "--json" => format = "json",
            _ => bail!("unknown argument `{arg}`\n{USAGE}"),
        }
    }
    let (from, to) = from.zip(to).context(USAGE)?;
    for text in [&from, &to] {
        // They become a request line.
        ensure!(
            text.bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"&#%+".contains(&byte)),
            "`{text}` has characters that neither names nor addresses have"
        );
    }
    Ok(Asked {
        path: format!("/explain?from={from}&to={to}&format={format}"),
        admin,
    })
}

async fn ask(asked: &Asked) -> Result<String> {
    let netns = NetNs::current()?;
    let options = ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline: DEADLINE,
        keepalive: None,
        announce: None,
    };
    let mut stream = connect(&netns, asked.admin, &options).await?;
    let (path, admin) = (&asked.path, asked.admin);
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("what answers does not speak HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("404") => bail!("it is of a version that cannot explain"),
        _ => bail!("{}", body.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(args: &[&str]) -> Result<String> {
        Ok(parse(args.iter().map(|arg| (*arg).to_owned()))?.path)
    }

    #[test]
    fn arguments() {
        assert_eq!(
            path(&["--from", "shop/a", "--to", "[fd00::1]:80", "--json"]).unwrap(),
            "/explain?from=shop/a&to=[fd00::1]:80&format=json"
        );
        for bad in [
            &["--from", "shop/a"][..],
            &["--to"],
            &["--from", "a", "--to", "b c"],
            &["--from", "a", "--to", "b\r\nx:"],
            &["shop/a"],
            &["--from", "a", "--to", "b", "--admin", "x"],
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }
}
