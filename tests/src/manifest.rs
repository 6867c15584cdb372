//! The little that the harness must know of the YAML: which nodes and pods there are, what runs in them, and the VIPs that
//! checks call. The control plane reads the same files with its own, strict reader.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fabric::Addresses;

/// The image that stands for the echo app.
const ECHO_IMAGE: &str = "leyline-echo";
/// The image that stands for the L7 proxy.
const WAYPOINT_IMAGE: &str = "leyline-waypoint";
/// The class of Gateways that are waypoints.
const WAYPOINT_CLASS: &str = "istio-waypoint";

/// Nodes and pods of a set of documents.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Names.
    pub nodes: Vec<String>,
    /// Pods in the order of the documents.
    pub pods: Vec<PodSpec>,
    /// Addresses of services by `namespace/name`.
    pub vips: BTreeMap<String, Vec<IpAddr>>,
    /// The Gateways of class `istio-waypoint`.
    pub waypoints: Vec<WaypointSpec>,
    /// The `deployment` of ConfigMaps, by `namespace/name`.
    deployments: BTreeMap<String, String>,
}

/// A Gateway for whose pods somebody has to care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// So many pods: one, or what the ConfigMap of its `parametersRef` says.
    pub replicas: usize,
    /// The name of that ConfigMap.
    parameters: Option<String>,
}

/// What is to run where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The node it is placed on.
    pub node: String,
    /// Service account; `default` if none is named.
    pub service_account: String,
    /// Arguments of its echo app.
    pub args: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// What runs in it.
    pub image: Image,
}

/// The programs that pods run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The echo app.
    Echo,
    /// The L7 proxy.
    Waypoint,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Value>,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: String,
    service_account_name: Option<String>,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct ServiceSpec {
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Container {
    image: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<EnvVar>,
}

#[derive(Deserialize)]
struct EnvVar {
    name: String,
    #[serde(default)]
    value: String,
}

impl PodSpec {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The name of its namespace's mount, by which the node proxy finds it.
    pub fn file(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }
}

impl Manifest {
    /// Reads files given as (name, text).
    ///
    /// # Errors
    /// When a file is no YAML, or a pod cannot be run here.
    pub fn read(files: &[(String, String)]) -> Result<Self> {
        let mut manifest = Self::default();
        for (file, text) in files {
            let documents: Vec<Document> =
                serde_saphyr::from_multiple(text).with_context(|| format!("reading {file}"))?;
            for document in documents {
                manifest
                    .add(document)
                    .with_context(|| format!("reading {file}"))?;
            }
        }
        for waypoint in &mut manifest.waypoints {
            let Some(parameters) = &waypoint.parameters else {
                continue;
            };
            let key = format!("{}/{parameters}", waypoint.namespace);
            let deployment = manifest.deployments.get(&key);
            let deployment = deployment.with_context(|| format!("no ConfigMap {key}"))?;
            let deployment: Value = serde_saphyr::from_str(deployment)
                .with_context(|| format!("deployment of ConfigMap {key}"))?;
            if let Some(replicas) = deployment["spec"]["replicas"].as_u64() {
                waypoint.replicas = usize::try_from(replicas)?;
            }
        }
        Ok(manifest)
    }

    fn add(&mut self, document: Document) -> Result<()> {
        let Metadata { name, namespace } = document.metadata;
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        if document.kind == "ConfigMap"
            && let Some(deployment) = document.data.get("deployment")
        {
            self.deployments
                .insert(format!("{namespace}/{name}"), deployment.clone());
        }
        match (document.kind.as_str(), document.spec) {
            ("Node", _) => self.nodes.push(name),
            ("Service", Some(spec)) => {
                let spec: ServiceSpec = serde_json::from_value(spec)
                    .with_context(|| format!("service {namespace}/{name}"))?;
                self.vips
                    .insert(format!("{namespace}/{name}"), spec.cluster_ips);
            }
            ("Gateway", Some(spec))
                if spec.get("gatewayClassName").and_then(Value::as_str) == Some(WAYPOINT_CLASS) =>
            {
                let parameters = &spec["infrastructure"]["parametersRef"]["name"];
                self.waypoints.push(WaypointSpec {
                    parameters: parameters.as_str().map(str::to_owned),
                    replicas: 1,
                    namespace,
                    name,
                });
            }
            // Without a spec it is a status that we have written.
            ("Pod", Some(spec)) => {
                let pod = pod(&namespace, &name, spec)
                    .with_context(|| format!("pod {namespace}/{name}"))?;
                self.pods.push(pod);
            }
            _ => {}
        }
        Ok(())
    }
}

fn pod(namespace: &str, name: &str, spec: Value) -> Result<PodSpec> {
    let spec: Spec = serde_json::from_value(spec)?;
    let [container] = &spec.containers[..] else {
        anyhow::bail!(
            "{} containers; the local kubelet runs one",
            spec.containers.len()
        );
    };
    let image = match container.image.as_str() {
        ECHO_IMAGE => Image::Echo,
        WAYPOINT_IMAGE => Image::Waypoint,
        other => anyhow::bail!(
            "image `{other}`; the local kubelet knows `{ECHO_IMAGE}` and `{WAYPOINT_IMAGE}`"
        ),
    };
    Ok(PodSpec {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: spec.node_name,
        service_account: spec
            .service_account_name
            .unwrap_or_else(|| "default".to_owned()),
        args: container.args.clone(),
        env: container
            .env
            .iter()
            .map(|var| (var.name.clone(), var.value.clone()))
            .collect(),
        image,
    })
}

/// What the controller of Gateways makes of one: pods with the proxy, spread over the nodes, and a Service in front of
/// them (facts F.3). The first pod bears the Gateway's name.
pub fn waypoint(spec: &WaypointSpec, nodes: &[String]) -> String {
    let WaypointSpec {
        namespace, name, ..
    } = spec;
    let gateway = json!({ "gateway.networking.k8s.io/gateway-name": name });
    let mut labels = gateway.clone();
    labels["gateway.istio.io/managed"] = "istio.io-mesh-controller".into();
    labels["istio.io/dataplane-mode"] = "none".into();
    let replicas = nodes.iter().cycle().take(spec.replicas).enumerate();
    let pods = replicas.map(|(index, node)| {
        let pod = match index {
            0 => name.clone(),
            later => format!("{name}-{}", later + 1),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": pod, "labels": labels },
            "spec": {
                "nodeName": node,
                "serviceAccountName": name,
                "containers": [{ "name": "istio-proxy", "image": WAYPOINT_IMAGE }],
            },
        })
    });
    let pods: Vec<Value> = pods.collect();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": {
            "clusterIP": "None",
            "selector": gateway,
            "ports": [{ "name": "mesh", "port": 15008, "appProtocol": "hbone" }],
        },
    });
    let documents = pods.iter().chain([&service]);
    let documents: Vec<String> = documents.map(|it| format!("{it:#}\n")).collect();
    documents.join("---\n")
}

/// The status document of a running pod. JSON is YAML.
pub fn status(pod: &PodSpec, addresses: Addresses) -> String {
    let ips: Vec<Value> = addresses
        .all()
        .iter()
        .map(|ip| json!({ "ip": ip }))
        .collect();
    let document = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": pod.namespace, "name": pod.name },
        "status": {
            "phase": "Running",
            "podIP": addresses.v4,
            "podIPs": ips,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_map_says_how_many_replicas_a_waypoint_has() {
        let text = "\
kind: Gateway
metadata: {name: alone, namespace: shop}
spec: {gatewayClassName: istio-waypoint}
---
kind: Gateway
metadata: {name: pair, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: pair}}
---
kind: ConfigMap
metadata: {name: pair, namespace: shop}
data:
  deployment: |
    spec: {replicas: 2}
";
        let manifest = Manifest::read(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
        let [alone, pair] = &manifest.waypoints[..] else {
            panic!("{:?}", manifest.waypoints)
        };
        assert_eq!((alone.replicas, pair.replicas), (1, 2));
        let nodes = ["node-a".to_owned(), "node-b".to_owned()];
        let made = Manifest::read(&[("b.yaml".to_owned(), waypoint(pair, &nodes))]).unwrap();
        let pods = made.pods.iter().map(|pod| (&*pod.name, &*pod.node));
        let expected = [("pair", "node-a"), ("pair-2", "node-b")];
        assert_eq!(pods.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn reads_nodes_and_pods_and_passes_over_the_rest() {
        let text = "\
kind: Node
metadata: {name: node-a}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]}
---
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  nodeName: node-a
  containers: [{name: app, image: leyline-echo, args: [--http=8080], env: [{name: A, value: b}]}]
---
kind: Pod
metadata: {name: web, namespace: shop}
status: {phase: Running}
";
        let manifest = Manifest::read(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
        assert_eq!(manifest.nodes, ["node-a"]);
        assert_eq!(manifest.vips["shop/web"].len(), 2);
        let [pod] = &manifest.pods[..] else {
            panic!("{:?}", manifest.pods)
        };
        assert_eq!(
            (pod.name.as_str(), pod.service_account.as_str()),
            ("web", "default")
        );
        assert_eq!(pod.args, ["--http=8080"]);
        assert_eq!(pod.env["A"], "b");
    }
}
