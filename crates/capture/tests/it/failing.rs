//! The proxy dies: everything is refused at once, nothing goes out in plain text, and the next proxy takes over.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use leyline_capture::{HostProbes, NodeCapture, NodeConfig, PodOptions, WhenDown};
use leyline_net::NetNs;

use crate::{
    app::{self, Conversation, PORT, QUICK, ask, at, timed},
    lab::{FAMILIES, Lab, PodNs, eventually},
    proxy::{Dns, Proxy, Via},
};

/// Tells the test binary to be a proxy process: `instance|host cookie|netns path|ip,ip|dns|netns path|...`.
const CHILD: &str = "LEYLINE_CAPTURE_TEST_PROXY";
const READY: &str = "the proxy is ready";

/// A process with a proxy for each pod; killed when dropped.
struct ProxyProcess(Child);

impl ProxyProcess {
    fn start(lab: &Lab, pods: &[&PodNs], dns: Dns) -> Self {
        let mut spec = vec![
            lab.instance.0.clone(),
            lab.node_b.cookie().to_string(),
            if dns == Dns::On { "dns" } else { "" }.to_owned(),
        ];
        for pod in pods {
            let fd = pod.netns.as_fd().as_raw_fd();
            spec.push(format!("/proc/{}/fd/{fd}", std::process::id()));
            spec.push(format!("{},{}", pod.v4, pod.v6));
        }
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "failing::proxy_process", "--nocapture"])
            .env(CHILD, spec.join("|"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().any(|l| l.unwrap().contains(READY));
        assert!(ready, "the proxy process ended early");
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The body of [`ProxyProcess`]; as a test of its own it has nothing to do.
#[test]
fn proxy_process() {
    let Some(spec) = env::var_os(CHILD) else {
        return;
    };
    let spec = spec.into_string().unwrap();
    let mut fields = spec.split('|');
    let mut next = || fields.next().unwrap().to_owned();
    let (instance, host) = (next(), next());
    let dns = if next() == "dns" { Dns::On } else { Dns::Off };
    let node = NodeCapture::attach(NodeConfig {
        host_probes: HostProbes::OfNamespace(host.parse().unwrap()),
        ..NodeConfig::new(instance)
    })
    .unwrap();
    let mut running = Vec::new();
    while let (Some(path), Some(ips)) = (fields.next(), fields.next()) {
        let netns = NetNs::open(Path::new(path)).unwrap();
        let ips: Vec<IpAddr> = ips.split(',').map(|ip| ip.parse().unwrap()).collect();
        let proxy = Proxy::start_in(&netns, &ips, dns);
        let pod = proxy.enroll(&node).unwrap();
        running.push((proxy, pod));
    }
    writeln!(io::stdout(), "{READY}").unwrap();
    // Ends with the parent, should that not kill it.
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

#[test]
fn a_killed_proxy_leaves_everything_refused_at_once() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    app::serve(&lab.client.netns, PORT);
    let process = ProxyProcess::start(&lab, &[&lab.client], Dns::On);
    let mut open: Vec<Conversation> = FAMILIES
        .iter()
        .map(|&f| Conversation::open(&lab.client.netns, at(lab.server.ip(f))))
        .collect();
    process.kill();
    for family in FAMILIES {
        let (outbound, took) = timed(|| ask(&lab.client.netns, at(lab.server.ip(family))));
        assert_eq!(
            outbound.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused,
            "{family:?}"
        );
        assert!(took < QUICK, "outbound {family:?} took {took:?}");
        let (inbound, took) = timed(|| ask(&lab.server.netns, at(lab.client.ip(family))));
        assert_eq!(
            inbound.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused,
            "{family:?}"
        );
        assert!(took < QUICK, "inbound {family:?} took {took:?}");
        // What never leaves the pod does not need the proxy.
        ask(&lab.client.netns, at(lab.client.ip(family))).unwrap();
    }
    for ip in ["127.0.0.1", "::1"] {
        ask(&lab.client.netns, at(ip.parse().unwrap())).unwrap();
    }
    for conversation in &mut open {
        let (ended, took) = timed(|| conversation.exchange());
        assert!(ended.is_err(), "captured connections end with the proxy");
        assert!(took < QUICK, "{took:?}");
    }
    let (dns, took) = timed(|| {
        let socket = lab
            .client
            .netns
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        socket.send_to(b"question", (lab.server.v4, 53))
    });
    assert!(dns.is_err() && took < QUICK, "{dns:?} after {took:?}");
}

#[test]
fn a_new_process_takes_over_from_a_killed_one() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let pods = [&lab.client, &lab.server];
    for _life in 0..3 {
        let process = ProxyProcess::start(&lab, &pods, Dns::Off);
        for family in FAMILIES {
            let answer = ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
            assert_ne!(answer.seen, answer.local, "through a proxy");
        }
        process.kill();
        let refused = ask(&lab.client.netns, at(lab.server.v4)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_process_that_takes_over_keeps_pods_when_the_old_one_is_killed() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let pods = [&lab.client, &lab.server];
    let old = ProxyProcess::start(&lab, &pods, Dns::Off);
    let new = ProxyProcess::start(&lab, &pods, Dns::Off);
    old.kill();
    for family in FAMILIES {
        ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
    }
    new.kill();
    assert!(ask(&lab.client.netns, at(lab.server.v4)).is_err());
}

#[test]
fn a_proxy_that_lives_but_does_not_listen_counts_as_dead() {
    let lab = Lab::new();
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::Off);
    let _pod = proxy.enroll(&node).unwrap();
    proxy.stop_listening();
    for family in FAMILIES {
        let (refused, took) = timed(|| ask(&lab.client.netns, at(lab.server.ip(family))));
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert!(took < QUICK, "{took:?}");
    }
}

#[test]
fn inbound_can_be_left_open_without_a_proxy() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.server, Dns::Off);
    let options = PodOptions {
        when_down: WhenDown::InboundDirect,
        ..PodOptions::default()
    };
    let _pod = proxy.enroll_with(&node, options).unwrap();
    ask(&lab.client.netns, at(lab.server.v4)).unwrap();
    assert_eq!(proxy.take_seen()[0].via, Via::Inbound);
    drop(proxy);
    for family in FAMILIES {
        let answer = ask(&lab.client.netns, at(lab.server.ip(family))).unwrap();
        assert_eq!(answer.seen, answer.local, "direct");
        let refused = ask(&lab.server.netns, at(lab.client.ip(family))).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn takeover_under_load_breaks_nothing() {
    const CALLS: usize = 400;
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let node = lab.attach();
    let mut proxies = vec![(
        Proxy::start(&lab.client, Dns::Off),
        Proxy::start(&lab.server, Dns::Off),
    )];
    let first = &proxies[0];
    let mut pods = vec![
        first.0.enroll(&node).unwrap(),
        first.1.enroll(&node).unwrap(),
    ];
    let mut long_lived = Conversation::open(&lab.client.netns, at(lab.server.v4));
    let direct = |answer: &app::Answer| answer.seen.port() == answer.local.port();
    thread::scope(|scope| {
        let load: Vec<_> = FAMILIES
            .iter()
            .map(|&family| {
                let (netns, target) = (lab.client.netns.clone(), at(lab.server.ip(family)));
                scope.spawn(move || {
                    for call in 0..CALLS {
                        let answer = ask(&netns, target)
                            .unwrap_or_else(|e| panic!("call {call} to {target}: {e}"));
                        assert!(!direct(&answer), "call {call} was not captured");
                    }
                })
            })
            .collect();
        for _takeover in 0..3 {
            // Each has been used before the next comes.
            let last = proxies.last().unwrap();
            eventually("the load reaches the newest proxies", || {
                !last.0.take_seen().is_empty() && !last.1.take_seen().is_empty()
                    || load.iter().all(thread::ScopedJoinHandle::is_finished)
            });
            let again = lab.attach();
            let next = (
                Proxy::start(&lab.client, Dns::Off),
                Proxy::start(&lab.server, Dns::Off),
            );
            pods.push(next.0.enroll(&again).unwrap());
            pods.push(next.1.enroll(&again).unwrap());
            proxies.push(next);
        }
    });
    assert!(!proxies.last().unwrap().0.take_seen().is_empty());
    long_lived.exchange().unwrap();
}
