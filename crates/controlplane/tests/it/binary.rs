//! The program itself.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use crate::harness::get;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_controlplane"))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already when the test succeeded.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test]
async fn it_serves_until_sigterm_and_takes_its_own_tokens() {
    let directory = tempfile::TempDir::new().unwrap();
    let (config, state) = (
        directory.path().join("config"),
        directory.path().join("state"),
    );
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("bad.yaml"), "kind: [").unwrap();
    let token = program()
        .args([
            "token",
            "--namespace",
            "istio-system",
            "--service-account",
            "ztunnel",
            "--node",
            "a",
            "--ttl",
            "1h",
        ])
        .arg("--state-dir")
        .arg(&state)
        .output()
        .unwrap();
    assert!(token.status.success());
    assert_eq!(
        String::from_utf8(token.stdout)
            .unwrap()
            .trim()
            .split('.')
            .count(),
        3
    );

    let child = program()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .arg("--config")
        .arg(&config)
        .arg("--state-dir")
        .arg(&state)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    let mut log = String::new();
    let admin = loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "{log}");
        log.push_str(&line);
        if let Some((_, rest)) = line.split_once("admin=") {
            break rest
                .split_whitespace()
                .next()
                .unwrap()
                .trim_matches('"')
                .parse()
                .unwrap();
        }
    };
    assert!(log.contains("bad.yaml"), "{log}");
    assert_eq!(get(admin, "/ready").await, "ready\n");
    assert!(get(admin, "/status").await.contains("not valid YAML"));
    assert!(state.join("root-cert.pem").exists());

    let kill = Command::new("kill")
        .arg(running.0.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    let status = running.0.wait().unwrap();
    output.read_to_string(&mut log).unwrap();
    assert!(status.success(), "{log}");
    assert!(log.contains("drained"), "{log}");
}

/// What it prints when it does not start: one sentence.
fn refusal(arguments: &[&str]) -> String {
    let output = program().args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn it_says_why_it_cannot_start_in_one_sentence() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (config, state) = (path("config"), path("state"));
    std::fs::create_dir(&config).unwrap();
    let serve = |more: &[&str]| {
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--config", &config];
        arguments.extend(["--state-dir", &state]);
        arguments.extend(more);
        refusal(&arguments)
    };
    let sentence = |text: String, contains: &[&str]| {
        assert!(text.starts_with("controlplane: "), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in contains {
            assert!(text.contains(part), "{text}");
        }
    };
    sentence(
        serve(&["--config", "/does/not/exist"]),
        &["/does/not/exist", "No such file"],
    );
    sentence(serve(&["--log", "=x="]), &["log"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    sentence(serve(&["--admin", &taken]), &["cannot listen on", "in use"]);
    let other = ["serve", "--config", &config, "--state-dir", "/proc/nothing"];
    sentence(refusal(&other), &["cannot create /proc/nothing"]);
    std::fs::write(path("file"), "").unwrap();
    let other = ["serve", "--config", &config, "--state-dir", &path("file")];
    sentence(refusal(&other), &["file"]);
    std::fs::write(format!("{state}/root-cert.pem"), "x").unwrap();
    sentence(serve(&[]), &["root-cert.pem cannot be used"]);
    std::fs::remove_file(format!("{state}/root-cert.pem")).unwrap();
    sentence(serve(&[]), &["ca-key.pem is there without root-cert.pem"]);
    std::fs::write(format!("{state}/token-key"), "short").unwrap();
    let token = [
        "token",
        "--namespace",
        "a",
        "--service-account",
        "b",
        "--state-dir",
        &state,
    ];
    sentence(refusal(&token), &["token key has 5 bytes"]);
}

#[test]
fn it_takes_no_option_that_means_nothing() {
    for (arguments, contains) in [
        (&["serve"][..], "--config <DIR>"),
        (&["serve", "--nonsense"], "unexpected argument '--nonsense'"),
        (&["serve", "--threads", "0"], "from 1 to 1024"),
        (&["serve", "--listen", "15012"], "invalid socket address"),
        (&["serve", "--trust-domain", "A b"], "--trust-domain"),
        (&["serve", "--node-account", "ztunnel"], "--node-account"),
        (&["serve", "--san", "a b"], "not a name"),
        (&["token", "--ttl", "0s"], "a second at least"),
        (&["token", "--ttl", "soon"], "--ttl"),
        (&["token", "--namespace", "a:b"], "not a name"),
        (
            &["token", "--service-account", "istio-system/ztunnel"],
            "not a name",
        ),
        (&["run"], "unrecognized subcommand"),
        (&[], "Usage: controlplane <COMMAND>"),
    ] {
        let text = refusal(arguments);
        assert!(text.contains(contains), "{arguments:?}: {text}");
    }
    for help in [&["--help"][..], &["serve", "--help"], &["token", "--help"]] {
        let output = program().args(help).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage:"));
    }
}
