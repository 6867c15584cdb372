//! `cargo xtask test`: everything that must hold before a change is merged, in one command; CI runs exactly this.
//! `cargo xtask fuzz`: the property tests with new random input for as long as wanted.
//!
//! Steps run in order, each under a heading and with its time. Checks all run, so that one run shows all that is
//! wrong; when the programs do not build the rest is left out. The last line is always `N passed, N failed`, tests and
//! steps added up.

use std::{
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{DependencyKind, Message, MetadataCommand, diagnostic::DiagnosticLevel};
use leyline_devtools::tools::{Tool, ensure_tools};

use crate::{codegen, ebpf, tidy};

/// What the tests need besides Rust and gcc: peers that share no code with us.
const TOOLS: [Tool; 11] = [
    Tool {
        probe: &["python3", "-c", "import ensurepip, venv"],
        package: "python3-venv",
    },
    Tool {
        probe: &["node", "--version"],
        package: "nodejs",
    },
    Tool {
        probe: &["iptables", "--version"],
        package: "iptables",
    },
    Tool {
        probe: &["openssl", "version"],
        package: "openssl",
    },
    Tool {
        probe: &["curl", "--version"],
        package: "curl",
    },
    Tool {
        probe: &["dig", "-v"],
        package: "bind9-dnsutils",
    },
    Tool {
        probe: &["dnsmasq", "--version"],
        package: "dnsmasq-base",
    },
    Tool {
        probe: &["musl-gcc", "--version"],
        package: "musl-tools",
    },
    Tool {
        probe: &["redis-server", "--version"],
        package: "redis-server",
    },
    Tool {
        probe: &["h2load", "--version"],
        package: "nghttp2-client",
    },
    Tool {
        // It has no option that ends well.
        probe: &["sh", "-c", "command -v wrk"],
        package: "wrk",
    },
];

/// Meshes at once. Each is a dozen processes; more would starve each other on a small machine and miss deadlines.
const E2E_THREADS: &str = "2";

/// Inputs per property in the unit tests' step: few, because the smoke run follows. `cargo test` by hand takes 256.
const UNIT_CASES: &str = "32";
/// Inputs per property and round of `cargo xtask fuzz`: rounds of some seconds.
const FUZZ_CASES: &str = "2000";
/// Inputs per property in the smoke run of `cargo xtask test`: new ones each time, and two minutes in all.
const SMOKE_CASES: &str = "256";

/// Tests and steps that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
}

/// What a step does when it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    Continue,
    Stop,
}

struct Step {
    name: &'static str,
    on_failure: OnFailure,
    run: fn(&Path) -> Result<Tally>,
}

const STEPS: [Step; 9] = [
    Step {
        name: "format",
        on_failure: OnFailure::Continue,
        run: |root| cargo(root, &["fmt", "--all", "--check"]),
    },
    Step {
        name: "tidy",
        on_failure: OnFailure::Continue,
        run: |root| tidy::run(root).map(|()| Tally::default()),
    },
    Step {
        name: "generated code",
        on_failure: OnFailure::Continue,
        run: |root| codegen::run(root, codegen::Mode::Check).map(|()| Tally::default()),
    },
    Step {
        name: "BPF object",
        on_failure: OnFailure::Continue,
        run: |root| ebpf::run(root, ebpf::Mode::Check).map(|()| Tally::default()),
    },
    Step {
        name: "build and clippy",
        on_failure: OnFailure::Stop,
        run: build,
    },
    Step {
        name: "tools",
        on_failure: OnFailure::Stop,
        run: |_| ensure_tools(&TOOLS).map(|()| Tally::default()),
    },
    Step {
        name: "unit tests",
        on_failure: OnFailure::Continue,
        run: unit_tests,
    },
    Step {
        name: "end-to-end tests",
        on_failure: OnFailure::Continue,
        run: end_to_end_tests,
    },
    Step {
        name: "fuzz smoke",
        on_failure: OnFailure::Continue,
        run: |root| fuzz_round(root, SMOKE_CASES),
    },
];

pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let (total, summary) = run_steps(root, &STEPS)?;
    say(&summary.join("\n"))?;
    say(&format!("{} passed, {} failed", total.passed, total.failed))?;
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs steps in order; returns what passed and failed, and a line for each step.
fn run_steps(root: &Path, steps: &[Step]) -> Result<(Tally, Vec<String>)> {
    let mut total = Tally::default();
    let mut summary = Vec::new();
    for step in steps {
        say(&format!("== {}", step.name))?;
        let started = SystemTime::now();
        let outcome = (step.run)(root);
        let seconds = started.elapsed().unwrap_or_default().as_secs_f64();
        let verdict = match &outcome {
            Ok(tests) => {
                total.add(*tests);
                // A step whose tests ran to the end is as good as they are.
                if tests.failed == 0 {
                    total.passed += 1;
                    "ok"
                } else {
                    "FAILED"
                }
            }
            Err(error) => {
                say(&format!("{error:#}"))?;
                total.failed += 1;
                "FAILED"
            }
        };
        say(&format!("== {}: {verdict} in {seconds:.1} s\n", step.name))?;
        summary.push(format!("{verdict:>6}  {:<18} {seconds:>7.1} s", step.name));
        if outcome.is_err() && step.on_failure == OnFailure::Stop {
            summary.push("        the steps after this one were not run".to_owned());
            break;
        }
    }
    Ok((total, summary))
}

/// Runs the tests of all crates that have property tests, again and again with new input, for `seconds`.
pub(crate) fn fuzz(root: &Path, seconds: u64) -> Result<ExitCode> {
    let started = SystemTime::now();
    let mut rounds = 0_usize;
    while started.elapsed().unwrap_or_default() < Duration::from_secs(seconds) {
        let tests = fuzz_round(root, FUZZ_CASES)?;
        rounds += 1;
        if tests.failed > 0 {
            say(&format!("round {rounds} found a failure; see above"))?;
            return Ok(ExitCode::FAILURE);
        }
    }
    say(&format!("rounds: {rounds}, nothing found"))?;
    Ok(ExitCode::SUCCESS)
}

/// Every property once, with new input.
fn fuzz_round(root: &Path, cases: &str) -> Result<Tally> {
    let mut command = compiled_by_clippy(root);
    command.env("PROPTEST_CASES", cases);
    command.args(["test", "--quiet", "--locked"]);
    for name in crates_with_properties(root)? {
        command.args(["--package", &name]);
    }
    run_tests(command)
}

/// Everything that the tests need, compiled once by clippy's compiler, whose warnings count as failures. `cargo clippy`
/// would check each of the some 400 crates besides, which took a fifth of a cold run.
fn build(root: &Path) -> Result<Tally> {
    let mut child = compiled_by_clippy(root)
        .args(["build", "--workspace", "--locked", "--all-targets"])
        .arg("--message-format=json")
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut warnings = 0_usize;
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerMessage(said) = message.context("reading what cargo says")? {
            say(&said.to_string())?;
            warnings += usize::from(said.message.level == DiagnosticLevel::Warning);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(Tally {
        passed: 0,
        failed: warnings,
    })
}

/// A cargo command that has clippy's compiler in the place of rustc for our own crates, as `cargo clippy` does it. All steps that
/// compile must use it: cargo builds again what another compiler has built.
fn compiled_by_clippy(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root)
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
    command
}

fn unit_tests(root: &Path) -> Result<Tally> {
    let mut command = compiled_by_clippy(root);
    command.env("PROPTEST_CASES", UNIT_CASES);
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(["--exclude", "leyline-tests"]);
    run_tests(command)
}

fn end_to_end_tests(root: &Path) -> Result<Tally> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "end-to-end tests make network namespaces and load BPF programs: run as root"
    );
    let mut command = compiled_by_clippy(root);
    command.args(["test", "--locked", "--package", "leyline-tests"]);
    command.args(["--no-fail-fast", "--", "--test-threads", E2E_THREADS]);
    run_tests(command)
}

/// A cargo command that holds no tests.
fn cargo(root: &Path, args: &[&str]) -> Result<Tally> {
    let mut command = Command::new(env!("CARGO"));
    let status = command.current_dir(root).args(args).status();
    let status = status.context("starting cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    Ok(Tally::default())
}

/// A command that runs test binaries: shows what they print as it comes, and adds up their results.
fn run_tests(mut command: Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what the tests print")?;
        say(&line)?;
        if let Some(result) = parse_result(&line) {
            tally.add(result);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // A test binary that does not build, or dies, has no result line.
        bail!(
            "the tests ended with {status} after {} passed",
            tally.passed
        );
    }
    Ok(tally)
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |unit: &str| {
        let part = counts
            .split("; ")
            .find_map(|part| part.strip_suffix(unit))?;
        part.trim().parse().ok()
    };
    Some(Tally {
        passed: count(" passed")?,
        failed: count(" failed")?,
    })
}

fn crates_with_properties(root: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let with_properties = metadata.packages.iter().filter(|package| {
        let mut tests = package.dependencies.iter();
        tests.any(|d| d.name == "proptest" && d.kind == DependencyKind::Development)
    });
    Ok(with_properties
        .map(|package| package.name.to_string())
        .collect())
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("writing to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.1s";
        let expected = Tally {
            passed: 12,
            failed: 3,
        };
        assert_eq!(parse_result(line), Some(expected));
        for other in [
            "running 3 tests",
            "test result: ok",
            "test result: ok. x passed; 0 failed",
        ] {
            assert_eq!(parse_result(other), None, "{other}");
        }
    }

    fn step(on_failure: OnFailure, run: fn(&Path) -> Result<Tally>) -> Step {
        Step {
            name: "step",
            on_failure,
            run,
        }
    }

    #[test]
    fn tests_and_steps_add_up() {
        let tests: fn(&Path) -> Result<Tally> = |_| {
            Ok(Tally {
                passed: 5,
                failed: 2,
            })
        };
        let steps = [
            step(OnFailure::Continue, |_| bail!("untidy")),
            step(OnFailure::Continue, tests),
            step(OnFailure::Continue, |_| Ok(Tally::default())),
        ];
        let (total, _summary) = run_steps(Path::new("."), &steps).unwrap();
        let expected = Tally {
            passed: 6,
            failed: 3,
        };
        assert_eq!(total, expected);
    }

    #[test]
    fn nothing_runs_after_a_step_that_stops() {
        let steps = [
            step(OnFailure::Stop, |_| bail!("does not build")),
            step(OnFailure::Continue, |_| panic!("must not run")),
        ];
        let (total, _summary) = run_steps(Path::new("."), &steps).unwrap();
        assert_eq!((total.passed, total.failed), (0, 1));
    }
}
