//! EnvoyFilter: what Istio's admission refuses.

use super::{
    Invalid,
    http::{each, one_of},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::envoy_filter::{ConfigPatch, EnvoyFilter},
};

const PLACES: [&str; 14] = [
    "LISTENER",
    "FILTER_CHAIN",
    "NETWORK_FILTER",
    "HTTP_FILTER",
    "ROUTE_CONFIGURATION",
    "VIRTUAL_HOST",
    "HTTP_ROUTE",
    "CLUSTER",
    "EXTENSION_CONFIG",
    "BOOTSTRAP",
    "LISTENER_FILTER",
    "SCOPED_ROUTE",
    "CLUSTER_LOAD_ASSIGNMENT",
    "INVALID",
];

const OPERATIONS: [&str; 8] = [
    "MERGE",
    "ADD",
    "REMOVE",
    "INSERT_BEFORE",
    "INSERT_AFTER",
    "INSERT_FIRST",
    "REPLACE",
    "INVALID",
];

/// EnvoyFilter.
pub(crate) fn envoy_filter(object: &EnvoyFilter, found: &mut Vec<Invalid>) {
    metadata_of(Kind::EnvoyFilter, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    if !spec.target_refs.is_empty() && spec.workload_selector.is_some() {
        push(
            found,
            field.key("workloadSelector"),
            "cannot be combined with targetRefs",
        );
    }
    let field = field.key("configPatches");
    each(&field, &spec.config_patches, found, patch);
}

fn patch(field: &Field, patch: &ConfigPatch, found: &mut Vec<Invalid>) {
    one_of(&field.key("applyTo"), &patch.apply_to, &PLACES, found);
    let field = field.key("patch").key("operation");
    one_of(&field, &patch.patch.operation, &OPERATIONS, found);
}
