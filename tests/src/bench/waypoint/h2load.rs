//! `h2load` of Debian's nghttp2-client, which shares no code with what is measured.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

/// The program.
pub(super) const PATH: &str = "/usr/bin/h2load";

/// What it says of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Done {
    pub(super) seconds: f64,
    pub(super) succeeded: u64,
    /// Failed, in error, or without the status of success.
    pub(super) failed: u64,
    /// What became of them, in its words.
    pub(super) requests: String,
}

/// How it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// 32 connections.
    Http1,
    /// 4 connections with 8 requests at a time each.
    Http2,
}

impl Protocol {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
        }
    }

    /// Requests in a closed loop for some time.
    pub(super) fn closed(self, target: SocketAddr, millis: u128) -> Vec<String> {
        let connections: &[&str] = match self {
            Self::Http1 => &["--h1", "-c", "32"],
            Self::Http2 => &["-c", "4", "-m", "8"],
        };
        let for_time = ["-D".to_owned(), format!("{millis}ms")];
        let url = format!("http://{target}/");
        let args = connections.iter().map(|arg| (*arg).to_owned());
        args.chain(for_time).chain([url]).collect()
    }
}

/// So many streams of one connection at once, each with one request.
pub(super) fn at_once(streams: usize, url: &str, more: &[&str]) -> Vec<String> {
    let streams = streams.to_string();
    let args = [
        "-c", "1", "-n", &streams, "-m", &streams, "-w", "20", "-W", "24",
    ];
    let args = args.iter().chain(more).map(|arg| (*arg).to_owned());
    args.chain([url.to_owned()]).collect()
}

/// Reads its summary.
pub(super) fn read(printed: &str) -> Result<Done> {
    let line = |start: &str| {
        let found = printed.lines().find_map(|line| line.strip_prefix(start));
        found.with_context(|| format!("no `{start}` in `{printed}`"))
    };
    let seconds = line("finished in ")?.split(',').next().unwrap_or_default();
    let requests = line("requests: ")?;
    let count = |what: &str| {
        let found = requests
            .split(", ")
            .find_map(|part| part.strip_suffix(what));
        let count = found.and_then(|count| count.trim().parse::<u64>().ok());
        count.with_context(|| format!("no `{what}` in `{requests}`"))
    };
    let other = line("status codes: ")?;
    let status = |what: &str| {
        let found = other.split(", ").find_map(|part| part.strip_suffix(what));
        let count = found.and_then(|count| count.trim().parse::<u64>().ok());
        count.with_context(|| format!("no `{what}` in `{other}`"))
    };
    let (succeeded, good) = (count(" succeeded")?, status(" 2xx")?);
    let done = Done {
        seconds: to_seconds(seconds)?,
        succeeded,
        failed: count(" failed")? + succeeded.saturating_sub(good),
        requests: format!("{requests}; {other}"),
    };
    ensure!(done.succeeded > 0, "no request succeeded: {printed}");
    Ok(done)
}

fn to_seconds(text: &str) -> Result<f64> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];
    let found = units.into_iter().find_map(|(unit, factor)| {
        let number = text.trim().strip_suffix(unit)?.parse::<f64>().ok()?;
        Some(number * factor)
    });
    found.with_context(|| format!("`{text}` is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_summary_is_read() {
        let printed = "\
finished in 2.50s, 400.00 req/s, 1.20MB/s
requests: 1032 total, 1032 started, 1000 done, 1000 succeeded, 2 failed, 2 errored, 0 timeout
status codes: 997 2xx, 0 3xx, 1 4xx, 2 5xx
traffic: 1.2MB (1) total, 2KB (2) headers (space savings 0.00%), 1.1MB (3) data
";
        let expected = Done {
            seconds: 2.5,
            succeeded: 1000,
            failed: 5,
            requests:
                "1032 total, 1032 started, 1000 done, 1000 succeeded, 2 failed, 2 errored, 0 \
                       timeout; 997 2xx, 0 3xx, 1 4xx, 2 5xx"
                    .to_owned(),
        };
        assert_eq!(read(printed).unwrap(), expected);
        assert!(read(&printed.replace("1000 succeeded", "0 succeeded")).is_err());
        assert!((to_seconds("640.50ms").unwrap() - 0.6405).abs() < 1e-9);
    }
}
