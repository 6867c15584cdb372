//! `gateway.networking.k8s.io` Gateway, with every field that a valid object may have, so that an unknown one is found.
//! What a mesh does not read is kept as it was written.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::l7::Custom;

/// The class of waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";
/// The class of gateways that let other networks in.
pub const EAST_WEST_CLASS: &str = "istio-east-west";
/// The class that stands for the gateway of another cluster.
pub const REMOTE_CLASS: &str = "istio-remote";
/// The protocol of a tunnel's listener.
pub const HBONE: &str = "HBONE";

/// The controllers of waypoints and of other networks' gateways, which we take the place of.
pub const MESH_CONTROLLERS: [&str; 2] =
    ["istio.io/mesh-controller", "istio.io/eastwest-controller"];

/// Who makes the Gateways of a class work. The classes themselves are known by their names.
pub type GatewayClass = Custom<GatewayClassSpec>;

/// The body of a GatewayClass.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Such as `istio.io/mesh-controller`.
    pub controller_name: String,
    /// For people.
    pub description: Option<String>,
    /// Settings of the class.
    pub parameters_ref: Option<Value>,
}

/// A place where traffic goes through.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    api_version: String,
    #[expect(
        dead_code,
        reason = "checked when the document was classified; named so that it is not unknown"
    )]
    kind: String,
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it listens on.
    pub spec: GatewaySpec,
    /// Where it is.
    #[serde(default)]
    pub status: GatewayStatus,
}

/// The body of a Gateway.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Who makes it work.
    pub gateway_class_name: String,
    /// What it listens on.
    #[serde(default)]
    pub listeners: Vec<GatewayListener>,
    /// Where it is, or shall be.
    #[serde(default)]
    pub addresses: Vec<GatewayAddress>,
    /// For the objects made for it.
    pub infrastructure: Option<Value>,
    /// Which other objects may add listeners.
    pub allowed_listeners: Option<Value>,
    /// TLS of all listeners.
    pub tls: Option<Value>,
    /// How far routes without a parent reach.
    pub default_scope: Option<String>,
}

/// One listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayListener {
    /// Its name.
    pub name: String,
    /// Host names that it is for.
    pub hostname: Option<String>,
    /// Its port.
    pub port: i32,
    /// What is spoken on it.
    pub protocol: String,
    /// Its TLS.
    pub tls: Option<Value>,
    /// Who may attach to it.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may attach to a listener.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AllowedRoutes {
    /// From which namespaces.
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds.
    pub kinds: Option<Value>,
}

/// Namespaces whose objects may attach.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RouteNamespaces {
    /// `Same` when absent.
    pub from: Option<String>,
    /// With `Selector`, the labels of the namespaces.
    pub selector: Option<LabelSelector>,
}

/// An address of a Gateway.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GatewayAddress {
    /// `IPAddress` when absent.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// The address.
    #[serde(default)]
    pub value: String,
}

/// Written by the controller of the class.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it is.
    #[serde(default)]
    pub addresses: Vec<GatewayAddress>,
    /// Whether it works.
    pub conditions: Option<Value>,
    /// Its listeners.
    pub listeners: Option<Value>,
    /// Listeners that others have added.
    pub attached_listener_sets: Option<Value>,
}

impl Gateway {
    /// Whether it is of a class.
    pub fn is_of_class(&self, class: &str) -> bool {
        self.spec.gateway_class_name == class
    }

    /// A label with a value.
    pub fn label(&self, key: &str) -> Option<&str> {
        find(self.metadata.labels.as_ref(), key)
    }

    /// An annotation with a value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        find(self.metadata.annotations.as_ref(), key)
    }

    /// The port of the listener for tunnels.
    pub fn hbone_port(&self) -> Option<u16> {
        let listener = self.spec.listeners.iter().find(|l| l.protocol == HBONE)?;
        u16::try_from(listener.port).ok()
    }
}

fn find<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    let value = map?.get(key)?;
    (!value.is_empty()).then_some(value.as_str())
}
