//! DNS of captured pods, asked by `dig` and by the resolvers of glibc and musl. The resolver behind it is dnsmasq, in a pod
//! that is not in the mesh.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::ensure;
use leyline_net::NetNs;
use leyline_tests::{
    cluster::Family,
    eventually::eventually,
    mesh::{Enrolment, Mesh},
    process::{Process, Program, output},
};

use crate::support::{SOON, mesh};

const ENTRIES: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [api.outside.example]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  endpoints: [{address: LEGACY}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ["*.wild.example"]
  addresses: [10.97.0.7]
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: server}, ports: [{port: 80, targetPort: 8080, name: http}]}
"#;

/// A resolver library of its own, asked as programs do.
const RESOLVE: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all, *one;
  int failed = getaddrinfo(argv[1], 0, &hints, &all);
  if (failed) { printf("failed: %s\n", gai_strerror(failed)); return 0; }
  for (one = all; one; one = one->ai_next) {
    char text[64] = "";
    void *address = one->ai_family == AF_INET
      ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
      : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
    puts(inet_ntop(one->ai_family, address, text, sizeof text));
  }
  return 0;
}
"#;

struct Scene {
    mesh: Mesh,
    client: NetNs,
    resolver: IpAddr,
    dnsmasq: Process,
}

impl Scene {
    async fn start() -> Self {
        let mesh = mesh().await;
        mesh.set_enrolment("shop", Enrolment::Ambient)
            .await
            .unwrap();
        let cluster = mesh.cluster();
        let address = cluster.pod_addr("legacy/legacy", Family::V4, 53).unwrap();
        let resolver = address.ip();
        let long = "x".repeat(250);
        let texts: Vec<String> = (0..8)
            .map(|n| format!("--txt-record=long.up.example,{n}{long}"))
            .collect();
        let mut options = vec![
            "--log-queries",
            "--local-ttl=300",
            "--host-record=www.up.example,198.51.100.7,2001:db8::7",
            "--txt-record=info.up.example,hello",
            "--srv-host=_a._tcp.up.example,www.up.example,80",
            "--local=/up.example/cluster.local/example/",
        ];
        options.extend(texts.iter().map(String::as_str));
        let namespace = cluster.pod("legacy/legacy").unwrap().namespace();
        let program = Program::dnsmasq(namespace, options);
        let mut dnsmasq = Process::start(cluster.run(), &program).unwrap();
        dnsmasq.wait_for_line("started", SOON).await.unwrap();
        let client = cluster.pod("shop/client").unwrap().namespace().clone();
        let entries = ENTRIES.replace("LEGACY", &resolver.to_string());
        mesh.write_check_file("dns", &entries).unwrap();
        let scene = Self {
            mesh,
            client,
            resolver,
            dnsmasq,
        };
        let known = async || {
            let lines = scene.dig(&["each.shop.svc.cluster.local"]).await;
            ensure!(!lines.is_empty(), "no endpoint is named");
            Ok(())
        };
        eventually("the entries are known", SOON, known)
            .await
            .unwrap();
        scene
    }

    async fn run(&self, name: &str, args: &[&str]) -> String {
        let program = Program::of_machine(name, args, &self.client);
        output(&program, SOON).await.unwrap()
    }

    async fn dig(&self, question: &[&str]) -> Vec<String> {
        let server = format!("@{}", self.resolver);
        let mut args = vec!["dig", &server, "+short", "+tries=1", "+time=8"];
        args.extend(question);
        let text = self.run("dig", &args).await;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Everything that dig says.
    async fn dig_in_full(&self, question: &[&str]) -> String {
        let server = format!("@{}", self.resolver);
        let mut args = vec!["dig", &server, "+tries=1", "+time=8"];
        args.extend(question);
        self.run("dig", &args).await
    }

    /// Runs something as a container of the pod would, with a resolv.conf of its own.
    async fn in_container(&self, conf: &str, command: &str) -> Vec<String> {
        let path = self.mesh.cluster().run().dir().join("resolv.conf");
        fs::write(&path, conf).unwrap();
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec {command}",
            path.display()
        );
        let args = ["unshare", "--mount", "sh", "-c", &script];
        let text = self.run("container", &args).await;
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_mesh_are_answered_here() {
    let scene = Box::pin(Scene::start()).await;
    // What was asked before the entries were known went outside rightly.
    let log = scene.dnsmasq.log().from_now().unwrap();
    let full = "server.shop.svc.cluster.local";
    let check = async |question: &[&str], expected: &[&str]| {
        assert_eq!(scene.dig(question).await, expected, "{question:?}");
    };
    check(&[full], &["10.96.0.20"]).await;
    check(&[full, "AAAA"], &["fd00:96::20"]).await;
    check(&[full, "+tcp"], &["10.96.0.20"]).await;
    check(&["server.shop"], &["10.96.0.20"]).await;
    check(&["server"], &["10.96.0.20"]).await;
    check(&["SERVER.shop.SVC"], &["10.96.0.20"]).await;
    check(&["x.wild.example"], &["10.97.0.7"]).await;
    check(
        &["server.shop.shop.svc.cluster.local"],
        &["10.96.0.20", "server.shop."],
    )
    .await;
    let v4 = |pod: &str| {
        let addr = scene.mesh.cluster().pod_addr(pod, Family::V4, 80).unwrap();
        addr.ip().to_string()
    };
    let mut each = vec![v4("shop/server-v1"), v4("shop/server-v2")];
    each.sort();
    assert_eq!(scene.dig(&["each.shop.svc.cluster.local"]).await, each);
    let pod = scene.dig(&["server-v2.each.shop.svc.cluster.local"]).await;
    assert_eq!(pod, [v4("shop/server-v2")]);

    let answer = scene.dig_in_full(&[full]).await;
    // dig fills columns with tabs or blanks.
    let answer: Vec<&str> = answer.split_whitespace().collect();
    let answer = answer.join(" ");
    let record = format!("{full}. 30 IN A 10.96.0.20");
    let server = format!("SERVER: {}#53", scene.resolver);
    for part in ["flags: qr aa rd ra;", &record, &server] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    // A name that is known is not said to be none, and has no other records.
    for question in [["x.wild.example", "AAAA"], ["x.wild.example", "MX"]] {
        let answer = scene.dig_in_full(&question).await;
        assert!(
            answer.contains("NOERROR") && answer.contains("ANSWER: 0"),
            "{answer}"
        );
    }
    let asked = log.lines().unwrap();
    let leaked = asked.iter().any(|line| line.contains("query[A]"));
    assert!(!leaked, "a name of the mesh was asked outside: {asked:?}");
    scene.mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_go_to_the_pods_own_resolver() {
    let scene = Box::pin(Scene::start()).await;
    let check = async |question: &[&str], expected: &[&str]| {
        assert_eq!(scene.dig(question).await, expected, "{question:?}");
    };
    check(&["www.up.example", "+nocookie"], &["198.51.100.7"]).await;
    check(&["www.up.example", "AAAA"], &["2001:db8::7"]).await;
    check(&["info.up.example", "TXT"], &["\"hello\""]).await;
    check(&["_a._tcp.up.example", "SRV"], &["0 0 80 www.up.example."]).await;
    // More than a datagram holds: dig asks again over TCP, and so does the proxy.
    assert_eq!(
        scene
            .dig(&["long.up.example", "TXT", "+bufsize=512"])
            .await
            .len(),
        8
    );
    let cut = scene
        .dig_in_full(&["long.up.example", "TXT", "+bufsize=512", "+ignore"])
        .await;
    assert!(cut.contains("flags: qr aa tc"), "{cut}");
    let none = scene.dig_in_full(&["nothing.up.example"]).await;
    assert!(none.contains("NXDOMAIN"), "{none}");

    // What is remembered is not asked again.
    let asked = || {
        let log = scene.dnsmasq.log().lines().unwrap();
        log.iter()
            .filter(|line| line.contains("query[A] www.up.example"))
            .count()
    };
    assert_eq!(asked(), 1);
    check(&["WWW.up.example", "+nocookie"], &["198.51.100.7"]).await;
    assert_eq!(asked(), 1);

    let metrics = scene
        .mesh
        .ztunnel_of("shop/client")
        .unwrap()
        .metrics()
        .await
        .unwrap();
    let labels = [
        ("request_query_type", "TXT"),
        ("request_protocol", "tcp"),
        ("source_canonical_service", "client"),
    ];
    for name in [
        "istio_dns_requests_total",
        "istio_dns_upstream_requests_total",
    ] {
        assert!(metrics.sum(name, &labels) >= 1.0, "{name}");
    }
    assert!(metrics.sum("istio_dns_upstream_request_duration_seconds_count", &[]) >= 5.0);
    assert!(metrics.sum("leyline_dns_cache_hits_total", &[]) >= 1.0);

    // Nobody answers there: the failure is told before libraries lose patience.
    let nobody = scene
        .mesh
        .cluster()
        .pod_addr("shop/server-v1", Family::V4, 53)
        .unwrap();
    let server = format!("@{}", nobody.ip());
    let failed = ["dig", &server, "www.up.example", "+tries=1", "+time=8"];
    assert!(scene.run("dig", &failed).await.contains("SERVFAIL"));
    scene.mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolver_libraries_find_services_and_reach_them() {
    let scene = Box::pin(Scene::start()).await;
    let dir = scene.mesh.cluster().run().dir().to_owned();
    fs::write(dir.join("resolve.c"), RESOLVE).unwrap();
    let source = dir.join("resolve.c").display().to_string();
    let search = "shop.svc.cluster.local svc.cluster.local cluster.local";
    let conf = format!(
        "nameserver {}\nsearch {search}\noptions ndots:5\n",
        scene.resolver
    );
    for compiler in ["gcc", "musl-gcc"] {
        let binary = dir.join(compiler).display().to_string();
        let here = NetNs::current().unwrap();
        let compile = [compiler, "-static", "-o", &binary, &source];
        let compile = if compiler == "gcc" {
            Program::of_machine(compiler, [compiler, "-o", &binary, &source], &here)
        } else {
            Program::of_machine(compiler, compile, &here)
        };
        output(&compile, Duration::from_secs(60)).await.unwrap();
        for (name, expected) in [
            ("server", ["10.96.0.20", "fd00:96::20"]),
            ("server.shop", ["10.96.0.20", "fd00:96::20"]),
            (
                "server.shop.svc.cluster.local",
                ["10.96.0.20", "fd00:96::20"],
            ),
            ("www.up.example", ["198.51.100.7", "2001:db8::7"]),
        ] {
            let mut found = scene.in_container(&conf, &format!("{binary} {name}")).await;
            found.sort();
            assert_eq!(found, expected, "{compiler} {name}");
        }
        let failed = scene
            .in_container(&conf, &format!("{binary} nothing.up.example"))
            .await;
        assert!(failed[0].starts_with("failed"), "{failed:?}");
    }
    // The allocated address of a ServiceEntry leads to its endpoint.
    let call = "python3 -c 'import http.client as h; c = h.HTTPConnection(\"api.outside.example\", 80, timeout=8); \
                c.request(\"GET\", \"/\"); print(c.sock.getpeername()[0]); print(c.getresponse().status)'";
    let called = scene.in_container(&conf, call).await;
    assert!(
        called[0].starts_with("240.240.") || called[0].starts_with("2001:2::"),
        "{called:?}"
    );
    assert_eq!(called[1], "200");
    scene.mesh.stop().await.unwrap();
}

/// A pod's own word wins over the proxy's setting, while the pod runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_keep_its_dns_out_of_capture() {
    let scene = Box::pin(Scene::start()).await;
    let config = scene.mesh.cluster().config();
    let captured = config.read("shop.yaml").unwrap();
    let label = "    app: client\n";
    let exempt = format!("{label}    ambient.istio.io/dns-capture: \"false\"\n");
    let exempt = captured.replacen(label, &exempt, 1);
    let question = ["server.shop.svc.cluster.local"];
    for (yaml, expected) in [(&exempt, &[][..]), (&captured, &["10.96.0.20"])] {
        config.write("shop.yaml", yaml).unwrap();
        let answered = eventually(format!("{expected:?} is answered"), SOON, || async {
            let answer = scene.dig(&question).await;
            ensure!(answer == expected, "{answer:?}");
            Ok(())
        });
        answered.await.unwrap();
        // Its connections are the mesh's all the same.
        let node = scene.mesh.ztunnel_of("shop/client").unwrap();
        let opened = async || {
            let metrics = node.metrics().await.unwrap();
            let labels = [("reporter", "source"), ("source_workload", "client")];
            metrics.sum("istio_tcp_connections_opened_total", &labels)
        };
        let before = opened().await;
        let client = scene.mesh.cluster().client("shop/client").unwrap();
        let service = "10.96.0.20:80".parse().unwrap();
        client.get(service, "/", SOON).await.unwrap();
        assert_eq!(opened().await - before, 1.0);
    }
    scene.mesh.stop().await.unwrap();
}
