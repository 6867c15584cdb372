//! Conditions that do not hold.

use super::*;

const SERVICES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: istio
  listeners: [{name: web, port: 80, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.20, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: 10.96.0.21, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: bank}
spec: {clusterIP: 10.96.0.22, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server, namespace: shop}
spec: {host: server, subsets: [{name: v1, labels: {version: v1}}]}
---
";

fn check(yaml: &str, expected: Expect) {
    let found = translated(&format!("{SERVICES}{yaml}"), &[]).findings;
    let front = "Gateways of class istio are not served";
    let lines = found
        .iter()
        .filter(|one| !one.advice.reason.starts_with(front))
        .map(|one| {
            let Advice {
                object,
                field,
                reason,
            } = &one.advice;
            format!(
                "{object} {field}: {}={} {reason}\n",
                one.condition, one.reason
            )
        });
    expected.assert_eq(&lines.collect::<String>());
    assert!(found.iter().any(|one| one.advice.reason.starts_with(front)));
}

#[test]
fn of_gateway_routes() {
    check(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: good, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server}]
  rules: [{backendRefs: [{name: bare, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: parents, namespace: shop}
spec:
  parentRefs:
  - {group: '', kind: Service, name: nothing}
  - {group: '', kind: Service, name: bare}
  - {name: front}
  - {group: '', kind: Service, name: server, namespace: bank}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: backends, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server}]
  rules:
  - backendRefs: [{name: server, port: 80}, {name: gone, port: 80}]
  - backendRefs: [{name: server, namespace: bank, port: 80}]
",
        expect![[r#"
            HTTPRoute shop/parents spec.parentRefs[2]: Accepted=InvalidKind a parent of kind Gateway is not served: routes are attached to Services and ServiceEntries
            HTTPRoute shop/parents spec.parentRefs[0]: Accepted=NoMatchingParent there is no Service shop/nothing
            HTTPRoute shop/parents spec.parentRefs[3]: Accepted=UnsupportedValue a route for the clients of its own namespace: a waypoint does not tell them apart, it has no effect
            GRPCRoute shop/backends spec.rules[0].backendRefs[1]: ResolvedRefs=BackendNotFound there is no host gone.shop.svc.cluster.local: its share is refused
            GRPCRoute shop/backends spec.rules[1].backendRefs[0]: ResolvedRefs=RefNotPermitted no ReferenceGrant in namespace bank lets a GRPCRoute of shop name this: its share is refused
            HTTPRoute shop/parents spec.parentRefs[1]: ResolvedWaypoints=MissingUseWaypointLabel Service shop/bare has no waypoint (label istio.io/use-waypoint): the route has no effect
        "#]],
    );
}

#[test]
fn of_istio_objects() {
    check(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: shop}
spec:
  hosts: [server]
  http:
  - route: [{destination: {host: server, subset: v1}}, {destination: {host: server, subset: v2}, weight: 1}]
    mirror: {host: gone}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front, namespace: shop}
spec:
  hosts: [server]
  gateways: [front]
  http: [{route: [{destination: {host: gone}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: gone, namespace: shop}
spec: {host: gone}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: targets, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: server}, {group: '', kind: Service, name: gone}]
",
        expect![[r#"
            VirtualService shop/front spec.gateways: Accepted=NotServed none of these gateways is `mesh`: it has no effect
            AuthorizationPolicy shop/targets spec.targetRefs[1]: Accepted=TargetNotFound there is no Service shop/gone: it has no effect there
            VirtualService shop/server spec.http[0].mirror.host: ResolvedRefs=ReferencedResourceNotFound there is no host gone.shop.svc.cluster.local: requests for it are refused
            VirtualService shop/server spec.http[0].route[1].destination.subset: ResolvedRefs=ReferencedResourceNotFound no DestinationRule of server.shop.svc.cluster.local has a subset v2: requests for it are refused
            DestinationRule shop/gone spec.host: ResolvedRefs=ReferencedResourceNotFound there is no host gone.shop.svc.cluster.local: the rule has no effect
        "#]],
    );
}
