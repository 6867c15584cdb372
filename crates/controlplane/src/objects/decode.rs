//! From one document to typed, valid objects, or to the reasons why not.

mod mesh_config;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::objects::{
    document::{Document, Node, scan_header},
    field::{Field, Segment},
    key::{Kind, ObjectKey},
    mesh_config::MESH_CONFIG_NAME,
    secret::{ROOTS_KEY, TlsSecret, USED_KEYS},
    set::{Object, Severity},
    validate::{self, Invalid},
};

/// Whether a document says what an object is, or only its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The object.
    Whole,
    /// A document with `status` and no `spec`: what a kubelet or a controller would write.
    Status,
}

/// What one document (or one item of a list) defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) key: ObjectKey,
    pub(crate) part: Part,
}

/// A valid object. Lines are relative to the document.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    pub(crate) slot: Slot,
    pub(crate) object: Object,
    /// The `status` as written, of a status patch.
    pub(crate) status: Option<Value>,
    tree: Arc<Node>,
}

impl Decoded {
    /// The line of a field of the object, within the document.
    pub(crate) fn line_of(&self, field: &Field) -> u64 {
        self.tree.line_of(field.segments())
    }
}

/// Something wrong with a document. Lines are relative to the document.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// Whose last good version stays; `None` when the document does not tell.
    pub(crate) slot: Option<Slot>,
    pub(crate) line: Option<u64>,
    pub(crate) field: Option<Field>,
    pub(crate) reason: String,
    pub(crate) severity: Severity,
}

/// Everything one document says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parsed {
    pub(crate) objects: Vec<Arc<Decoded>>,
    pub(crate) problems: Vec<Problem>,
}

/// Reads one document.
pub(crate) fn decode_document(document: &Document) -> Parsed {
    let mut parsed = Parsed::default();
    match Node::parse(&document.text) {
        Ok(node) if node.is_null() => {}
        Ok(node) => decode_node(node, &mut parsed),
        Err(error) => parsed.problems.push(Problem {
            slot: slot_of_broken(&document.text),
            line: error.line,
            field: None,
            reason: format!("not valid YAML: {}", error.reason),
            severity: Severity::Rejected,
        }),
    }
    parsed
}

/// `None`, which holds all of the file, unless the text leaves no doubt: two objects run together where a `---` was lost
/// name the same keys twice, and what looks like a status may be an object whose `spec` line is the broken one.
fn slot_of_broken(text: &str) -> Option<Slot> {
    let header = scan_header(text)?;
    let kind = Kind::named(header.kind.as_deref()?)?;
    if header.has_status && !header.has_spec {
        return None;
    }
    Some(Slot {
        key: ObjectKey::new(kind, header.namespace.as_deref(), header.name.as_deref()?),
        part: Part::Whole,
    })
}

fn decode_node(node: Node, parsed: &mut Parsed) {
    let kind = node
        .child("kind")
        .and_then(Node::as_str)
        .unwrap_or_default();
    if kind == "List" || (kind.ends_with("List") && node.child("items").is_some()) {
        for item in node.items_of_list() {
            decode_object(item, parsed);
        }
    } else {
        decode_object(node, parsed);
    }
}

impl Node {
    fn items_of_list(&self) -> Vec<Self> {
        self.child("items")
            .map(|items| items.items().to_vec())
            .unwrap_or_default()
    }
}

fn decode_object(node: Node, parsed: &mut Parsed) {
    let slot = match classify(&node) {
        Ok(slot) => slot,
        Err(problem) => return parsed.problems.push(*problem),
    };
    let tree = Arc::new(node);
    match decode_kind(&slot, &tree) {
        Ok((object, status)) => parsed.objects.push(Arc::new(Decoded {
            slot,
            object,
            status,
            tree,
        })),
        Err(invalid) => parsed
            .problems
            .extend(invalid.into_iter().map(|invalid| Problem {
                slot: Some(slot.clone()),
                line: Some(tree.line_of(invalid.field.segments())),
                field: Some(invalid.field).filter(|field| !field.segments().is_empty()),
                reason: invalid.reason,
                severity: Severity::Rejected,
            })),
    }
}

/// Kind, version and name; everything that must be known before the rest can be read.
fn classify(node: &Node) -> Result<Slot, Box<Problem>> {
    let problem = |field: &str, reason: String, severity| {
        Box::new(Problem {
            slot: None,
            line: Some(node.line_of(Field::of(field).segments())),
            field: (!field.is_empty()).then(|| Field::of(field)),
            reason,
            severity,
        })
    };
    if !node.is_map() {
        let reason = "not a Kubernetes object: no apiVersion and kind".to_owned();
        return Err(problem("", reason, Severity::Rejected));
    }
    let text = |key: &str| node.child(key).and_then(Node::as_str);
    let (Some(api_version), Some(kind_name)) = (text("apiVersion"), text("kind")) else {
        let reason = "apiVersion and kind must both be set".to_owned();
        return Err(problem("", reason, Severity::Rejected));
    };
    let Some(kind) = Kind::named(kind_name) else {
        if let Some(meant) = Kind::meant_by(api_version, kind_name) {
            let reason = format!("{kind_name} is no kind; {meant} is meant?");
            return Err(problem("kind", reason, Severity::Rejected));
        }
        let reason =
            format!("{kind_name} ({api_version}) is not supported, the document has no effect");
        return Err(problem("kind", reason, Severity::Warning));
    };
    if !kind.api_versions().contains(&api_version) {
        let supported = kind.api_versions().join(", ");
        let reason =
            format!("{kind_name} of {api_version} is not supported; supported: {supported}");
        return Err(problem("apiVersion", reason, Severity::Rejected));
    }
    let metadata = node.child("metadata");
    let metadata_text = |key: &str| {
        metadata
            .and_then(|node| node.child(key))
            .and_then(Node::as_str)
    };
    let Some(name) = metadata_text("name").filter(|name| !name.is_empty()) else {
        let reason = "a name is required".to_owned();
        return Err(problem("metadata.name", reason, Severity::Rejected));
    };
    if let Some(reason) = of_no_use(kind, name, node) {
        return Err(problem("metadata.name", reason, Severity::Warning));
    }
    let has_status = node.child("status").is_some_and(|status| !status.is_null());
    let part = if has_status && node.child("spec").is_none() && has_status_patch(kind) {
        Part::Status
    } else {
        Part::Whole
    };
    Ok(Slot {
        key: ObjectKey::new(kind, metadata_text("namespace"), name),
        part,
    })
}

/// Why nobody reads a Secret or a ConfigMap.
fn of_no_use(kind: Kind, name: &str, node: &Node) -> Option<String> {
    let has_key = |keys: &[&str]| {
        let maps = ["data", "stringData"];
        let mut maps = maps.iter().filter_map(|at| node.child(at));
        maps.any(|map| keys.iter().any(|key| map.child(key).is_some()))
    };
    if kind == Kind::ConfigMap && name != MESH_CONFIG_NAME && !has_key(&[ROOTS_KEY]) {
        let reason = "a ConfigMap that is not called istio and has no ca.crt has no effect";
        return Some(reason.to_owned());
    }
    (kind == Kind::Secret && !has_key(&USED_KEYS)).then(|| {
        let keys = USED_KEYS.join(", ");
        format!("a Secret with none of {keys} has no effect")
    })
}

fn has_status_patch(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service
    )
}

type KindResult = Result<(Object, Option<Value>), Vec<Invalid>>;

fn decode_kind(slot: &Slot, tree: &Node) -> KindResult {
    let (kind, part) = (slot.key.kind, slot.part);
    let mut value = tree.to_value();
    quantities_to_text(&mut value);
    let status = (part == Part::Status)
        .then(|| value.get("status").cloned())
        .flatten();
    let object = match kind {
        Kind::Namespace => Object::Namespace(strict(value, validate::namespace)?),
        Kind::Node => Object::Node(strict(value, validate::node)?),
        Kind::ServiceAccount => Object::ServiceAccount(strict(value, validate::service_account)?),
        Kind::Pod if part == Part::Status => Object::Pod(strict(value, validate::pod_status)?),
        Kind::Pod => Object::Pod(strict(value, validate::pod)?),
        Kind::Service if part == Part::Status => {
            Object::Service(strict(value, validate::service_status)?)
        }
        Kind::Service => Object::Service(strict(value, validate::service)?),
        Kind::EndpointSlice => Object::EndpointSlice(strict(value, validate::endpoint_slice)?),
        Kind::AuthorizationPolicy => {
            Object::AuthorizationPolicy(strict(value, validate::authorization_policy)?)
        }
        Kind::PeerAuthentication => {
            Object::PeerAuthentication(strict(value, validate::peer_authentication)?)
        }
        Kind::Gateway => Object::Gateway(strict(value, validate::gateway)?),
        Kind::GatewayClass => Object::GatewayClass(strict(value, validate::gateway_class)?),
        Kind::ServiceEntry => Object::ServiceEntry(strict(value, validate::service_entry)?),
        Kind::WorkloadEntry => Object::WorkloadEntry(strict(value, validate::workload_entry)?),
        Kind::RequestAuthentication => {
            Object::RequestAuthentication(strict(value, validate::request_authentication)?)
        }
        Kind::VirtualService => Object::VirtualService(strict(value, validate::virtual_service)?),
        Kind::DestinationRule => {
            Object::DestinationRule(strict(value, validate::destination_rule)?)
        }
        Kind::Telemetry => Object::Telemetry(strict(value, validate::telemetry)?),
        Kind::ProxyConfig => Object::ProxyConfig(strict(value, validate::proxy_config)?),
        Kind::EnvoyFilter => Object::EnvoyFilter(strict(value, validate::envoy_filter)?),
        Kind::HttpRoute => Object::HttpRoute(strict(value, validate::http_route)?),
        Kind::GrpcRoute => Object::GrpcRoute(strict(value, validate::grpc_route)?),
        Kind::TcpRoute => Object::TcpRoute(strict(value, validate::tcp_route)?),
        Kind::TlsRoute => Object::TlsRoute(strict(value, validate::tls_route)?),
        Kind::ReferenceGrant => Object::ReferenceGrant(strict(value, validate::reference_grant)?),
        Kind::RateLimit => Object::RateLimit(strict(value, validate::rate_limit)?),
        Kind::BackendTlsPolicy => {
            Object::BackendTlsPolicy(strict(value, validate::backend_tls_policy)?)
        }
        Kind::ConfigMap if slot.key.name == MESH_CONFIG_NAME => {
            Object::MeshConfig(mesh_config::decode(value)?)
        }
        Kind::ConfigMap => Object::CaBundle(ca_bundle(value)?),
        Kind::Secret => Object::Secret(secret(value)?),
    };
    Ok((object, status))
}

fn ca_bundle(value: Value) -> Result<Arc<TlsSecret>, Vec<Invalid>> {
    let map = strict(value, validate::ca_bundle)?;
    Ok(Arc::new(TlsSecret::of_config_map(&map)))
}

fn secret(value: Value) -> Result<Arc<TlsSecret>, Vec<Invalid>> {
    let secret = strict(value, validate::secret).map_err(without_values)?;
    Ok(Arc::new(TlsSecret::of_secret(&secret)))
}

/// Errors of decoding may quote what they found.
fn without_values(mut found: Vec<Invalid>) -> Vec<Invalid> {
    for one in &mut found {
        if one.reason.contains("invalid type") || one.reason.contains("invalid value") {
            one.reason = "is not what a Secret has there".to_owned();
        }
    }
    found
}

/// Decodes as an API server would with strict field validation: an unknown field is an error.
fn strict<T: DeserializeOwned>(
    value: Value,
    check: impl FnOnce(&T, &mut Vec<Invalid>),
) -> Result<Arc<T>, Vec<Invalid>> {
    let mut found = Vec::new();
    let decoded = typed::<T>(value, &mut |unknown| {
        found.push(Invalid {
            field: unknown,
            reason: "unknown field".to_owned(),
        });
    });
    match decoded {
        Ok(object) => {
            check(&object, &mut found);
            if found.is_empty() {
                Ok(Arc::new(object))
            } else {
                Err(found)
            }
        }
        Err(error) => {
            found.push(error);
            Err(found)
        }
    }
}

/// Decodes and tells of fields that the type does not have. `unknown` is behind a pointer so that what objects have in
/// common, which is much, is compiled once.
fn typed<T: DeserializeOwned>(value: Value, unknown: &mut dyn FnMut(Field)) -> Result<T, Invalid> {
    let mut track = serde_path_to_error::Track::new();
    let mut told = |path: serde_ignored::Path<'_>| unknown(Field::from_ignored(&path));
    let mut told: &mut dyn FnMut(serde_ignored::Path<'_>) = &mut told;
    let value = serde_path_to_error::Deserializer::new(value, &mut track);
    let value = serde_ignored::Deserializer::new(value, &mut told);
    T::deserialize(value).map_err(|error| Invalid {
        field: Field::from_error(&track.path()),
        reason: error.to_string(),
    })
}

/// `cpu: 1` is a quantity for Kubernetes; the typed objects want text.
fn quantities_to_text(value: &mut Value) {
    const MAPS: [&str; 6] = [
        "limits",
        "requests",
        "capacity",
        "allocatable",
        "overhead",
        "allocatedResources",
    ];
    match value {
        Value::Object(entries) => {
            for (key, child) in entries {
                match child {
                    Value::Object(quantities) if MAPS.contains(&key.as_str()) => {
                        quantities.values_mut().for_each(number_to_text);
                    }
                    Value::Number(_) if key == "sizeLimit" || key == "divisor" => {
                        number_to_text(child)
                    }
                    _ => quantities_to_text(child),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn number_to_text(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
}

/// RFC 7386, for a status patch over the status that the object's own document carries.
pub(crate) fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, change) in patch {
        if change.is_null() {
            target.remove(key);
        } else {
            merge_patch(target.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// A path given as text by later stages, such as `spec.rules[0].to[1]`.
pub(crate) fn field_from_text(text: &str) -> Field {
    let mut field = Field::default();
    for part in text.split('.') {
        let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
        field = field.key(key);
        for index in indexes
            .split('[')
            .filter_map(|index| index.trim_end_matches(']').parse().ok())
        {
            field = field.index(index);
        }
    }
    debug_assert!(
        field
            .segments()
            .iter()
            .all(|segment| *segment != Segment::Key(String::new()))
    );
    field
}
