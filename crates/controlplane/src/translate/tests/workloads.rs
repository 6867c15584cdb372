//! Pods, services and slices become workloads and services; which pods are to be enrolled.

use super::*;

#[test]
fn pods_services_and_enrolment() {
    let yaml = SHOP.to_owned()
        + &pod("web", "{ip: 10.0.0.1}, {ip: 'fd00::1'}", "  annotations: {x: z}")
        + &pod("plain", "{ip: 10.0.0.2}", "").replace("{app: plain}", "{app: web, istio.io/dataplane-mode: none}")
        + "
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: net1}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.9.0.1
  clusterIPs: [10.9.0.1, 'fd00:9::1']
  trafficDistribution: PreferClose
  selector: {app: web}
  ports:
  - {name: http-main, port: 80, targetPort: http}
  - {name: grpc, port: 90}
  - {name: lost, port: 91, targetPort: nothing}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, publishNotReadyAddresses: true, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
";
    check(
        &yaml,
        &["Kubernetes//Pod/shop/web", "Kubernetes//Pod/shop/plain"],
        expect![[r#"
            workload Kubernetes//Pod/shop/plain 10.0.0.2 shop/plain on "a" sa "plain-sa" None Healthy
              named plain canonical web latest
              locality r/z/
              network net1
              serves shop/headless.shop.svc.cluster.local 80->80
              serves shop/web.shop.svc.cluster.local 80->8080,90->90
            workload Kubernetes//Pod/shop/web 10.0.0.1,fd00::1 shop/web on "a" sa "web-sa" Hbone Healthy
              named web canonical web latest
              locality r/z/
              network net1
              serves shop/headless.shop.svc.cluster.local 80->80
              serves shop/web.shop.svc.cluster.local 80->8080,90->90
            service shop/headless.shop.svc.cluster.local [] Automatic 80->80 Http11
              balancing [] mode 0 health 1
            service shop/web.shop.svc.cluster.local ["net1/10.9.0.1", "net1/fd00:9::1"] Dual 80->0 Http11, 90->90 Grpc, 91->0 Unknown
              balancing [6, 1, 2] mode 2 health 0
            enrol on a: ["shop/web"]
        "#]],
    );
    // Not before its node has reported it.
    let text = describe(&translated(&yaml, &[]));
    assert!(!text.contains("Hbone") && text.contains("enrol on a"));
}

#[test]
fn states_of_pods() {
    let ended = pod("ended", "{ip: 10.0.0.1}", "").replace("Running", "Succeeded");
    let unready = pod("unready", "{ip: 10.0.0.2}", "").replace("'True'", "'False'");
    let waiting = pod("waiting", "", "");
    let leaving = pod(
        "leaving",
        "{ip: 10.0.0.3}",
        "  deletionTimestamp: 2026-01-01T00:00:00Z",
    );
    let host = pod("host", "{ip: 10.0.0.4}", "")
        .replace("nodeName: a", "nodeName: a\n  hostNetwork: true");
    let sidecar = pod(
        "sidecar",
        "{ip: 10.0.0.5}",
        "  annotations: {sidecar.istio.io/status: x}",
    );
    let native = pod("native", "{ip: 10.0.0.6}", "")
        .replace("{app: native}", "{networking.istio.io/tunnel: http}");
    let owned = pod(
        "owned",
        "{ip: 10.0.0.7}",
        "  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, uid: u, controller: true}]",
    )
    .replace("{app: owned}", "{pod-template-hash: 5d4f, version: v2}");
    let cron = pod(
        "cron",
        "{ip: 10.0.0.8}",
        "  ownerReferences: [{apiVersion: batch/v1, kind: Job, name: backup-28000000, uid: u, controller: true}]",
    )
    .replace("{app: cron}", "{}");
    let all = [
        ended, unready, waiting, leaving, host, sidecar, native, owned, cron,
    ]
    .concat();
    check(
        &(SHOP.to_owned() + &all),
        &[],
        expect![[r#"
            workload Kubernetes//Pod/shop/cron 10.0.0.8 shop/cron on "a" sa "cron-sa" None Healthy pending
              named backup canonical backup latest
            workload Kubernetes//Pod/shop/host 10.0.0.4 shop/host on "a" sa "host-sa" None Healthy
              named host canonical host latest
              host network
            workload Kubernetes//Pod/shop/leaving 10.0.0.3 shop/leaving on "a" sa "leaving-sa" None Unhealthy pending
              named leaving canonical leaving latest
            workload Kubernetes//Pod/shop/native 10.0.0.6 shop/native on "a" sa "native-sa" Hbone Healthy native
              named native canonical native latest
            workload Kubernetes//Pod/shop/owned 10.0.0.7 shop/owned on "a" sa "owned-sa" None Healthy pending
              named web canonical web v2
            workload Kubernetes//Pod/shop/sidecar 10.0.0.5 shop/sidecar on "a" sa "sidecar-sa" None Healthy
              named sidecar canonical sidecar latest
            workload Kubernetes//Pod/shop/unready 10.0.0.2 shop/unready on "a" sa "unready-sa" None Unhealthy pending
              named unready canonical unready latest
            enrol on a: ["shop/cron", "shop/leaving", "shop/native", "shop/owned", "shop/unready"]
        "#]],
    );
}

#[test]
fn pods_keep_parts_of_themselves_out_of_capture() {
    let (dns, inbound) = (
        "ambient.istio.io/dns-capture",
        "ambient.istio.io/bypass-inbound-capture",
    );
    let check = |annotations: &str, labels: &str, expected: (bool, bool), told: &[&str]| {
        let web = pod(
            "web",
            "{ip: 10.0.0.1}",
            &format!("  annotations: {{{annotations}}}"),
        );
        let labels = format!("{{istio.io/dataplane-mode: ambient{labels}}}");
        let translation = translated(&web.replace("{app: web}", &labels), &[]);
        let exempt = translation.wanted["a"]["Kubernetes//Pod/shop/web"].exempt;
        assert_eq!(
            (exempt.dns, exempt.inbound),
            expected,
            "{annotations} {labels}"
        );
        let fields: Vec<_> = translation.advice.iter().map(|one| &one.field).collect();
        assert_eq!(fields, told, "{annotations} {labels}");
    };
    check("x: z", "", (false, false), &[]);
    check(&format!("{dns}: 'false'"), "", (true, false), &[]);
    check(
        &format!("{dns}: 'true', {inbound}: 'true'"),
        "",
        (false, true),
        &[],
    );
    check(
        "x: z",
        &format!(", {inbound}: 'true', {dns}: 'false'"),
        (true, true),
        &[],
    );
    // The annotation is what Istio documents.
    let label = format!(", {dns}: 'false'");
    check(&format!("{dns}: 'true'"), &label, (false, false), &[]);
    let field = format!("metadata.annotations.{dns}");
    check(&format!("{dns}: 'no'"), "", (false, false), &[&field]);
    let field = format!("metadata.labels.{inbound}");
    check(
        "x: z",
        &format!(", {inbound}: 'yes'"),
        (false, false),
        &[&field],
    );
}

#[test]
fn pods_name_the_interfaces_of_their_guests() {
    const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
    let check = |said: &str, expected: &[&str], told: usize| {
        let annotation = format!("  annotations: {{{REROUTE}: '{said}'}}");
        let web = pod("web", "{ip: 10.0.0.1}", &annotation);
        let enrolled = web.replace("{app: web}", "{istio.io/dataplane-mode: ambient}");
        let translation = translated(&enrolled, &[]);
        let wanted = &translation.wanted["a"]["Kubernetes//Pod/shop/web"];
        let names: Vec<_> = wanted.reroute.iter().map(|name| name.as_str()).collect();
        assert_eq!(names, expected, "{said}");
        let field = format!("metadata.annotations.{REROUTE}");
        assert_eq!(translation.advice.len(), told, "{said}");
        assert!(translation.advice.iter().all(|one| one.field == field));
    };
    check("", &[], 0);
    check("k6t-eth0", &["k6t-eth0"], 0);
    check(" tap0 ,, eth0.100,tap0", &["tap0", "eth0.100"], 0);
    check("lo,tap0,a/b,far-too-long-a-name", &["tap0"], 3);
}

#[test]
fn node_proxies_and_kube_system_are_never_enrolled() {
    let label = "  annotations: {x: z}";
    let ztunnel = pod("ztunnel", "{ip: 10.0.0.1}", label)
        .replace("{app: ztunnel}", "{istio.io/dataplane-mode: ambient}")
        .replace("namespace: shop", "namespace: istio-system")
        .replace("ztunnel-sa", "ztunnel");
    let system = pod("dns", "{ip: 10.0.0.2}", label)
        .replace("{app: dns}", "{istio.io/dataplane-mode: ambient}")
        .replace("namespace: shop", "namespace: kube-system");
    let labelled = pod("web", "{ip: 10.0.0.3}", label)
        .replace("{app: web}", "{istio.io/dataplane-mode: ambient}");
    let translation = translated(&[ztunnel, system, labelled].concat(), &[]);
    let wanted: Vec<_> = translation.wanted["a"]
        .values()
        .map(|pod| pod.name.to_string())
        .collect();
    assert_eq!(wanted, ["shop/web"]);
}

#[test]
fn slices_of_services_without_a_selector() {
    let yaml = pod("web", "{ip: 10.0.0.1}", "")
        + &pod("met", "{ip: 10.0.0.2}", "")
        + "
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {clusterIP: 10.9.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-1, namespace: shop, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
ports: [{name: a, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}}
- {addresses: [10.0.0.2]}
- {addresses: [192.0.2.1], conditions: {ready: false}, zone: z}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, namespace: shop, labels: {kubernetes.io/service-name: nothing}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.9]}]
";
    check(
        &yaml,
        &[],
        expect![[r#"
        workload Kubernetes//Pod/shop/met 10.0.0.2 shop/met on "a" sa "met-sa" None Healthy
          named met canonical met latest
          serves shop/outside.shop.svc.cluster.local 80->8080
        workload Kubernetes//Pod/shop/web 10.0.0.1 shop/web on "a" sa "web-sa" None Healthy
          named web canonical web latest
          serves shop/outside.shop.svc.cluster.local 80->8080
        workload Kubernetes/discovery.k8s.io/EndpointSlice/shop/outside-1/192.0.2.1 192.0.2.1 shop/outside-1 on "" sa "" None Unhealthy
          named outside-1 canonical outside-1 latest
          locality /z/
          serves shop/outside.shop.svc.cluster.local 80->8080
        service shop/outside.shop.svc.cluster.local ["/10.9.0.1"] Ipv4Only 80->80 Unknown, 81->81 Unknown
    "#]],
    );
}
