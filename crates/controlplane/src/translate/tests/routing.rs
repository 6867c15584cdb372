//! Where connections go through: waypoints, networks, and what services demand of them.

use super::*;

fn gateway(name: &str, labels: &str, extra: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE{extra}}}]
---
"
    )
}

fn service(name: &str, labels: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
spec: {{clusterIP: 10.96.0.9, selector: {{app: {name}}}, ports: [{{port: 80}}]}}
---
"
    )
}

/// The lines about an object that tell where its traffic goes through, and advice.
fn lines(yaml: &str, wanted: &[&str]) -> Vec<String> {
    let text = describe(&translated(yaml, &[]));
    let mut lines: Vec<String> = Vec::new();
    let mut of_wanted = false;
    for line in text.lines() {
        if !line.starts_with(' ') {
            of_wanted = wanted.iter().any(|name| line.contains(name));
        }
        let tells = line.contains("waypoint") || line.contains('%') || line.starts_with("advice");
        if (of_wanted || line.starts_with("advice")) && tells {
            lines.push(line.trim().to_owned());
        }
    }
    lines
}

fn namespace(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n---\n"
    )
}

#[test]
fn gateways_of_ingress_are_told_whether_they_go_through_a_waypoint() {
    let entry = |labels: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: out, namespace: shop, \
             labels: {{{labels}}}}}\nspec: {{hosts: [out.example], ports: [{{number: 80, name: http}}]}}\n---\n"
        )
    };
    let (yes, no) = (
        "istio.io/ingress-use-waypoint: 'true'",
        "istio.io/ingress-use-waypoint: 'false'",
    );
    for (of_namespace, own, expected) in [
        ("", "", false),
        ("", yes, true),
        (yes, "", true),
        (yes, no, false),
        (no, yes, true),
    ] {
        let yaml = [namespace(of_namespace), service("web", own), entry(own)].concat();
        for object in ["service shop/web", "service shop/out.example"] {
            let found = lines(&yaml, &[object]);
            let is_told = found
                .iter()
                .any(|line| line == "ingress through the waypoint");
            assert_eq!(
                is_told, expected,
                "{object} {of_namespace} {own}: {found:?}"
            );
        }
    }
}

#[test]
fn labels_choose_the_waypoint_of_services_and_workloads() {
    let ours = "waypoint shop/wp.shop.svc.cluster.local port 15008";
    let use_wp = "istio.io/use-waypoint: wp";
    let check =
        |namespace_labels: &str, gateway_labels: &str, labels: &str, expected: [bool; 2]| {
            let labelled = format!("  labels: {{app: web, {labels}}}");
            let pod = pod("web", "{ip: 10.0.0.1}", "").replace("  labels: {app: web}", &labelled);
            let yaml = [
                namespace(namespace_labels),
                gateway("wp", gateway_labels, ""),
                service("web", labels),
                pod,
            ]
            .concat();
            for (object, expected) in [
                ("service shop/web", expected[0]),
                ("Pod/shop/web", expected[1]),
            ] {
                let found = lines(&yaml, &[object]);
                let has = found.iter().any(|line| line == ours);
                assert_eq!(
                    has, expected,
                    "{object}: {namespace_labels} {gateway_labels} {labels}: {found:?}"
                );
            }
        };
    check("", "", "", [false, false]);
    check("", "", use_wp, [true, false]);
    check(use_wp, "", "", [true, false]);
    check(use_wp, "", "istio.io/use-waypoint: none", [false, false]);
    check("istio.io/use-waypoint: none", "", use_wp, [true, false]);
    check(use_wp, "istio.io/waypoint-for: workload", "", [false, true]);
    check(use_wp, "istio.io/waypoint-for: all", "", [true, true]);
    check(use_wp, "istio.io/waypoint-for: none", "", [false, false]);
}

#[test]
fn a_gateway_can_be_for_the_pods_of_one_service_account() {
    let pod_of = |name: &str, account: &str| {
        let ip = format!("{{ip: 10.0.0.{}}}", name.len());
        let pod = pod(name, &ip, "");
        let pod = pod.replace(
            &format!("serviceAccountName: {name}-sa"),
            &format!("serviceAccountName: {account}"),
        );
        pod.replace(&format!("{{app: {name}}}"), "{app: web}")
    };
    let ours = "waypoint shop/wp.shop.svc.cluster.local port 15008";
    let gateway = gateway("wp", "", "").replace(
        "labels: {}",
        "annotations: {istio.io/for-service-account: web-sa}",
    );
    for (labels, accounts, service_has, pod_has) in [
        ("", ["web-sa", "web-sa"], true, true),
        ("", ["web-sa", "other"], false, true),
        ("", ["other", "other"], false, false),
        (
            "istio.io/use-waypoint: none",
            ["web-sa", "web-sa"],
            false,
            true,
        ),
    ] {
        let pods = [pod_of("web", accounts[0]), pod_of("web-2", accounts[1])].concat();
        let yaml = [gateway.clone(), service("web", labels), pods].concat();
        for (object, expected) in [
            ("service shop/web", service_has),
            ("Pod/shop/web ", pod_has),
        ] {
            let found = lines(&yaml, &[object]);
            let has = found.iter().any(|line| line == ours);
            assert_eq!(has, expected, "{object} {labels} {accounts:?}: {found:?}");
        }
    }
}

#[test]
fn a_waypoint_that_is_missing_or_forbids_it_is_reported() {
    let missing = service("web", "istio.io/use-waypoint: wp");
    expect![[r#"
        [
            "waypoint shop/wp.shop.svc.cluster.local port 15008",
            "advice Service shop/web metadata.labels.istio.io/use-waypoint: there is no Gateway shop/wp of class istio-waypoint: traffic is refused until there is",
        ]
    "#]]
    .assert_debug_eq(&lines(&missing, &["service"]));

    let other = service(
        "web",
        "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop",
    )
    .replace("namespace: shop,", "namespace: other,");
    let labels =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {mesh: 'yes'}}\n---\n";
    for (allowed, expected) in [
        ("", false),
        (", allowedRoutes: {namespaces: {from: All}}", true),
        (", allowedRoutes: {namespaces: {from: Same}}", false),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {mesh: 'yes'}}}}",
            true,
        ),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: mesh, operator: DoesNotExist}]}}}",
            false,
        ),
    ] {
        let found = lines(
            &[labels, &gateway("wp", "", allowed), &other].concat(),
            &["service"],
        );
        let has = found
            .iter()
            .any(|line| line.starts_with("waypoint shop/wp"));
        assert_eq!(has, expected, "{allowed}: {found:?}");
        let told = found.iter().any(|line| line.contains("allowedRoutes"));
        assert_eq!(told, !expected, "{allowed}: {found:?}");
    }
}

#[test]
fn a_gateway_says_where_it_is() {
    let labelled = service("web", "istio.io/use-waypoint: wp");
    for (addresses, expected) in [
        ("{value: 10.0.0.9}", "waypoint /10.0.0.9 port 15008"),
        (
            "{value: 10.0.0.9}, {type: Hostname, value: far.away.svc.cluster.local}",
            "waypoint away/far.away.svc.cluster.local port 15008",
        ),
        (
            "{type: Hostname, value: wp.example.com}",
            "waypoint shop/wp.example.com port 15008",
        ),
    ] {
        for place in ["status", "spec"] {
            let said = gateway("wp", "", "");
            let said = match place {
                "status" => said.replace(
                    "\n---",
                    &format!("\nstatus: {{addresses: [{addresses}]}}\n---"),
                ),
                _ => said.replace("\n---", &format!("\n  addresses: [{addresses}]\n---")),
            };
            let found = lines(&[said, labelled.clone()].concat(), &["service"]);
            assert_eq!(found, [expected], "{place}");
        }
    }
}

#[test]
fn a_canary_takes_its_share() {
    let yaml = |weight: &str| {
        let labels = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: next";
        let annotated =
            format!("annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}, labels");
        let service = service("web", labels).replace("labels", &annotated);
        [gateway("wp", "", ""), gateway("next", "", ""), service].concat()
    };
    expect![[r#"
        [
            "waypoint shop/wp.shop.svc.cluster.local port 15008",
            "75% shop/wp.shop.svc.cluster.local port 15008",
            "25% shop/next.shop.svc.cluster.local port 15008",
        ]
    "#]]
    .assert_debug_eq(&lines(&yaml("25"), &["service"]));
    for wrong in ["101", "-1", "much"] {
        let found = lines(&yaml(wrong), &["service"]);
        assert!(
            found[1].contains("is not a number from 0 to 100"),
            "{found:?}"
        );
    }
}

#[test]
fn the_waypoint_itself_has_none_and_may_stand_behind_a_node_proxy() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: wp}}\n---\n";
    let own = "app: wp, gateway.networking.k8s.io/gateway-name: wp";
    let pod = pod("wp", "{ip: 10.0.0.1}", "").replace("app: wp", own);
    let binding = "annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}, labels";
    let gateway = gateway("wp", "istio.io/waypoint-for: all", "").replace("labels", binding);
    let yaml = [namespace, &gateway, &service("wp", ""), &pod].concat();
    let text = describe(&translated(&yaml, &[]));
    assert!(!text.contains("  waypoint"), "{text}");
    assert!(text.contains("  tunnel 1 port 15088"), "{text}");
}

#[test]
fn a_service_can_demand_its_waypoint() {
    let required = "istio.io/use-waypoint: wp, leyline.io/require-waypoint: 'true'";
    let waypoint_pod = pod("wp", "{ip: 10.0.0.2}", "").replace(
        "app: wp",
        "app: wp, gateway.networking.k8s.io/gateway-name: wp",
    );
    let all = [
        gateway("wp", "", ""),
        service("web", required),
        pod("web", "{ip: 10.0.0.1}", ""),
        waypoint_pod,
    ]
    .concat();
    let text = describe(&translated(&all, &[]));
    for line in [
        "  policies shop/leyline-require-waypoint.shop.wp\n",
        "policy shop/leyline-require-waypoint.shop.wp Deny WorkloadSelector\n  if not principal cluster.local/ns/shop/sa/wp-sa\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    // Before the waypoint has pods, the account of its name; without a waypoint, nobody.
    let no_pod = [
        gateway("wp", "", ""),
        service("web", required),
        pod("web", "{ip: 10.0.0.1}", ""),
    ]
    .concat();
    let text = describe(&translated(&no_pod, &[]));
    assert!(
        text.contains("  if not principal cluster.local/ns/shop/sa/wp\n"),
        "{text}"
    );
    let alone = [
        service("web", "leyline.io/require-waypoint: 'true'"),
        pod("web", "{ip: 10.0.0.1}", ""),
    ]
    .concat();
    let text = describe(&translated(&alone, &[]));
    assert!(
        text.contains(
            "policy shop/leyline-require-waypoint Deny WorkloadSelector\n  if anything\n"
        ),
        "{text}"
    );
    assert!(text.contains("nobody reaches its pods"), "{text}");
}

#[test]
fn networks_have_gateways() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {topology.istio.io/network: east}}\n---\n";
    let root = "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: west}}\n---\n";
    let gateway = gateway("ew", "topology.istio.io/network: east", "")
        .replace("istio-waypoint", "istio-east-west")
        .replace("\n---", "\n  addresses: [{value: 192.0.2.7}]\n---");
    let here = pod("here", "{ip: 10.0.0.2}", "").replace("nodeName: a", "nodeName: b");
    let yaml = [
        node,
        root,
        &gateway,
        &service("web", ""),
        &pod("web", "{ip: 10.0.0.1}", ""),
        &here,
    ]
    .concat();
    check(
        &yaml,
        &[],
        expect![[r#"
        workload Kubernetes//Pod/shop/here 10.0.0.2 shop/here on "b" sa "here-sa" None Healthy
          named here canonical here latest
          network west
        workload Kubernetes//Pod/shop/web 10.0.0.1 shop/web on "a" sa "web-sa" None Healthy
          named web canonical web latest
          network east
          entered by east/192.0.2.7 port 15008
          serves shop/web.shop.svc.cluster.local 80->80
        workload NetworkGateway/east/192.0.2.7/15008 192.0.2.7 shop/ew on "" sa "ew" Hbone Healthy
          named ew canonical ew latest
          network east
        service shop/web.shop.svc.cluster.local ["west/10.96.0.9", "east/10.96.0.9"] Ipv4Only 80->80 Unknown
    "#]],
    );
}

#[test]
fn the_addresses_of_services_are_the_same_in_all_networks() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {topology.istio.io/network: east}}\n---\n";
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [outside.example]
  addresses: [192.0.2.0/24]
  resolution: STATIC
  ports: [{number: 443, name: tls, protocol: TLS}]
";
    let yaml = [node, &pod("web", "{ip: 10.0.0.1}", ""), entry].concat();
    let text = describe(&translated(&yaml, &[]));
    let expected = "outside.example [\"/192.0.2.0\", \"east/192.0.2.0\"]";
    assert!(text.contains(expected), "{text}");
}
