//! What an operator sees and does: admin pages, metrics, levels, and a log that nobody reads.

use std::{ffi::OsString, fs, time::Duration};

use anyhow::ensure;
use leyline_tests::{
    access_log,
    eventually::eventually,
    mesh::Mesh,
    profile::{self, Profile, Sample},
};
use serde_json::Value;

use crate::{
    certificates::{LATER, Load, pairs},
    support::{SOON, addr, enrolled_with, hold, root},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dump_has_what_istioctl_reads() {
    let mesh = enrolled_with(&[], &[]).await;
    let _held = hold(&mesh, "shop/client", "shop/server-v2").await;
    let dump = mesh.ztunnel("node-a").unwrap().config_dump().await.unwrap();
    for key in ["workloads", "services", "policies", "certificates"] {
        assert!(dump[key].is_array(), "{key}: {}", dump[key]);
    }
    for key in [
        "stagedServices",
        "staticConfig",
        "version",
        "config",
        "workloadState",
    ] {
        assert!(dump[key].is_object(), "{key}: {}", dump[key]);
    }
    let has = |value: &Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "no {key} in {value:#}");
        }
    };
    let of = |list: &str, key: &str, wanted: &str| -> Value {
        let items = dump[list].as_array().unwrap();
        let found = items.iter().find(|item| item[key] == wanted);
        found
            .unwrap_or_else(|| panic!("no {wanted} in {list}"))
            .clone()
    };
    let workload = of("workloads", "name", "server-v1");
    has(
        &workload,
        &[
            "uid",
            "workloadIps",
            "protocol",
            "namespace",
            "serviceAccount",
            "workloadName",
            "workloadType",
            "canonicalName",
            "canonicalRevision",
            "clusterId",
            "trustDomain",
            "node",
            "network",
            "status",
            "capacity",
            "authorizationPolicies",
        ],
    );
    assert_eq!(workload["status"], "Healthy");
    let service = of("services", "name", "server");
    has(
        &service,
        &["namespace", "hostname", "vips", "ports", "endpoints"],
    );
    let identity = "spiffe://cluster.local/ns/shop/sa/server";
    let certificate = of("certificates", "identity", identity);
    assert_eq!(certificate["state"], "Available");
    let leaf = &certificate["certChain"][0];
    has(
        leaf,
        &["pem", "serialNumber", "validFrom", "expirationTime"],
    );
    let pod = &dump["workloadState"]["Kubernetes//Pod/shop/server-v2"];
    assert_eq!(pod["state"], "Up");
    has(&pod["info"], &["name", "namespace", "serviceAccount"]);
    let inbound = &pod["connections"]["inbound"][0];
    has(inbound, &["src", "originalDst", "actualDst", "protocol"]);
    // Between two pods of one node the connection stays inside the process.
    assert_eq!(inbound["protocol"], "LOCAL");
    has(
        &dump["version"],
        &[
            "version",
            "gitRevision",
            "rustVersion",
            "buildProfile",
            "buildStatus",
        ],
    );
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_answer_what_they_are_asked_and_nothing_else() {
    let mesh = enrolled_with(&[], &[]).await;
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    for (method, port, path, status) in [
        ("GET", 15000, "/", 200),
        ("GET", 15000, "/config_dump", 200),
        ("GET", 15000, "/logging", 405),
        ("POST", 15000, "/logging", 200),
        ("POST", 15000, "/logging?level=loud", 400),
        ("POST", 15000, "/logging?colour=red", 400),
        ("GET", 15000, "/quitquitquit", 405),
        ("GET", 15000, "/nothing", 404),
        ("GET", 15020, "/metrics", 200),
        ("GET", 15020, "/stats/prometheus", 200),
        ("GET", 15020, "/config_dump", 404),
        ("GET", 15021, "/healthz/ready", 200),
        ("POST", 15021, "/healthz/ready", 405),
        ("GET", 15021, "/", 404),
    ] {
        let reply = ztunnel.ask(method, port, path).await.unwrap();
        assert_eq!(reply.status, status, "{method} :{port}{path}");
    }
    // The admin page is for the node alone.
    let node = mesh.cluster().fabric().node_addresses("node-a").unwrap();
    let client = mesh.cluster().client("legacy/legacy").unwrap();
    for ip in node.all() {
        let target = (ip, 15000).into();
        assert!(client.get(target, "/", SOON).await.is_err(), "{target}");
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_change_at_run_time() {
    let mesh = enrolled_with(&[], &[]).await;
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    let wanted = [("direction", "outbound"), ("dst.workload", "server-v1")];
    let set = async |query: &str| {
        let path = format!("/logging?{query}");
        let reply = ztunnel.ask("POST", 15000, &path).await.unwrap();
        assert_eq!(reply.status, 200);
        String::from_utf8(reply.body.to_vec()).unwrap()
    };

    let levels = set("level=access=off").await;
    assert!(levels.contains("access=off"), "{levels}");
    let log = ztunnel.log().unwrap().from_now().unwrap();
    client.get(target, "/", SOON).await.unwrap();
    let ended = eventually("the connection has ended", SOON, || async {
        let dump = ztunnel.config_dump().await?;
        let state = &dump["workloadState"]["Kubernetes//Pod/shop/client"];
        ensure!(
            state["connections"]["outbound"] == serde_json::json!([]),
            "{state}"
        );
        Ok(())
    });
    ended.await.unwrap();
    set("reset").await;
    client.get(target, "/bytes/5", SOON).await.unwrap();
    access_log::find(&log, &wanted, SOON).await.unwrap();
    let entries = access_log::entries(&log).unwrap();
    let ours = entries
        .iter()
        .filter(|entry| wanted.iter().all(|(k, v)| entry.field(k) == Some(v)));
    assert_eq!(ours.count(), 1, "the first call is logged");

    set("level=debug").await;
    client.get(target, "/", SOON).await.unwrap();
    let opened = eventually("debug lines", SOON, || async {
        let lines = log.lines()?;
        let opened = lines.iter().any(|line| line.contains("connection opened"));
        ensure!(opened, "none");
        Ok(())
    });
    opened.await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stalls_nothing() {
    let mut mesh = enrolled_with(&[], &[]).await;
    // A pipe that is full after 64 KiB, because nobody takes anything out of it.
    let pipe = mesh.cluster().run().dir().join("nobody-reads");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let program = mesh.ztunnel_mut("node-a").unwrap().program_mut();
    let ztunnel = program.path.clone();
    program.path = "/bin/sh".into();
    let script = "exec 3<>\"$0\"; exec \"$1\" proxy >\"$0\" 2>&1";
    program.args = vec!["-c".into(), script.into(), pipe.into(), ztunnel.into()];
    program
        .env
        .insert("RUST_LOG".to_owned(), OsString::from("trace"));
    mesh.restart_ztunnel("node-a", &[]).await.unwrap();

    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    let back = eventually("calls work", SOON, || async {
        client.get(target, "/", SOON).await
    });
    back.await.unwrap();
    let dropped = eventually("lines are dropped", SOON * 3, || async {
        for _ in 0..20 {
            client
                .get(target, "/bytes/100000", Duration::from_secs(2))
                .await?;
        }
        let metrics = mesh.ztunnel("node-a")?.metrics().await?;
        let dropped = metrics.sum("leyline_log_lines_dropped_total", &[]);
        ensure!(dropped > 1000.0, "{dropped} dropped");
        Ok(())
    });
    dropped.await.unwrap();
    client
        .get(target, "/", Duration::from_secs(2))
        .await
        .unwrap();
    // And it ends in order all the same.
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_proxy_tells_where_its_time_goes() {
    let mesh = enrolled_with(&[], &[]).await;
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    let bad = ztunnel.ask("GET", 15000, "/debug/pprof/profile?seconds=0");
    assert_eq!(bad.await.unwrap().status, 400);
    let load = Load::start(&pairs(&mesh));
    let path = "/debug/pprof/profile?seconds=3&frequency=200";
    let taken = ztunnel.ask_patiently("GET", 15000, path, LATER);
    let taken = taken.await.unwrap();
    load.end().await;
    assert_eq!(
        taken.status,
        200,
        "{}",
        String::from_utf8_lossy(&taken.body)
    );
    let profile = read_profile(&mesh, &taken.body).await;
    assert_eq!(profile.types, ["samples/count", "cpu/nanoseconds"]);
    assert_eq!((profile.period, profile.seconds), (5_000_000, 3.0));
    // Most is work of the data plane on its threads; stacks of an unoptimised build are deeper than what is copied of them, so
    // that not all reach down to the runtime.
    let has = |sample: &Sample, text: &str| sample.stack.iter().any(|name| name.contains(text));
    let at_work =
        |sample: &&Sample| sample.thread.starts_with("ztunnel-") && has(sample, "leyline_");
    let sum = |samples: Vec<&Sample>| samples.iter().map(|one| one.values[0]).sum::<u64>();
    let seen = sum(profile.samples.iter().filter(at_work).collect());
    let all = sum(profile.samples.iter().collect());
    assert!(seen * 4 > all, "{seen} of {all}: {:#?}", profile.samples);
    let mut working = profile.samples.iter().filter(at_work);
    assert!(working.any(|sample| has(sample, "tokio::runtime")));
    mesh.stop().await.unwrap();
}

async fn read_profile(mesh: &Mesh, bytes: &[u8]) -> Profile {
    let file = mesh.cluster().run().secrets_dir().join("taken.pprof");
    fs::write(&file, bytes).unwrap();
    let directory = root().join("target/venv-xds");
    let node = mesh.cluster().fabric().node("node-a").unwrap();
    profile::read(&directory, node, &file).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_heap_tells_who_holds_it() {
    let without = ("_RJEM_MALLOC_CONF", "prof:false");
    let mut mesh = enrolled_with(&["node-b"], &[without]).await;
    // A sample for each 4 KiB, so that some connections are enough.
    let often = (
        "_RJEM_MALLOC_CONF",
        "prof:true,prof_active:false,lg_prof_sample:12",
    );
    mesh.restart_ztunnel("node-a", &[often]).await.unwrap();
    let ask = async |node: &str, path: &str| {
        let ztunnel = mesh.ztunnel(node).unwrap();
        let answer = ztunnel.ask_patiently("GET", 15000, path, LATER);
        let answer = answer.await.unwrap();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status, text, answer.body)
    };
    let check = async |node: &str, path: &str, status: u16, text: &str| {
        let (got, said, _) = ask(node, path).await;
        assert!(got == status && said.contains(text), "{path}: {got} {said}");
    };
    let (heap, switch) = ("/debug/pprof/heap", "/debug/pprof/heap/profiling");
    let (on, off) = (
        format!("{switch}?activate=true"),
        format!("{switch}?activate=false"),
    );
    for path in [heap, switch, &on] {
        check("node-b", path, 500, "_RJEM_MALLOC_CONF=prof:true").await;
    }
    check("node-a", &format!("{switch}?on"), 400, "usage").await;
    check("node-a", switch, 200, "active: false").await;
    check("node-a", heap, 500, &on).await;
    check("node-a", &on, 200, "active: true").await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(hold(&mesh, "shop/client", "shop/server-v1").await);
    }
    let (status, said, body) = ask("node-a", heap).await;
    assert_eq!(status, 200, "{said}");
    let profile = read_profile(&mesh, &body).await;
    assert_eq!(profile.types, ["inuse_objects/count", "inuse_space/bytes"]);
    assert_eq!(profile.period, 4096);
    // What carries connections holds memory, and the allocator is not among those who asked for it.
    let ours = |sample: &&Sample| {
        let stack = &sample.stack;
        stack.iter().any(|name| name.contains("leyline_"))
            && stack.first().is_some_and(|name| !name.contains("_rjem_"))
    };
    let bytes: u64 = profile
        .samples
        .iter()
        .filter(ours)
        .map(|one| one.values[1])
        .sum();
    assert!(bytes > 50 * 1024, "{bytes}: {:#?}", profile.samples);
    check("node-a", &off, 200, "active: false").await;
    check("node-a", switch, 200, "active: false").await;
    check("node-a", heap, 500, &on).await;
    drop(held);
    mesh.stop().await.unwrap();
}

/// Nanoseconds on a CPU that the threads of a process have had: the main thread, and those that carry traffic.
fn cpu_of(pid: u32) -> (u64, u64) {
    let (mut main, mut workers) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap();
        // A thread may end meanwhile.
        let Ok(stat) = fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let time: u64 = stat.split_whitespace().next().unwrap().parse().unwrap();
        if task.file_name().to_str() == Some(&*pid.to_string()) {
            main += time;
        } else if name.starts_with("ztunnel-") {
            workers += time;
        }
    }
    (main, workers)
}

/// Whoever reads pages or pushes configuration takes no time of those who carry traffic, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_traffic_have_threads_of_their_own() {
    const TIMES: usize = 100;
    let mesh = enrolled_with(&[], &[]).await;
    let ztunnel = mesh.ztunnel("node-a").unwrap();
    let pid = ztunnel.pid().unwrap();
    let client = mesh.cluster().client("shop/client").unwrap();
    let target = addr(&mesh, "shop/server-v1", 8080);
    client.get(target, "/", SOON).await.unwrap();

    let before = cpu_of(pid);
    for _ in 0..TIMES {
        client.get(target, "/bytes/100000", SOON).await.unwrap();
    }
    let between = cpu_of(pid);
    for _ in 0..TIMES {
        ztunnel.metrics().await.unwrap();
        ztunnel.config_dump().await.unwrap();
    }
    let after = cpu_of(pid);
    let spent = |from: (u64, u64), to: (u64, u64)| (to.0 - from.0, to.1 - from.1);
    let (main, workers) = spent(before, between);
    assert!(
        main * 4 < workers,
        "traffic: {main} ns by main, {workers} ns by workers"
    );
    let (main, workers) = spent(between, after);
    assert!(
        workers * 4 < main,
        "pages: {workers} ns by workers, {main} ns by main"
    );
    mesh.stop().await.unwrap();
}
