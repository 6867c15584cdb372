//! A program of ours as a real process inside a namespace, with its output in a file.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use leyline_net::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    time::timeout,
};

use crate::{eventually::eventually, run::Run};

/// Lines of the log that an error shows.
const SHOWN_LINES: usize = 12;
/// For a process that was killed to be reaped.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Program {
    /// For logs and errors; also names the log file.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, OsString>,
    /// Where it runs.
    pub namespace: NetNs,
}

impl Program {
    /// A program of the machine's: the first of `command`, with the others as its arguments.
    pub fn of_machine(
        name: impl Into<String>,
        command: impl IntoIterator<Item = impl AsRef<OsStr>>,
        namespace: &NetNs,
    ) -> Self {
        let command = command.into_iter();
        Self {
            name: name.into(),
            path: PathBuf::from("/usr/bin/env"),
            args: command.map(|word| word.as_ref().to_owned()).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".into())]),
            namespace: namespace.clone(),
        }
    }

    /// dnsmasq, which serves what `options` say and nothing else of the machine. Says `started` when it does.
    pub fn dnsmasq(
        namespace: &NetNs,
        options: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let alone = [
            "dnsmasq",
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--pid-file",
            "--user=root",
            "--conf-file=/dev/null",
            "--log-facility=-",
        ];
        let options = options.into_iter().map(|option| option.as_ref().to_owned());
        let command = alone.map(OsString::from).into_iter().chain(options);
        Self::of_machine("dnsmasq", command, namespace)
    }
}

/// A running program. Dropping it leaves the process alone: the [`Run`] ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
}

impl Process {
    /// Starts `program` with its output added to the end of `<logs>/<name>.log`.
    pub fn start(run: &Run, program: &Program) -> Result<Self> {
        let name = &program.name;
        let log = Log::at_end(run.logs_dir().join(format!("{name}.log")))?;
        let output = OpenOptions::new().append(true).open(&log.path)?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .env_clear()
            .envs(&program.env)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A Ctrl-C at the terminal is for us: we end the processes in order.
            .process_group(0)
            .kill_on_drop(false);
        let runtime = Handle::current();
        // A process is born in the namespace of the thread that forks it.
        let child = program.namespace.run(|| {
            let _context = runtime.enter();
            command.spawn()
        })?;
        let child =
            child.with_context(|| format!("starting {name}: {}", program.path.display()))?;
        if let Some(pid) = child.id() {
            run.record_process(pid, name)?;
        }
        Ok(Self {
            name: name.clone(),
            child,
            log,
        })
    }

    /// The number of the process; `None` when it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its output since this start.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Says why, with the end of the log, if the process is no longer there.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// Waits for a line of output that has `text` in it.
    pub async fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let log = self.log.clone();
        let child = &mut self.child;
        let waited = eventually(
            format!("`{text}` in the log of {}", self.name),
            deadline,
            || {
                let found = log
                    .lines()
                    .map(|lines| lines.into_iter().find(|l| l.contains(text)));
                let ended = child.try_wait();
                async move {
                    match (found?, ended?) {
                        (Some(line), _) => Ok(Ok(line)),
                        (None, Some(status)) => Ok(Err(status)),
                        (None, None) => bail!("no such line"),
                    }
                }
            },
        );
        match waited.await {
            Ok((Ok(line), _after)) => Ok(line),
            Ok((Err(status), _after)) => Err(self.ended(status)),
            Err(e) => Err(e.context(self.log.tail())),
        }
    }

    /// Asks the process to end and waits for it.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        timeout(deadline, self.child.wait())
            .await
            .map_err(|_elapsed| {
                anyhow!(
                    "{} did not end within {deadline:?} of SIGTERM\n{}",
                    self.name,
                    self.log.tail()
                )
            })?
            .with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits until the process has ended by itself.
    pub async fn ended_by_itself(&mut self, deadline: Duration) -> Result<ExitStatus> {
        timeout(deadline, self.child.wait())
            .await
            .map_err(|_elapsed| {
                anyhow!(
                    "{} still runs after {deadline:?}\n{}",
                    self.name,
                    self.log.tail()
                )
            })?
            .with_context(|| format!("waiting for {}", self.name))
    }

    /// `kill -9`, and waits until the kernel has taken the process down.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        timeout(KILL_DEADLINE, self.child.wait())
            .await
            .with_context(|| format!("{} survives SIGKILL", self.name))??;
        Ok(())
    }

    /// Sends a signal and does not wait.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .child
            .id()
            .with_context(|| format!("{} has already ended\n{}", self.name, self.log.tail()))?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("{} has ended: {status}\n{}", self.name, self.log.tail())
    }
}

/// The output of a process from some moment on.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
    /// Bytes that are older.
    from: u64,
}

impl Log {
    /// The output from now on; makes the file if there is none.
    pub fn at_end(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let from = file.metadata()?.len();
        Ok(Self { path, from })
    }

    /// The same log from now on.
    pub fn from_now(&self) -> Result<Self> {
        Self::at_end(self.path.clone())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its lines, without colours.
    pub fn lines(&self) -> Result<Vec<String>> {
        let bytes =
            fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        let from = usize::try_from(self.from)?.min(bytes.len());
        let text = String::from_utf8_lossy(&bytes[from..]);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The last lines, to show with an error.
    pub fn tail(&self) -> String {
        let lines = self.lines().unwrap_or_default();
        let skipped = lines.len().saturating_sub(SHOWN_LINES);
        format!(
            "end of {}:\n  {}",
            self.path.display(),
            lines[skipped..].join("\n  ")
        )
    }
}

/// Runs a program to its end and returns what it printed.
pub async fn output(program: &Program, deadline: Duration) -> Result<String> {
    let name = &program.name;
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .envs(&program.env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let runtime = Handle::current();
    let child = program.namespace.run(|| {
        let _context = runtime.enter();
        command.spawn()
    })?;
    let child = child.with_context(|| format!("starting {name}: {}", program.path.display()))?;
    let output = timeout(deadline, child.wait_with_output())
        .await
        .with_context(|| format!("{name} did not end within {deadline:?}"))??;
    if !output.status.success() {
        // Some say what is wrong on one of them, some on the other.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        bail!("{name}: {}\n{said}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
