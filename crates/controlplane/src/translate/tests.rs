mod fields;
mod findings;
mod inventory;
mod load_balancing;
mod routing;
mod service_entries;
mod waypoint;

use std::{fmt::Write, fs};

use expect_test::{Expect, expect};
use leyline_proto::istio::{
    security::{Action, Authorization, Match, Scope, string_match::MatchType},
    workload::{
        Address, AppProtocol, GatewayAddress, IpFamilies, Service, TunnelProtocol, Workload,
        WorkloadStatus, address, gateway_address::Destination,
    },
};
use prost::Message;

use super::*;
use crate::objects::Loader;

fn objects(yaml: &str) -> Objects {
    let directory = tempfile::TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), yaml).unwrap();
    let loaded = Loader::new(vec![directory.path().to_owned()])
        .load()
        .unwrap();
    assert!(loaded.issues.is_empty(), "{:#?}", loaded.issues);
    Objects::clone(&loaded.objects)
}

fn translated(yaml: &str, enrolled: &[&str]) -> Translation {
    let (objects, settings) = (objects(yaml), MeshSettings::default());
    let wanted = translate(
        &objects,
        &Captured::new(),
        &settings,
        &KeySets::new(),
        &WaypointConfigs::new(),
    )
    .wanted;
    let pods = wanted.into_values().flatten();
    let captured = pods.filter(|(uid, _)| enrolled.contains(&uid.as_str()));
    let captured = captured.map(|(uid, pod)| (uid, pod.instance)).collect();
    translate(
        &objects,
        &captured,
        &settings,
        &KeySets::new(),
        &WaypointConfigs::new(),
    )
}

fn check(yaml: &str, enrolled: &[&str], expected: Expect) {
    expected.assert_eq(&describe(&translated(yaml, enrolled)));
}

fn ip(bytes: &[u8]) -> String {
    match bytes.len() {
        4 => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap()).to_string(),
        _ => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_string(),
    }
}

fn describe(translation: &Translation) -> String {
    let mut text = String::new();
    for (name, resource) in &*translation.addresses {
        match Address::decode(resource.body.clone())
            .unwrap()
            .r#type
            .unwrap()
        {
            address::Type::Workload(workload) => describe_workload(&mut text, name, &workload),
            address::Type::Service(service) => describe_service(&mut text, name, &service),
        }
    }
    for (name, resource) in &*translation.authorizations {
        let policy = Authorization::decode(resource.body.clone()).unwrap();
        describe_policy(&mut text, name, &policy);
    }
    for (node, pods) in &translation.wanted {
        writeln!(
            text,
            "enrol on {node}: {:?}",
            pods.values()
                .map(|pod| pod.name.to_string())
                .collect::<Vec<_>>()
        )
        .unwrap();
    }
    for advice in &translation.advice {
        writeln!(
            text,
            "advice {} {}: {}",
            advice.object, advice.field, advice.reason
        )
        .unwrap();
    }
    text
}

fn describe_workload(text: &mut String, name: &str, w: &Workload) {
    assert_eq!(name, w.uid);
    let addresses: Vec<_> = w.addresses.iter().map(|bytes| ip(bytes)).collect();
    writeln!(
        text,
        "workload {name} {} {}/{} on {:?} sa {:?} {:?} {:?}{}",
        addresses.join(","),
        w.namespace,
        w.name,
        w.node,
        w.service_account,
        TunnelProtocol::try_from(w.tunnel_protocol).unwrap(),
        WorkloadStatus::try_from(w.status).unwrap(),
        if w.native_tunnel {
            " native"
        } else if w.extensions.is_empty() {
            ""
        } else {
            " pending"
        },
    )
    .unwrap();
    writeln!(
        text,
        "  named {} canonical {} {}",
        w.workload_name, w.canonical_name, w.canonical_revision
    )
    .unwrap();
    if let Some(locality) = &w.locality {
        writeln!(
            text,
            "  locality {}/{}/{}",
            locality.region, locality.zone, locality.subzone
        )
        .unwrap();
    }
    if !w.network.is_empty() {
        writeln!(text, "  network {}", w.network).unwrap();
    }
    if let Some(gateway) = &w.network_gateway {
        writeln!(text, "  entered by {}", describe_gateway(gateway)).unwrap();
    }
    if let Some(waypoint) = &w.waypoint {
        writeln!(text, "  waypoint {}", describe_gateway(waypoint)).unwrap();
    }
    if let Some(tunnel) = &w.application_tunnel {
        writeln!(text, "  tunnel {} port {}", tunnel.protocol, tunnel.port).unwrap();
    }
    if !w.hostname.is_empty() {
        writeln!(text, "  host {}", w.hostname).unwrap();
    }
    if let Some(capacity) = w.capacity {
        writeln!(text, "  capacity {capacity}").unwrap();
    }
    if w.network_mode != 0 {
        writeln!(text, "  host network").unwrap();
    }
    let services: BTreeMap<_, _> = w.services.iter().collect();
    for (service, ports) in services {
        let ports: Vec<_> = ports
            .ports
            .iter()
            .map(|p| format!("{}->{}", p.service_port, p.target_port))
            .collect();
        writeln!(text, "  serves {service} {}", ports.join(",")).unwrap();
    }
    if !w.authorization_policies.is_empty() {
        writeln!(text, "  policies {}", w.authorization_policies.join(" ")).unwrap();
    }
}

fn describe_service(text: &mut String, name: &str, s: &Service) {
    let addresses: Vec<_> = s
        .addresses
        .iter()
        .map(|a| format!("{}/{}", a.network, ip(&a.address)))
        .collect();
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|p| {
            let protocol = AppProtocol::try_from(p.app_protocol).unwrap();
            format!("{}->{} {protocol:?}", p.service_port, p.target_port)
        })
        .collect();
    let families = IpFamilies::try_from(s.ip_families).unwrap();
    writeln!(
        text,
        "service {name} {addresses:?} {families:?} {}",
        ports.join(", ")
    )
    .unwrap();
    if s.visibility != 0 {
        writeln!(text, "  visible in its namespace").unwrap();
    }
    if !s.canonical {
        writeln!(text, "  not canonical").unwrap();
    }
    if let Some(waypoint) = &s.waypoint {
        writeln!(text, "  waypoint {}", describe_gateway(waypoint)).unwrap();
    }
    for one in &s.weighted_waypoints {
        let waypoint = describe_gateway(one.destination.as_ref().unwrap());
        writeln!(text, "  {}% {waypoint}", one.weight).unwrap();
    }
    if let Some(balancing) = &s.load_balancing {
        writeln!(
            text,
            "  balancing {:?} mode {} health {}",
            balancing.routing_preference, balancing.mode, balancing.health_policy
        )
        .unwrap();
    }
}

fn describe_gateway(gateway: &GatewayAddress) -> String {
    let place = match gateway.destination.as_ref().unwrap() {
        Destination::Hostname(name) => format!("{}/{}", name.namespace, name.hostname),
        Destination::Address(address) => format!("{}/{}", address.network, ip(&address.address)),
    };
    format!("{place} port {}", gateway.hbone_mtls_port)
}

fn describe_policy(text: &mut String, name: &str, p: &Authorization) {
    let (scope, action) = (
        Scope::try_from(p.scope).unwrap(),
        Action::try_from(p.action).unwrap(),
    );
    let dry = if p.dry_run { " dry run" } else { "" };
    writeln!(text, "policy {name} {action:?} {scope:?}{dry}").unwrap();
    for group in &p.groups {
        let clauses: Vec<_> = group
            .rules
            .iter()
            .map(|rules| {
                rules
                    .matches
                    .iter()
                    .map(describe_match)
                    .collect::<Vec<_>>()
                    .join(" or ")
            })
            .collect();
        let all = if clauses.is_empty() {
            "anything".to_owned()
        } else {
            clauses.join("; and ")
        };
        writeln!(text, "  if {all}").unwrap();
    }
}

fn describe_match(m: &Match) -> String {
    let strings = |list: &[leyline_proto::istio::security::StringMatch]| -> Vec<String> {
        let one = |s: &leyline_proto::istio::security::StringMatch| match s
            .match_type
            .as_ref()
            .unwrap()
        {
            MatchType::Exact(text) => text.clone(),
            MatchType::Prefix(text) => format!("{text}..."),
            MatchType::Suffix(text) => format!("...{text}"),
            MatchType::Presence(()) => "any".to_owned(),
        };
        list.iter().map(one).collect()
    };
    let blocks = |list: &[leyline_proto::istio::security::Address]| -> Vec<String> {
        list.iter()
            .map(|a| format!("{}/{}", ip(&a.address), a.length))
            .collect()
    };
    let accounts = |list: &[leyline_proto::istio::security::ServiceAccountMatch]| -> Vec<String> {
        list.iter()
            .map(|a| format!("{}/{}", a.namespace, a.service_account))
            .collect()
    };
    let numbers = |list: &[u32]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
    let fields = [
        ("namespace", strings(&m.namespaces)),
        ("not namespace", strings(&m.not_namespaces)),
        ("principal", strings(&m.principals)),
        ("not principal", strings(&m.not_principals)),
        ("account", accounts(&m.service_accounts)),
        ("not account", accounts(&m.not_service_accounts)),
        ("source", blocks(&m.source_ips)),
        ("not source", blocks(&m.not_source_ips)),
        ("destination", blocks(&m.destination_ips)),
        ("not destination", blocks(&m.not_destination_ips)),
        ("port", numbers(&m.destination_ports)),
        ("not port", numbers(&m.not_destination_ports)),
    ];
    let used = fields.iter().filter(|(_, values)| !values.is_empty());
    used.map(|(name, values)| format!("{name} {}", values.join("|")))
        .collect::<Vec<_>>()
        .join(" & ")
}

fn pod(name: &str, address: &str, extra: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels: {{app: {name}}}
{extra}
spec:
  nodeName: a
  serviceAccountName: {name}-sa
  containers: [{{name: app, image: x, ports: [{{name: http, containerPort: 8080}}]}}]
status: {{phase: Running, podIPs: [{address}], conditions: [{{type: Ready, status: 'True'}}]}}
---
"
    )
}

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---";

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

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {spec}\n---"
    )
}

#[test]
fn policies_by_scope_and_selector() {
    let yaml = pod("web", "{ip: 10.0.0.1}", "")
        + &policy("nothing", "shop", "{}")
        + &policy("mesh", "istio-system", "{rules: [{}]}")
        + &policy(
            "root-web",
            "istio-system",
            "{selector: {matchLabels: {app: web}}, rules: [{}]}",
        )
        + &policy(
            "web",
            "shop",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}",
        )
        + &policy(
            "other",
            "shop",
            "{selector: {matchLabels: {app: other}}, rules: [{}]}",
        )
        + &policy(
            "web",
            "elsewhere",
            "{selector: {matchLabels: {app: web}}, rules: [{}]}",
        )
        + &policy(
            "waypoint",
            "shop",
            "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}",
        )
        + &policy(
            "custom",
            "shop",
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
        )
        + &policy("audit", "shop", "{action: AUDIT, rules: [{}]}");
    check(
        &yaml,
        &[],
        expect![[r#"
        workload Kubernetes//Pod/shop/web 10.0.0.1 shop/web on "a" sa "web-sa" None Healthy
          named web canonical web latest
          policies istio-system/root-web shop/web
        policy elsewhere/web Allow WorkloadSelector
          if anything
        policy istio-system/mesh Allow Global
          if anything
        policy istio-system/root-web Allow WorkloadSelector
          if anything
        policy shop/nothing Allow Namespace
        policy shop/other Allow WorkloadSelector
          if anything
        policy shop/web Deny WorkloadSelector
          if anything
        advice AuthorizationPolicy shop/audit spec.action: action AUDIT is not supported yet, the policy is not enforced
        advice AuthorizationPolicy shop/custom spec.action: action CUSTOM is not supported yet, the policy is not enforced
    "#]],
    );
}

#[test]
fn conditions_that_a_node_proxy_can_check() {
    let yaml = policy(
        "all",
        "shop",
        "
  rules:
  - from:
    - source: {principals: ['*', 'cluster.local/ns/a/sa/b', '*/sa/b', 'cluster.local/*'], notNamespaces: [bad]}
    - source: {namespaces: [a, b*], ipBlocks: [10.1.2.3/8, 192.0.2.1, '2001:db8::/32'], notIpBlocks: [10.1.0.0/16]}
    - source: {serviceAccounts: [web, other/web], notServiceAccounts: [bad]}
    to:
    - operation: {ports: ['80', '443']}
    - operation: {notPorts: ['22']}
    when:
    - {key: source.ip, values: [10.0.0.0/8]}
    - {key: destination.ip, notValues: [10.0.0.1]}
    - {key: destination.port, values: ['80'], notValues: ['81']}
    - {key: source.principal, notValues: ['*']}
    - {key: source.namespace, values: [a]}
    - {key: source.serviceAccount, values: [a/b]}
  - {}",
    );
    check(
        &yaml,
        &[],
        expect![[r#"
        policy shop/all Allow Namespace
          if not namespace bad & principal any|cluster.local/ns/a/sa/b|.../sa/b|cluster.local/... or namespace a|b... & source 10.0.0.0/8|192.0.2.1/32|2001:db8::/32 & not source 10.1.0.0/16 or account shop/web|other/web & not account shop/bad; and port 80|443 or not port 22; and source 10.0.0.0/8; and not destination 10.0.0.1/32; and port 80 & not port 81; and not principal any; and namespace a; and account a/b
          if anything
    "#]],
    );
}

#[test]
fn what_only_a_waypoint_can_check_never_weakens_a_policy() {
    let rules = "
  rules:
  - from: [{source: {namespaces: [a]}}]
    to: [{operation: {ports: ['80'], methods: [GET]}}]
  - to: [{operation: {paths: [/admin]}}, {operation: {ports: ['81']}}]
  - from: [{source: {requestPrincipals: ['*']}}]
    when: [{key: 'request.headers[x]', values: [z]}]
  - from: [{source: {namespaces: [b]}}]";
    let yaml = policy("allow", "shop", &format!("\n  action: ALLOW{rules}"))
        + &policy("deny", "shop", &format!("\n  action: DENY{rules}"));
    check(
        &yaml,
        &[],
        expect![[r#"
        policy shop/allow Allow Namespace
          if namespace b
        policy shop/deny Deny Namespace
          if namespace a; and port 80
          if anything
          if anything
          if namespace b
        advice AuthorizationPolicy shop/allow spec.rules[0]: the rule needs methods, which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/allow spec.rules[1]: the rule needs paths, which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/allow spec.rules[2]: the rule needs requestPrincipals, request.headers[x], which only a waypoint can check; the rule is left out, so that it allows nothing
        advice AuthorizationPolicy shop/deny spec.rules[0].to[0].operation: only a waypoint can check methods; without it the rule denies more than it says
        advice AuthorizationPolicy shop/deny spec.rules[1].to[0].operation: only a waypoint can check paths; without it nothing of this condition is left, so that the rule denies regardless of it
        advice AuthorizationPolicy shop/deny spec.rules[2].from[0].source: only a waypoint can check requestPrincipals; without it nothing of this condition is left, so that the rule denies regardless of it
        advice AuthorizationPolicy shop/deny spec.rules[2].when[0]: only a waypoint can check request.headers[x]; without it nothing of this condition is left, so that the rule denies regardless of it
    "#]],
    );
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    policy(name, namespace, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

#[test]
fn peer_authentication_precedence() {
    let attached = |peers: &[String]| {
        let yaml = pod("web", "{ip: 10.0.0.1}", "") + &peers.concat();
        describe(&translated(&yaml, &[]))
            .lines()
            .find_map(|line| line.strip_prefix("  policies ").map(ToOwned::to_owned))
            .unwrap_or_default()
    };
    let strict = "istio-system/istio_converted_static_strict";
    let mesh = |mode: &str| {
        peer(
            "mesh",
            "istio-system",
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
    };
    let namespace = |mode: &str| peer("ns", "shop", &format!("{{mtls: {{mode: {mode}}}}}"));
    let workload = |name: &str, rest: &str| {
        peer(
            name,
            "shop",
            &format!("{{selector: {{matchLabels: {{app: web}}}}{rest}}}"),
        )
    };
    assert_eq!(attached(&[]), "");
    assert_eq!(attached(&[mesh("STRICT")]), strict);
    assert_eq!(attached(&[mesh("STRICT"), namespace("PERMISSIVE")]), "");
    assert_eq!(attached(&[mesh("STRICT"), namespace("UNSET")]), strict);
    assert_eq!(attached(&[mesh("PERMISSIVE"), namespace("STRICT")]), strict);
    assert_eq!(
        attached(&[
            namespace("STRICT"),
            workload("w", ", mtls: {mode: DISABLE}")
        ]),
        ""
    );
    assert_eq!(attached(&[namespace("STRICT"), workload("w", "")]), strict);
    assert_eq!(attached(&[workload("w", ", mtls: {mode: STRICT}")]), strict);
    // Of equals, or where no time is written, the strictest.
    assert_eq!(
        attached(&[
            workload("b", ", mtls: {mode: STRICT}"),
            workload("a", ", mtls: {mode: PERMISSIVE}")
        ]),
        strict
    );
    let other = |mode: &str| namespace(mode).replace("name: ns", "name: a");
    assert_eq!(attached(&[namespace("STRICT"), other("DISABLE")]), strict);
    assert_eq!(attached(&[namespace("STRICT"), other("UNSET")]), strict);
    // The older of two.
    let at = |time: &str, yaml: String| {
        let stamp = format!("creationTimestamp: '{time}', namespace");
        yaml.replace("namespace", &stamp)
    };
    assert_eq!(
        attached(&[
            at("2026-01-02T00:00:00Z", namespace("STRICT")),
            at("2026-01-01T00:00:00Z", other("PERMISSIVE"))
        ]),
        ""
    );
    // A selector in the root namespace has no effect.
    assert_eq!(
        attached(&[workload("w", ", mtls: {mode: STRICT}").replace("shop", "istio-system")]),
        ""
    );
}

#[test]
fn peer_authentication_by_port() {
    let selector = "selector: {matchLabels: {app: web}}";
    let ports =
        "portLevelMtls: {'80': {mode: STRICT}, '81': {mode: PERMISSIVE}, '82': {mode: UNSET}}";
    for (spec, expected) in [
        (
            format!("{{{selector}, mtls: {{mode: PERMISSIVE}}, {ports}}}"),
            expect![[r#"
                  policies shop/converted_peer_authentication_ports
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
                policy shop/converted_peer_authentication_ports Deny WorkloadSelector
                  if not principal any; and port 80
            "#]],
        ),
        (
            format!("{{{selector}, mtls: {{mode: STRICT}}, {ports}}}"),
            expect![[r#"
                  policies shop/converted_peer_authentication_ports
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
                policy shop/converted_peer_authentication_ports Deny WorkloadSelector
                  if not principal any; and not port 81
            "#]],
        ),
        (
            format!(
                "{{{selector}, mtls: {{mode: STRICT}}, portLevelMtls: {{'80': {{mode: STRICT}}}}}}"
            ),
            expect![[r#"
                  policies istio-system/istio_converted_static_strict
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
            "#]],
        ),
        (
            format!("{{{selector}, portLevelMtls: {{'80': {{mode: DISABLE}}}}}}"),
            expect![[r#"
                policy istio-system/istio_converted_static_strict Deny WorkloadSelector
                  if not principal any
            "#]],
        ),
    ] {
        let yaml = pod("web", "{ip: 10.0.0.1}", "") + &peer("ports", "shop", &spec);
        let text = describe(&translated(&yaml, &[]));
        let relevant: String = text
            .lines()
            .skip(2)
            .map(|line| format!("{line}\n"))
            .collect();
        expected.assert_eq(&relevant);
    }
}

#[test]
fn one_edit_changes_the_version_of_one_resource() {
    let yaml = |port: &str| {
        pod("web", "{ip: 10.0.0.1}", "")
            + &pod("other", "{ip: 10.0.0.2}", "")
            + &policy(
                "p",
                "shop",
                &format!("{{rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}"),
            )
    };
    let (before, after) = (translated(&yaml("80"), &[]), translated(&yaml("81"), &[]));
    assert_eq!(before.addresses, after.addresses);
    assert_ne!(before.authorizations, after.authorizations);
}
