//! Every field of every kind that is read is acted on or told of. `fields/KIND.txt` lists the fields that the published
//! schema of a kind has, each with a value, and what setting it must lead to:
//!
//! - `+`: what the proxies are sent changes;
//! - `!`: the author is told, by a place that is the field or above or below it;
//! - `-`: neither, and why that is right is written behind it.
//!
//! `= SPEC` is the object that the fields below are set in, `under A, B` the places in it that they are set at, `with:`
//! a further object. `[]` is the first item of a list, `{KEY}` an entry of a map. A field that nobody has listed cannot be
//! found by this, but one that the decoder does not know cannot be listed: it fails as told by nobody.

use serde_json::{Map, Value, json};

use super::*;
use crate::objects::{Issue, Node};

/// What the objects are about: a service with a waypoint and instances in three regions, a second one, another namespace.
const AROUND: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {team: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}
---
apiVersion: v1
kind: Node
metadata: {name: node-b, labels: {topology.kubernetes.io/region: r2}}
---
apiVersion: v1
kind: Node
metadata: {name: node-c, labels: {topology.kubernetes.io/region: r3}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: node-a, serviceAccountName: wp, containers: [{name: c, image: i}]}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}], podIP: 10.1.0.9, podIPs: [{ip: 10.1.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server-1, namespace: shop, labels: {app: server, version: v1}}
spec: {nodeName: node-a, serviceAccountName: server, containers: [{name: c, image: i}]}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}], podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server-2, namespace: shop, labels: {app: server, version: v1}}
spec: {nodeName: node-b, serviceAccountName: server, containers: [{name: c, image: i}]}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}], podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server-3, namespace: shop, labels: {app: server, version: v1}}
spec: {nodeName: node-c, serviceAccountName: server, containers: [{name: c, image: i}]}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}], podIP: 10.1.0.3, podIPs: [{ip: 10.1.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  clusterIP: 10.96.0.20
  selector: {app: server}
  ports: [{name: http, port: 80}, {name: tls, port: 443}, {name: tcp, port: 9000}, {name: auto, port: 8090}, {name: grpc, port: 7070}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.21, ports: [{name: http, port: 80}, {name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank}
spec: {clusterIP: 10.96.0.22, ports: [{name: http, port: 80}]}
";

/// Of the mesh, where its settings are not what is looked at.
const SETTINGS: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: log, envoyFileAccessLog: {path: /dev/stdout}}
    - {name: other-log, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: a}}}
    - {name: otlp, opentelemetry: {service: other.shop.svc.cluster.local, port: 80}}
    - {name: prometheus, prometheus: {}}
";

/// What setting a field must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Acts,
    Told,
    Nothing,
}

/// The kind, and what all its objects here have.
#[derive(Default)]
struct Subject {
    header: Map<String, Value>,
    status: Option<Value>,
    with: Vec<Value>,
}

impl Subject {
    fn read(&mut self, key: &str, text: &str) {
        let metadata = |header: &mut Map<String, Value>, key: &str, value: Value| {
            let metadata = header.entry("metadata").or_insert_with(|| json!({}));
            metadata.as_object_mut().unwrap().insert(key.into(), value);
        };
        match key {
            "kind" => {
                let (kind, version) = text.split_once(' ').unwrap();
                let header = [("apiVersion", version), ("kind", kind)];
                self.header = header
                    .map(|(key, text)| (key.to_owned(), text.into()))
                    .into_iter()
                    .collect();
                metadata(&mut self.header, "name", "one".into());
                metadata(&mut self.header, "namespace", "shop".into());
            }
            "name" | "namespace" => metadata(&mut self.header, key, text.into()),
            "scope" => {
                let metadata = self.header["metadata"].as_object_mut();
                metadata.unwrap().remove("namespace");
            }
            "labels" => metadata(&mut self.header, key, yaml(text)),
            "status" => self.status = Some(yaml(text)),
            "with" => self.with.push(yaml(text)),
            _ => panic!("{key} is nothing that a file of fields can say"),
        }
    }

    /// What comes of an object with this body.
    fn outcome(&self, spec: &Value, before: &WaypointConfigs) -> Outcome {
        let with = self.with.iter().map(|one| format!("---\n{one}\n"));
        let with = with.collect::<String>();
        if self.header["kind"] == "MeshConfig" {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "istio", "namespace": "istio-system"},
                "data": {"mesh": spec.to_string()},
            });
            return Outcome::of(&format!("{AROUND}{with}---\n{map}\n"), before);
        }
        let mut object = self.header.clone();
        object.insert("spec".into(), spec.clone());
        let status = self.status.clone();
        object.extend(status.map(|status| ("status".into(), status)));
        let object = Value::Object(object);
        Outcome::of(&format!("{AROUND}{SETTINGS}{with}---\n{object}\n"), before)
    }
}

fn yaml(text: &str) -> Value {
    Node::parse(text)
        .unwrap_or_else(|error| panic!("{text}: {error:?}"))
        .to_value()
}

/// What the proxies are sent, and what the author is told: place and words.
struct Outcome {
    sent: String,
    /// Maps of protobuf have no order: what did not change keeps its version by comparison alone.
    waypoints: WaypointConfigs,
    is_valid: bool,
    told: Vec<(String, String)>,
}

impl Outcome {
    fn of(yaml: &str, before: &WaypointConfigs) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        fs::write(directory.path().join("a.yaml"), yaml).unwrap();
        let loaded = Loader::new(vec![directory.path().to_owned()])
            .load()
            .unwrap();
        let translation = translate(
            &loaded.objects,
            &Captured::new(),
            &MeshSettings::default(),
            &KeySets::new(),
            before,
        );
        let sent = sent(&translation);
        let Translation {
            advice,
            findings,
            waypoints,
            ..
        } = translation;
        let key_sources = keys::wanted(&loaded.objects);
        let advice = advice
            .into_iter()
            .chain(findings.into_iter().map(|one| one.advice));
        // What is told of the text of the ConfigMap begins with the place in it.
        let told = advice.map(|one| match one.field.as_str() {
            "data.mesh" => {
                let place = one.reason.split(' ').next().unwrap_or_default();
                (place.to_owned(), one.reason)
            }
            _ => (one.field, one.reason),
        });
        let issues = loaded.issues.iter().cloned();
        let told_when_read =
            issues.map(|Issue { field, reason, .. }| (field.unwrap_or_default(), reason));
        Self {
            sent: format!("{sent:?} {key_sources:?}"),
            waypoints,
            is_valid: loaded.issues.is_empty(),
            told: told.chain(told_when_read).collect(),
        }
    }
}

/// Names and versions of all that anybody is sent.
fn sent(translation: &Translation) -> BTreeMap<String, String> {
    let near = translation.waypoint_pods.iter().filter_map(|(pod, of)| {
        let config = translation.waypoints.get(&of.gateway)?;
        Some((format!("near {pod}"), config.endpoints_of(pod)))
    });
    let of_waypoints = translation.waypoints.iter().flat_map(|(gateway, config)| {
        let parts = [
            ("listeners", &config.listeners.resources),
            ("clusters", &config.clusters.resources),
            ("endpoints", &config.endpoints.resources),
            ("routes", &config.routes.resources),
            ("secrets", &config.secrets.resources),
        ];
        parts.map(|(part, resources)| (format!("{part} of {gateway}"), resources))
    });
    let of_nodes = [
        ("addresses".to_owned(), &translation.addresses),
        ("authorizations".to_owned(), &translation.authorizations),
    ];
    let all = of_nodes.into_iter().chain(of_waypoints).chain(near);
    all.flat_map(|(part, resources)| {
        let resources = resources.iter();
        resources.map(move |(name, one)| (format!("{part}: {name}"), one.version.clone()))
    })
    .collect()
}

/// Sets what is at a path such as `http[].match[].headers{a}.exact`, making what is on the way to it.
fn set(into: &mut Value, path: &str, value: Value) {
    let Some(at) = path.find(['.', '[', '{']) else {
        into.as_object_mut().unwrap().insert(path.to_owned(), value);
        return;
    };
    let (name, rest) = path.split_at(at);
    let into = if name.is_empty() {
        into
    } else {
        entry(into, name, rest.starts_with("[]"))
    };
    let rest = if let Some(rest) = rest.strip_prefix("[]") {
        let items = into.as_array_mut().unwrap();
        if items.is_empty() {
            items.push(json!({}));
        }
        match rest.strip_prefix('.') {
            Some(rest) => return set(&mut items[0], rest, value),
            None => items[0] = value,
        }
        return;
    } else if let Some(rest) = rest.strip_prefix('{') {
        let (key, rest) = rest.split_once('}').unwrap();
        match rest.strip_prefix('.') {
            Some(rest) => return set(entry(into, key, false), rest, value),
            None => into.as_object_mut().unwrap().insert(key.to_owned(), value),
        };
        return;
    } else {
        &rest[1..]
    };
    set(into, rest, value);
}

fn entry<'a>(into: &'a mut Value, name: &str, is_list: bool) -> &'a mut Value {
    let empty = || if is_list { json!([]) } else { json!({}) };
    into.as_object_mut()
        .unwrap()
        .entry(name)
        .or_insert_with(empty)
}

/// Whether a place that was told of is a field, or above or below it.
fn is_about(place: &str, path: &str) -> bool {
    let path = path.replace("[]", "[0]").replace('{', ".").replace('}', "");
    let place = place.strip_prefix("spec.").unwrap_or(place);
    let below = |long: &str, short: &str| {
        let rest = long.strip_prefix(short);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    !place.is_empty() && (below(place, &path) || below(&path, place))
}

/// What is wrong with one line of a file.
fn wrong(
    base: &(Value, Outcome),
    subject: &Subject,
    line: (Effect, &str, Value),
) -> Option<String> {
    let (expected, path, value) = line;
    let mut spec = base.0.clone();
    set(&mut spec, path, value);
    let now = subject.outcome(&spec, &base.1.waypoints);
    let new = now.told.iter().filter(|told| !base.1.told.contains(told));
    let new: Vec<_> = new.collect();
    let is_told = new
        .iter()
        .any(|(place, reason)| is_about(place, path) && reason != "unknown field");
    let effect = match (is_told, now.sent == base.1.sent) {
        (true, _) => Effect::Told,
        (false, false) => Effect::Acts,
        (false, true) => Effect::Nothing,
    };
    (effect != expected || new.iter().any(|(_, reason)| reason == "unknown field"))
        .then(|| format!("{path}: {effect:?}, not {expected:?}; said: {new:?}\n"))
}

#[track_caller]
fn check_kind(text: &str) {
    let mut subject = Subject::default();
    let mut base = None;
    let mut places = vec![String::new()];
    let mut found = String::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(spec) = line.strip_prefix("= ") {
            let spec = yaml(spec);
            let outcome = subject.outcome(&spec, &WaypointConfigs::new());
            assert!(outcome.is_valid, "{line}: {:?}", outcome.told);
            base = Some((spec, outcome));
            places = vec![String::new()];
            continue;
        }
        if let Some(list) = line.strip_prefix("under ") {
            places = list.split(", ").map(|place| format!("{place}.")).collect();
            continue;
        }
        let effect = match line.as_bytes()[0] {
            b'+' => Effect::Acts,
            b'!' => Effect::Told,
            b'-' => Effect::Nothing,
            _ => {
                let (key, text) = line.split_once(": ").unwrap();
                subject.read(key, text);
                continue;
            }
        };
        let (path, value) = line[2..].split_once(": ").unwrap();
        assert!(
            effect != Effect::Nothing || value.contains("  # "),
            "{line}: why?"
        );
        let value = yaml(value);
        for place in &places {
            let line = (effect, format!("{place}{path}"), value.clone());
            let base = base.as_ref().unwrap();
            found += &wrong(base, &subject, (line.0, &line.1, line.2)).unwrap_or_default();
        }
    }
    assert!(
        base.is_some_and(|base| base.1.sent.contains("shop")),
        "no fields"
    );
    assert!(found.is_empty(), "\n{found}");
}

#[test]
fn authorization_policy() {
    check_kind(include_str!("fields/AuthorizationPolicy.txt"));
}

#[test]
fn backend_tls_policy() {
    check_kind(include_str!("fields/BackendTLSPolicy.txt"));
}

#[test]
fn destination_rule() {
    check_kind(include_str!("fields/DestinationRule.txt"));
}

#[test]
fn envoy_filter() {
    check_kind(include_str!("fields/EnvoyFilter.txt"));
}

#[test]
fn gateway() {
    check_kind(include_str!("fields/Gateway.txt"));
}

#[test]
fn gateway_class() {
    check_kind(include_str!("fields/GatewayClass.txt"));
}

#[test]
fn grpc_route() {
    check_kind(include_str!("fields/GRPCRoute.txt"));
}

#[test]
fn http_route() {
    check_kind(include_str!("fields/HTTPRoute.txt"));
}

#[test]
fn peer_authentication() {
    check_kind(include_str!("fields/PeerAuthentication.txt"));
}

#[test]
fn proxy_config() {
    check_kind(include_str!("fields/ProxyConfig.txt"));
}

#[test]
fn rate_limit() {
    check_kind(include_str!("fields/RateLimit.txt"));
}

#[test]
fn reference_grant() {
    check_kind(include_str!("fields/ReferenceGrant.txt"));
}

#[test]
fn request_authentication() {
    check_kind(include_str!("fields/RequestAuthentication.txt"));
}

#[test]
fn service_entry() {
    check_kind(include_str!("fields/ServiceEntry.txt"));
}

#[test]
fn telemetry() {
    check_kind(include_str!("fields/Telemetry.txt"));
}

#[test]
fn tcp_route() {
    check_kind(include_str!("fields/TCPRoute.txt"));
}

#[test]
fn tls_route() {
    check_kind(include_str!("fields/TLSRoute.txt"));
}

#[test]
fn virtual_service() {
    check_kind(include_str!("fields/VirtualService.txt"));
}

#[test]
fn workload_entry() {
    check_kind(include_str!("fields/WorkloadEntry.txt"));
}

#[test]
fn mesh_config() {
    check_kind(include_str!("fields/MeshConfig.txt"));
}

#[test]
fn service() {
    check_kind(include_str!("fields/Service.txt"));
}
