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

#[test]
fn it_says_why_it_cannot_start() {
    let directory = tempfile::TempDir::new().unwrap();
    let output = program()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--config",
            "/does/not/exist",
            "--state-dir",
        ])
        .arg(directory.path().join("state"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(log.contains("/does/not/exist"), "{log}");
}
