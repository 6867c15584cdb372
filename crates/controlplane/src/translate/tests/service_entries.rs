//! Services and instances that Kubernetes does not know.

use super::*;

#[test]
fn hosts_become_services_and_endpoints_workloads() {
    check(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example.com, DB2.example.com]
  addresses: [10.9.0.1, 10.9.1.0/24]
  ports: [{number: 3306, name: mysql, protocol: MYSQL, targetPort: 3307}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints:
  - {address: 192.0.2.1, labels: {app: db}, locality: eu/a, weight: 3, ports: {mysql: 3308}}
  - {address: 2001:db8::1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [www.example.com]
  ports: [{number: 443, name: https, protocol: TLS}]
  resolution: DNS
  exportTo: ["."]
---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ["*.example.org"]
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: other}
spec:
  hosts: [www.example.com]
  ports: [{number: 443, name: https, protocol: TLS}]
  resolution: DNS
  endpoints: [{address: elsewhere.example.com}]
status: {addresses: [{value: 240.240.7.7, host: www.example.com}, {value: 240.240.8.8, host: x}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: shop}
spec: {hosts: [hidden.example.com], exportTo: ["~"], ports: []}
"#,
        &[],
        expect![[r#"
            workload Kubernetes/networking.istio.io/ServiceEntry/other/web/elsewhere.example.com  other/web on "" sa "default" None Healthy
              named web canonical web latest
              host elsewhere.example.com
              serves other/www.example.com 443->443
            workload Kubernetes/networking.istio.io/ServiceEntry/shop/db/192.0.2.1 192.0.2.1 shop/db on "" sa "default" None Healthy
              named db canonical db latest
              locality eu/a/
              capacity 3
              serves shop/db.example.com 3306->3308
              serves shop/db2.example.com 3306->3308
            workload Kubernetes/networking.istio.io/ServiceEntry/shop/db/2001:db8::1 2001:db8::1 shop/db on "" sa "default" None Healthy
              named db canonical db latest
              serves shop/db.example.com 3306->3307
              serves shop/db2.example.com 3306->3307
            workload Kubernetes/networking.istio.io/ServiceEntry/shop/web/www.example.com  shop/web on "" sa "default" None Healthy
              named web canonical web latest
              host www.example.com
              serves shop/www.example.com 443->443
            service other/www.example.com ["/240.240.7.7"] Automatic 443->443 Tls
            service shop/*.example.org [] Automatic 80->80 Http11
              balancing [] mode 3 health 1
            service shop/db.example.com ["/10.9.0.1", "/10.9.1.0"] Automatic 3306->3307 Tcp
            service shop/db2.example.com ["/10.9.0.1", "/10.9.1.0"] Automatic 3306->3307 Tcp
            service shop/www.example.com ["/240.240.192.55", "/2001:2::c037"] Automatic 443->443 Tls
              visible in its namespace
              not canonical
            advice ServiceEntry shop/wild spec.addresses: *.example.org has no address, so that only DNS of others finds it
        "#]],
    );
}

#[test]
fn selectors_find_pods_and_workload_entries() {
    check(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vms, namespace: shop}
spec:
  hosts: [vms.shop.internal]
  addresses: [10.9.0.2]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: vm}}
---
apiVersion: v1
kind: Service
metadata: {name: vm, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: vm}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, namespace: shop}
spec: {address: 192.0.2.7, labels: {app: vm, networking.istio.io/tunnel: http}, serviceAccount: vm, ports: {web: 9000}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, namespace: other}
spec: {address: vm1.example.com, labels: {app: vm}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {app: vm}}
spec: {nodeName: a, containers: [{name: c, ports: [{name: web, containerPort: 81}]}]}
status: {podIP: 10.244.0.5}
"#,
        &[],
        expect![[r#"
            workload Kubernetes//Pod/shop/p 10.244.0.5 shop/p on "a" sa "default" None Unhealthy
              named p canonical vm latest
              serves shop/vm.shop.svc.cluster.local 80->81
              serves shop/vms.shop.internal 80->8080
            workload Kubernetes/networking.istio.io/WorkloadEntry/other/vm1  other/vm1 on "" sa "default" None Healthy
              named vm1 canonical vm latest
              host vm1.example.com
            workload Kubernetes/networking.istio.io/WorkloadEntry/shop/vm1 192.0.2.7 shop/vm1 on "" sa "vm" Hbone Healthy native
              named vm1 canonical vm latest
              serves shop/vm.shop.svc.cluster.local 80->9000
              serves shop/vms.shop.internal 80->8080
            service shop/vm.shop.svc.cluster.local ["/10.96.0.9"] Ipv4Only 80->0 Unknown
            service shop/vms.shop.internal ["/10.9.0.2"] Automatic 80->8080 Http11
        "#]],
    );
}

#[test]
fn of_two_of_a_name_one_counts() {
    check(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: shop}
spec: {hosts: [server.shop.svc.cluster.local], addresses: [10.9.0.3], ports: [{number: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: later, creationTimestamp: 2026-01-02T00:00:00Z}
spec: {hosts: [x.example.com], addresses: [10.9.0.4], ports: [{number: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: z, namespace: earlier, creationTimestamp: 2026-01-01T00:00:00Z}
spec: {hosts: [x.example.com], addresses: [10.9.0.5], ports: [{number: 80, name: http}], exportTo: [shop, earlier]}
",
        &[],
        expect![[r#"
            service earlier/x.example.com ["/10.9.0.5"] Automatic 80->80 Unknown
              visible in its namespace
              balancing [] mode 3 health 1
            service later/x.example.com ["/10.9.0.4"] Automatic 80->80 Unknown
              not canonical
              balancing [] mode 3 health 1
            service shop/server.shop.svc.cluster.local ["/10.96.0.9"] Ipv4Only 80->80 Unknown
            advice ServiceEntry earlier/z spec.exportTo: node proxies know only "*" and ".": the other namespaces do not see it
            advice ServiceEntry shop/a spec.hosts: another service of the namespace is called server.shop.svc.cluster.local
        "#]],
    );
}
