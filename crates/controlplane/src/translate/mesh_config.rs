//! The user's settings of the whole mesh: from the ConfigMap `istio` of the root namespace, with a warning for each field
//! that is not acted on.

use std::sync::Arc;

use leyline_types::NamespacedName;

use super::{Advice, MeshSettings};
use crate::objects::{
    Kind, ObjectKey, Objects,
    mesh_config::{MeshConfig, MeshConfigMap},
};

/// The text of the ConfigMap.
const FIELD: &str = "data.mesh";

/// The settings; Istio's defaults without a ConfigMap.
pub(super) fn of(
    objects: &Objects,
    mesh: &MeshSettings,
    advice: &mut Vec<Advice>,
) -> Arc<MeshConfig> {
    let root = mesh.root_namespace.as_str();
    let mut say = |name: &NamespacedName, field: &str, reason: String| {
        let namespace = Some(name.namespace.as_str());
        advice.push(Advice {
            object: ObjectKey::new(Kind::ConfigMap, namespace, name.name.as_str()),
            field: field.to_owned(),
            reason,
        });
    };
    for (name, map) in &objects.mesh_configs {
        if name.namespace.as_str() != root {
            let reason = format!("has no effect outside of the root namespace {root}");
            say(name, "metadata.namespace", reason);
            continue;
        }
        for field in &map.unknown {
            say(name, FIELD, format!("{field} is not acted on"));
        }
        for provider in untyped(map) {
            let reason = format!("provider {provider} is of a kind that is not supported");
            say(name, FIELD, reason);
        }
    }
    let map = objects.mesh_config(root);
    map.map_or_else(Arc::default, |map| Arc::new(map.mesh.clone()))
}

/// Providers that only have a name here: what names them cannot be done.
fn untyped(map: &MeshConfigMap) -> impl Iterator<Item = &str> {
    let providers = map.mesh.extension_providers.iter();
    let providers = providers.filter(|provider| provider.kinds() == 0);
    providers.map(|provider| provider.name.as_str())
}
