//! istio-cni's part of a node: its iptables rules in the pods (facts A4), made by Debian's iptables, and its socket, served
//! by a Python script that shares no code with Leyline.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leyline_net::NetNs;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use crate::{
    cluster::Cluster,
    process::{Process, Program, output},
    run::Run,
};

/// The script only binds two sockets.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// Above istio-cni's own 5 s for each ztunnel.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
const TOOL_DEADLINE: Duration = Duration::from_secs(20);

/// One line per call of iptables, after the names of tables and chains; `%LO` and `%PROBE` differ by family.
const RULES: &[&str] = &[
    "mangle PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff",
    "mangle OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    "nat PREROUTING -s %PROBE -p tcp -j ACCEPT",
    "nat PREROUTING ! -d %LO -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006",
    "nat OUTPUT -d %PROBE -p tcp -j ACCEPT",
    "nat OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053",
    "nat OUTPUT ! -d %LO -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053",
    "nat OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT",
    "nat OUTPUT ! -d %LO -o lo -j ACCEPT",
    "nat OUTPUT ! -d %LO -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001",
    "raw OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1",
    "raw PREROUTING -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1",
];

/// The agent of one node.
#[derive(Debug)]
pub struct Cni {
    directory: PathBuf,
    namespace: NetNs,
    process: Option<Process>,
}

impl Cni {
    /// Starts it for the node `name`.
    pub async fn start(run: &Run, name: &str, namespace: &NetNs) -> Result<Self> {
        let directory = run.dir().join(format!("cni-{name}"));
        std::fs::create_dir(&directory)?;
        let mut started = Self {
            directory,
            namespace: namespace.clone(),
            process: None,
        };
        started.start_again(run, &[]).await?;
        Ok(started)
    }

    /// Starts it after [`Self::kill`]; it knows only that these pods are to be kept.
    pub async fn start_again(&mut self, run: &Run, kept: &[&str]) -> Result<()> {
        for path in [self.socket(), self.control()] {
            if path.exists() {
                std::fs::remove_file(path)?;
            }
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/zds_server.py");
        let mut args: Vec<OsString> = vec![
            script.into(),
            "--socket".into(),
            self.socket().into(),
            "--control".into(),
            self.control().into(),
        ];
        args.extend(
            kept.iter()
                .map(|pod| format!("--keep={}", cni_uid(pod)).into()),
        );
        let program = program("zds-server", "python3", args, &self.namespace);
        let mut process = Process::start(run, &program)?;
        process.wait_for_line("listening", START_DEADLINE).await?;
        self.process = Some(process);
        Ok(())
    }

    /// For `INPOD_UDS`.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("ztunnel.sock")
    }

    fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Names a pod to ztunnel; the error is ztunnel's.
    pub async fn add(&self, cluster: &Cluster, pod: &str) -> Result<()> {
        let spec = cluster.pod(pod)?.spec();
        let netns = cluster.run().pods_dir().join(spec.file());
        let (namespace, name) = (&spec.namespace, &spec.name);
        let account = &spec.service_account;
        let uid = cni_uid(pod);
        let netns = netns.display();
        self.ask(&format!("add {uid} {namespace} {name} {account} {netns}"))
            .await?;
        Ok(())
    }

    /// Says that a pod is gone.
    pub async fn delete(&self, pod: &str) -> Result<()> {
        self.ask(&format!("del {}", cni_uid(pod))).await?;
        Ok(())
    }

    /// How many ztunnels are connected and have their snapshot.
    pub async fn connections(&self) -> Result<usize> {
        Ok(self.ask("connections").await?.parse()?)
    }

    /// Sends bytes that need not be a message.
    pub async fn raw(&self, hex: &str) -> Result<()> {
        self.ask(&format!("raw {hex}")).await?;
        Ok(())
    }

    async fn ask(&self, command: &str) -> Result<String> {
        let asked = async {
            let mut stream = BufReader::new(UnixStream::connect(self.control()).await?);
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_line(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(ANSWER_DEADLINE, asked)
            .await
            .with_context(|| format!("no answer to `{command}`"))??;
        let answer = answer.trim();
        ensure!(answer.starts_with("ok"), "`{command}`: {answer}");
        Ok(answer.trim_start_matches("ok").trim().to_owned())
    }
}

/// What istio-cni calls a pod: not what xDS does.
pub fn cni_uid(pod: &str) -> String {
    format!("uid-of-{}", pod.replace('/', "-"))
}

/// istio-cni's rules in a pod.
pub async fn redirect(namespace: &NetNs) -> Result<()> {
    for (tool, loopback, probe) in [
        ("iptables", "127.0.0.1/32", "169.254.7.127/32"),
        (
            "ip6tables",
            "::1/128",
            "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128",
        ),
    ] {
        for rule in RULES {
            let rule = rule.replace("%LO", loopback).replace("%PROBE", probe);
            let mut words = rule.split(' ').map(OsString::from);
            let mut args: Vec<OsString> = vec!["-w".into(), "-t".into()];
            args.extend(words.next());
            args.push("-A".into());
            args.extend(words);
            output(&program(tool, tool, args, namespace), TOOL_DEADLINE).await?;
        }
    }
    for family in ["-4", "-6"] {
        for command in [
            "rule add fwmark 0x111/0xfff pref 32764 lookup 100",
            "route add local default dev lo table 100",
        ] {
            let args = [family].into_iter().chain(command.split(' '));
            let args = args.map(OsString::from).collect();
            output(&program("ip", "ip", args, namespace), TOOL_DEADLINE).await?;
        }
    }
    Ok(())
}

/// A program of Debian's in a namespace.
pub fn tool(name: &str, args: &[&str], namespace: &NetNs) -> Program {
    let args = args.iter().map(OsString::from).collect();
    program(name, name, args, namespace)
}

fn program(name: &str, tool: &str, args: Vec<OsString>, namespace: &NetNs) -> Program {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let found = path.split(':').map(|dir| Path::new(dir).join(tool));
    let found = found.into_iter().find(|file| file.exists());
    Program {
        name: name.to_owned(),
        path: found.unwrap_or_else(|| tool.into()),
        args,
        env: BTreeMap::from([("PATH".to_owned(), path.into())]),
        namespace: namespace.clone(),
    }
}
