//! Waypoints: Gateways of class `istio-waypoint`, and which objects are served by which.
//!
//! A label that names a Gateway that does not exist still names a waypoint: node proxies do not find it and refuse, so that
//! what its policies would refuse does not get through while it is missing.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use leyline_proto::istio::workload::{
    ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress, WeightedGatewayAddress,
    application_tunnel, gateway_address,
};
use leyline_types::NamespacedName;

use super::{
    Advice, MeshSettings, networks::Networks, selects, services::address_bytes, workloads,
};
use crate::objects::{
    EAST_WEST_CLASS, Gateway, ObjectKey, Objects, REMOTE_CLASS, RouteNamespaces, WAYPOINT_CLASS,
};

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const USE_CANARY: &str = "istio.io/use-waypoint-canary";
const USE_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// On a Gateway: the older way to attach, one waypoint for the pods of one service account.
const FOR_ACCOUNT: &str = "istio.io/for-service-account";
/// On an object made by the controller of a class of gateways.
const MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_VALUES: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];
/// On the pods of a Gateway.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
const HBONE_PORT: u16 = 15008;

type Labels = BTreeMap<String, String>;

/// What the labels of an object say of its waypoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached<'a> {
    /// The object.
    pub(super) object: &'a ObjectKey,
    pub(super) labels: Option<&'a Labels>,
    pub(super) annotations: Option<&'a Labels>,
    /// The service account of the pod, or of all pods of the service.
    pub(super) account: Option<&'a str>,
}

/// How an object's traffic reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// By the name or address of a service.
    Service,
    /// By the address of a workload.
    Workload,
}

/// The waypoints of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceWaypoints {
    pub(super) waypoint: Option<GatewayAddress>,
    /// With a canary beside it.
    pub(super) weighted: Vec<WeightedGatewayAddress>,
    /// The Gateways.
    pub(super) names: BTreeSet<NamespacedName>,
}

/// All waypoints.
pub(super) struct Waypoints<'a> {
    objects: &'a Objects,
    cluster_domain: &'a str,
    network: &'a str,
    gateways: BTreeMap<&'a NamespacedName, &'a Gateway>,
    /// Those for one service account, by namespace and account.
    by_account: BTreeMap<(&'a str, &'a str), &'a NamespacedName>,
}

/// The name that labels give, and whether they are the object's own.
struct Named {
    gateway: NamespacedName,
    own: bool,
}

impl<'a> Waypoints<'a> {
    pub(super) fn new(
        objects: &'a Objects,
        mesh: &'a MeshSettings,
        networks: &'a Networks,
    ) -> Self {
        let gateways = objects.gateways.iter();
        let gateways: BTreeMap<&NamespacedName, &Gateway> = gateways
            .filter(|(_, gateway)| gateway.is_of_class(WAYPOINT_CLASS))
            .map(|(name, gateway)| (name, &**gateway))
            .collect();
        let of_accounts = gateways.iter().filter_map(|(name, gateway)| {
            let account = gateway.annotation(FOR_ACCOUNT)?;
            Some(((name.namespace.as_str(), account), *name))
        });
        Self {
            objects,
            cluster_domain: &mesh.cluster_domain,
            network: networks.own(),
            by_account: of_accounts.collect(),
            gateways,
        }
    }

    /// The service account of all pods of a service, where some Gateway is for one account.
    pub(super) fn account_of(&self, name: &NamespacedName, service: &Service) -> Option<&'a str> {
        let namespace = name.namespace.as_str();
        let mut known = self.by_account.keys();
        if !known.any(|(of, _)| *of == namespace) {
            return None;
        }
        let selector = service.spec.as_ref()?.selector.as_ref()?;
        let pods = self.objects.pods.values().filter(|pod| {
            workloads::is_live(pod)
                && workloads::namespace_of(pod) == namespace
                && selects(selector, pod.metadata.labels.as_ref())
        });
        let accounts: BTreeSet<&str> = pods.map(|pod| workloads::service_account_of(pod)).collect();
        match accounts.len() {
            1 => accounts.first().copied(),
            _ => None,
        }
    }

    /// Where each is.
    pub(super) fn addresses(&self) -> Vec<(GatewayAddress, NamespacedName)> {
        let all = self.gateways.iter();
        all.map(|(name, gateway)| (self.address(name, gateway), NamespacedName::clone(name)))
            .collect()
    }

    /// All Gateways of the class.
    pub(super) fn names(&self) -> BTreeSet<NamespacedName> {
        self.gateways.keys().map(|name| (*name).clone()).collect()
    }

    /// The waypoints of a service, or of a host of a ServiceEntry.
    pub(super) fn of_service(
        &self,
        attached: Attached<'_>,
        advice: &mut Vec<Advice>,
    ) -> ServiceWaypoints {
        let Some((name, waypoint)) = self.resolve(attached, Traffic::Service, advice) else {
            return ServiceWaypoints::default();
        };
        let mut found = ServiceWaypoints {
            waypoint: Some(waypoint.clone()),
            weighted: Vec::new(),
            names: BTreeSet::from([name.clone()]),
        };
        if let Some((canary, address, weight)) = self.canary(attached, &name, advice) {
            found.names.insert(canary);
            found.weighted = vec![
                WeightedGatewayAddress {
                    destination: Some(waypoint),
                    weight: 100 - weight,
                },
                WeightedGatewayAddress {
                    destination: Some(address),
                    weight,
                },
            ];
        }
        found
    }

    /// The waypoint of traffic by a pod's address.
    pub(super) fn of_workload(
        &self,
        attached: Attached<'_>,
        advice: &mut Vec<Advice>,
    ) -> Option<GatewayAddress> {
        self.resolve(attached, Traffic::Workload, advice)
            .map(|(_, waypoint)| waypoint)
    }

    fn resolve(
        &self,
        attached: Attached<'_>,
        traffic: Traffic,
        advice: &mut Vec<Advice>,
    ) -> Option<(NamespacedName, GatewayAddress)> {
        let Named { gateway: name, own } = self.named(attached)?;
        let mut advise = |reason: String| advice.push(advice_on(attached.object, USE, reason));
        let Some(gateway) = self.gateways.get(&name) else {
            advise(format!(
                "there is no Gateway {name} of class {WAYPOINT_CLASS}: traffic is refused until there is"
            ));
            let waypoint = self.by_convention(&name);
            return Some((name, waypoint));
        };
        if !is_for(gateway, traffic) {
            if own {
                let what = match traffic {
                    Traffic::Service => "services",
                    Traffic::Workload => "workloads",
                };
                advise(format!(
                    "waypoint {name} is not for traffic to {what} (label {WAYPOINT_FOR}), it is not used"
                ));
            }
            return None;
        }
        if !self.admits(gateway, &name, &attached.object.namespace) {
            advise(format!(
                "waypoint {name} does not allow objects of this namespace (allowedRoutes), it is not used"
            ));
            return None;
        }
        let waypoint = self.address(&name, gateway);
        Some((name, waypoint))
    }

    /// The object's own label, else that of its namespace; `none` opts out.
    fn named(&self, attached: Attached<'_>) -> Option<Named> {
        let namespace = &attached.object.namespace;
        let of_namespace = self.objects.namespaces.get(namespace);
        let of_namespace = of_namespace.and_then(|ns| ns.metadata.labels.as_ref());
        let (labels, own) = match label(attached.labels, USE) {
            Some(_) => (attached.labels, true),
            None => (of_namespace, false),
        };
        let account = attached
            .account
            .map(|account| (namespace.as_str(), account));
        let of_account = account.and_then(|key| self.by_account.get(&key));
        if let Some(name) = of_account.filter(|_| !own) {
            let gateway = NamespacedName::clone(name);
            return Some(Named { gateway, own });
        }
        let name = label(labels, USE).filter(|name| *name != "none")?;
        let gateway = NamespacedName {
            namespace: label(labels, USE_NAMESPACE).unwrap_or(namespace).into(),
            name: name.into(),
        };
        Some(Named { gateway, own })
    }

    /// A second waypoint with its share in percent.
    fn canary(
        &self,
        attached: Attached<'_>,
        primary: &NamespacedName,
        advice: &mut Vec<Advice>,
    ) -> Option<(NamespacedName, GatewayAddress, u32)> {
        let name = label(attached.labels, USE_CANARY)?;
        let namespace = label(attached.labels, USE_CANARY_NAMESPACE);
        let canary = NamespacedName {
            namespace: namespace.unwrap_or(&attached.object.namespace).into(),
            name: name.into(),
        };
        let mut refuse = |reason: &str| {
            let reason = format!("{reason}, the canary is not used");
            advice.push(advice_on(attached.object, USE_CANARY, reason));
            None
        };
        let weight = label(attached.annotations, CANARY_WEIGHT).unwrap_or("0");
        let Some(weight) = weight.parse::<u32>().ok().filter(|weight| *weight <= 100) else {
            return refuse("its weight is not a number from 0 to 100");
        };
        if canary == *primary {
            return refuse("it is the waypoint itself");
        }
        let Some(gateway) = self.gateways.get(&canary) else {
            return refuse("there is no such waypoint");
        };
        if !is_for(gateway, Traffic::Service)
            || !self.admits(gateway, &canary, &attached.object.namespace)
        {
            return refuse("that waypoint does not take this service");
        }
        let address = self.address(&canary, gateway);
        Some((canary, address, weight))
    }

    fn admits(&self, gateway: &Gateway, name: &NamespacedName, namespace: &str) -> bool {
        let listener = gateway.spec.listeners.first();
        let allowed = listener
            .and_then(|listener| listener.allowed_routes.as_ref())
            .and_then(|routes| routes.namespaces.as_ref());
        let same = name.namespace == *namespace;
        match allowed.map(|allowed| (allowed.from.as_deref(), allowed)) {
            None | Some((None | Some("Same"), _)) => same,
            Some((Some("All"), _)) => true,
            Some((Some("Selector"), RouteNamespaces { selector, .. })) => {
                let namespace = self.objects.namespaces.get(namespace);
                let labels = namespace.and_then(|ns| ns.metadata.labels.as_ref());
                selector
                    .as_ref()
                    .is_some_and(|selector| matches_labels(selector, labels))
            }
            Some((Some(_), _)) => false,
        }
    }

    /// Where a waypoint says that it is: a host name rather than an address, else as if it had been made by convention.
    fn address(&self, name: &NamespacedName, gateway: &Gateway) -> GatewayAddress {
        let said = gateway.status.addresses.iter();
        let said: Vec<_> = said
            .chain(&gateway.spec.addresses)
            .filter(|address| !address.value.is_empty())
            .collect();
        let port = u32::from(gateway.hbone_port().unwrap_or(HBONE_PORT));
        let host = said.iter().find(|a| a.type_.as_deref() == Some("Hostname"));
        if let Some(host) = host {
            let hostname = host.value.to_ascii_lowercase();
            // `name.namespace.svc.…`; another host is one of the Gateway's own namespace.
            let mut parts = hostname.split('.');
            let namespace = parts
                .nth(1)
                .filter(|_| parts.next() == Some("svc"))
                .unwrap_or(name.namespace.as_str())
                .to_owned();
            return by_name(namespace, hostname, port);
        }
        match said.iter().find_map(|a| a.value.parse().ok()) {
            Some(address) => GatewayAddress {
                hbone_mtls_port: port,
                destination: Some(gateway_address::Destination::Address(NetworkAddress {
                    network: self.network.to_owned(),
                    address: address_bytes(address),
                    length: None,
                })),
            },
            None => self.by_convention(name),
        }
    }

    /// The Service of the Gateway's name.
    fn by_convention(&self, name: &NamespacedName) -> GatewayAddress {
        let hostname = format!(
            "{}.{}.svc.{}",
            name.name, name.namespace, self.cluster_domain
        );
        by_name(name.namespace.to_string(), hostname, u32::from(HBONE_PORT))
    }

    /// Whether a service is that of a gateway, which has no waypoint itself.
    pub(super) fn is_gateway_service(&self, name: &NamespacedName, service: &Service) -> bool {
        let managed = label(service.metadata.labels.as_ref(), MANAGED);
        managed.is_some_and(|value| MANAGED_VALUES.contains(&value))
            || self.objects.gateways.get(name).is_some_and(is_of_mesh)
    }

    /// The Gateway that a pod is an instance of; such a pod has no waypoint itself.
    pub(super) fn gateway_of(&self, pod: &Pod) -> Option<(NamespacedName, &'a Gateway)> {
        let name = NamespacedName {
            namespace: workloads::namespace_of(pod).into(),
            name: label(pod.metadata.labels.as_ref(), GATEWAY_NAME)?.into(),
        };
        let gateway = self.objects.gateways.get(&name).filter(is_of_mesh_ref)?;
        Some((name, &**gateway))
    }

    /// How a waypoint behind a node proxy wants its tunnels.
    pub(super) fn application_tunnel(&self, pod: &Pod) -> Option<ApplicationTunnel> {
        let (_, gateway) = self.gateway_of(pod)?;
        let binding = gateway.annotation(INBOUND_BINDING)?;
        let (protocol, port) = binding.split_once('/').unwrap_or((binding, "0"));
        let protocol = match protocol {
            "NONE" => application_tunnel::Protocol::None,
            "PROXY" => application_tunnel::Protocol::Proxy,
            _ => return None,
        };
        Some(ApplicationTunnel {
            protocol: protocol.into(),
            port: port.parse::<u16>().ok()?.into(),
        })
    }

    /// Namespace and service accounts of the pods of a waypoint; by convention the account of its name.
    pub(super) fn accounts(&self, name: &NamespacedName) -> BTreeSet<(String, String)> {
        let of_pods: BTreeSet<_> = self
            .objects
            .pods
            .values()
            .filter(|pod| {
                workloads::is_live(pod) && workloads::namespace_of(pod) == name.namespace.as_str()
            })
            .filter(|pod| self.is_instance(name, pod))
            .map(|pod| workloads::service_account_of(pod).to_owned())
            .map(|account| (name.namespace.to_string(), account))
            .collect();
        if !of_pods.is_empty() {
            return of_pods;
        }
        let gateway = self.gateways.get(name);
        let account = gateway.and_then(|gateway| gateway.annotation(SERVICE_ACCOUNT));
        let account = account.unwrap_or(name.name.as_str()).to_owned();
        BTreeSet::from([(name.namespace.to_string(), account)])
    }

    fn is_instance(&self, name: &NamespacedName, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        let service = self.objects.services.get(name);
        let selector = service
            .and_then(|service| service.spec.as_ref())
            .and_then(|spec| spec.selector.as_ref());
        label(labels, GATEWAY_NAME) == Some(name.name.as_str())
            || selector.is_some_and(|selector| selects(selector, labels))
    }
}

fn is_of_mesh(gateway: &std::sync::Arc<Gateway>) -> bool {
    [WAYPOINT_CLASS, EAST_WEST_CLASS, REMOTE_CLASS]
        .iter()
        .any(|class| gateway.is_of_class(class))
}

fn is_of_mesh_ref(gateway: &&std::sync::Arc<Gateway>) -> bool {
    is_of_mesh(gateway)
}

fn is_for(gateway: &Gateway, traffic: Traffic) -> bool {
    // Those for one account came before there was a choice.
    let unsaid = match gateway.annotation(FOR_ACCOUNT) {
        Some(_) => "all",
        None => "service",
    };
    match gateway.label(WAYPOINT_FOR).unwrap_or(unsaid) {
        "all" => true,
        "service" => traffic == Traffic::Service,
        "workload" => traffic == Traffic::Workload,
        _ => false,
    }
}

fn by_name(namespace: String, hostname: String, port: u32) -> GatewayAddress {
    GatewayAddress {
        hbone_mtls_port: port,
        destination: Some(gateway_address::Destination::Hostname(NamespacedHostname {
            namespace,
            hostname,
        })),
    }
}

fn label<'a>(labels: Option<&'a Labels>, key: &str) -> Option<&'a str> {
    let value = labels?.get(key)?;
    (!value.is_empty()).then_some(value.as_str())
}

/// As Kubernetes does: an empty selector matches everything.
fn matches_labels(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let has = |key: &String| labels.and_then(|labels| labels.get(key));
    let by_label = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| has(key) == Some(value));
    let by_expression = |one: &LabelSelectorRequirement| {
        let among = |value: &String| one.values.iter().flatten().any(|wanted| wanted == value);
        match one.operator.as_str() {
            "In" => has(&one.key).is_some_and(among),
            "NotIn" => !has(&one.key).is_some_and(among),
            "Exists" => has(&one.key).is_some(),
            "DoesNotExist" => has(&one.key).is_none(),
            _ => false,
        }
    };
    by_label
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(by_expression)
}

fn advice_on(object: &ObjectKey, label: &str, reason: String) -> Advice {
    Advice {
        object: object.clone(),
        field: format!("metadata.labels.{label}"),
        reason,
    }
}
