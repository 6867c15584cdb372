//! What the mesh looks like to who runs it: the conditions of every object, and what each proxy has acknowledged. The admin
//! page serves it as JSON, the command `controlplane status` asks for that and prints it.

mod conditions;
mod text;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{clients::Client, mesh::Published, translate::Captured};

pub use text::{Shown, render};

/// The whole of it, of one state of the mesh.
pub(crate) fn status(
    published: &Published,
    (captured, failures): &(Captured, BTreeMap<String, String>),
    clients: &[Client],
) -> Value {
    let translation = &published.translation;
    let wanted = translation.wanted.values();
    let wanted: Vec<_> = wanted.flat_map(|pods| pods.keys()).collect();
    json!({
        "generation": published.generation,
        "objects": published.objects.counts(),
        "conditions": conditions::of(published, clients),
        "resources": {
            "address": translation.addresses.len(),
            "authorization": translation.authorizations.len(),
        },
        "issues": published.issues,
        "proxies": clients,
        "enrolment": { "wanted": wanted, "captured": captured, "failures": failures },
    })
}
