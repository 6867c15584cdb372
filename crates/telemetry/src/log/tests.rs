use std::sync::mpsc::{Receiver, channel};

use tracing::{debug, debug_span, error, info, warn};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Output(std::sync::mpsc::Sender<String>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.0.send(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(
    format: Format,
    filter: &str,
) -> (
    LogHandle,
    impl tracing::Subscriber + Send + Sync,
    Receiver<String>,
) {
    let queue = Arc::new(Queue::new(format));
    let config = LogConfig {
        format,
        filter: filter.to_owned(),
    };
    let (handle, subscriber) = build(config, queue.clone()).unwrap();
    let (sender, receiver) = channel();
    queue::start_writer(queue, Output(sender)).unwrap();
    (handle, subscriber, receiver)
}

/// Logs, and returns the lines with their times replaced, after a check of the times' shape.
pub(crate) fn lines(format: Format, filter: &str, log: impl FnOnce()) -> Vec<String> {
    let (handle, subscriber, written) = start(format, filter);
    tracing::subscriber::with_default(subscriber, log);
    assert!(handle.flush(DEADLINE));
    let all: String = written.try_iter().collect();
    all.lines().map(hide_time).collect()
}

fn hide_time(line: &str) -> String {
    let at = line.find("20").unwrap();
    let (before, rest) = line.split_at(at);
    let (time, after) = rest.split_at("2026-08-01T10:11:12.123456Z".len());
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
    format!("{before}TIME{after}")
}

fn log_examples() {
    info!(target: "app", "started");
    warn!(target: "app", count = 3, ratio = 1.5, ok = true, peer = %"10.0.0.1:80", name = "a \"b\"", "degraded");
    let outer = debug_span!(target: "app", "outer", pod = "ns/web");
    let _outer = outer.enter();
    let inner = debug_span!(target: "app", "inner");
    let _inner = inner.enter();
    error!(target: "app", error = %"line one\nline two\ttab", none = None::<u64>, "multi\nline");
    debug!(target: "app", "not at this level");
}

#[test]
fn plain_lines() {
    let got = lines(Format::Plain, "info,app=info", || {
        log_examples();
    });
    assert_eq!(
        got,
        [
            "TIME\tinfo\tapp\tstarted",
            "TIME\twarn\tapp\tdegraded\tcount=3 ratio=1.5 ok=true peer=10.0.0.1:80 name=\"a \\\"b\\\"\"",
            "TIME\terror\tapp\tmulti\\nline\terror=line one\\nline two\\ttab",
        ]
    );
}

#[test]
fn plain_lines_with_spans() {
    let got = lines(Format::Plain, "debug", log_examples);
    assert_eq!(
        got[2],
        "TIME\terror\tapp:outer{pod=\"ns/web\"}:inner\tmulti\\nline\terror=line one\\nline two\\ttab"
    );
    assert_eq!(
        got[3],
        "TIME\tdebug\tapp:outer{pod=\"ns/web\"}:inner\tnot at this level"
    );
}

#[test]
fn json_lines() {
    let got = lines(Format::Json, "debug", log_examples);
    assert_eq!(
        got,
        [
            r#"{"level":"info","time":"TIME","scope":"app","message":"started"}"#,
            r#"{"level":"warn","time":"TIME","scope":"app","message":"degraded","count":3,"ratio":1.5,"ok":true,"peer":"10.0.0.1:80","name":"a \"b\""}"#,
            r#"{"level":"error","time":"TIME","scope":"app","message":"multi\nline","error":"line one\nline two\ttab","outer":{"pod":"ns/web"},"inner":{}}"#,
            r#"{"level":"debug","time":"TIME","scope":"app","message":"not at this level","outer":{"pod":"ns/web"},"inner":{}}"#,
        ]
    );
    for line in got {
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }
}

#[test]
fn long_values_are_cut_and_stay_valid_json() {
    let long = "é".repeat(100_000);
    for format in [Format::Plain, Format::Json] {
        let got = lines(
            format,
            "info",
            || info!(text = long, shown = %long, "{long}"),
        );
        assert_eq!(got.len(), 1);
        assert!(got[0].len() < 16 * 1024);
        if format == Format::Json {
            serde_json::from_str::<serde_json::Value>(&got[0]).unwrap();
        }
    }
}

#[test]
fn levels_change_at_run_time() {
    let (handle, subscriber, written) = start(Format::Plain, "info");
    tracing::subscriber::with_default(subscriber, || {
        debug!(target: "a::b", "before");
        handle.set("a=debug").unwrap();
        debug!(target: "a::b", "while");
        assert_eq!(handle.current(), "a=debug,info");
        handle.reset().unwrap();
        debug!(target: "a::b", "after");
    });
    assert!(handle.flush(DEADLINE));
    let all: String = written.try_iter().collect();
    assert!(
        all.contains("while") && !all.contains("before") && !all.contains("after"),
        "{all}"
    );
}

#[test]
fn the_logging_page() {
    let (handle, _subscriber, _written) = start(Format::Plain, "info");
    let check = |method: &str, query: Option<&str>, status: u16, body: &str| {
        let (got, text) = handle.handle_logging_request(method, query);
        assert_eq!(got, status, "{query:?}");
        assert!(text.starts_with(body), "{query:?}: {text}");
    };
    check("GET", None, 405, "");
    check("POST", None, 200, "current log level is info\n");
    check("POST", Some(""), 200, "current log level is info\n");
    check(
        "POST",
        Some("level=debug"),
        200,
        "current log level is debug\n",
    );
    check(
        "POST",
        Some("level=ztunnel::proxy=warn,access=off"),
        200,
        "current log level is ztunnel::proxy=warn,access=off,debug\n",
    );
    check("POST", Some("level=loud"), 400, "`loud` is not a log level");
    check("POST", Some("level="), 400, "`` is not a log level");
    check(
        "POST",
        Some("lvl=info"),
        400,
        "unknown parameter `lvl`\nusage: POST /logging",
    );
    check(
        "POST",
        Some("reset&level=a%3A%3Ab%3Dtrace"),
        200,
        "current log level is a::b=trace,info\n",
    );
    check("POST", Some("reset"), 200, "current log level is info\n");
}
