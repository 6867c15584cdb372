//! Gateways of the mesh's own classes. What is under `infrastructure` is for who makes their pods.

use super::Teller;
use crate::{
    objects::{
        EAST_WEST_CLASS, Kind, MESH_CONTROLLERS, ObjectKey, Objects, REMOTE_CLASS, WAYPOINT_CLASS,
    },
    translate::Advice,
};

const FOR: [&str; 4] = ["service", "workload", "all", "none"];

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    classes(objects, advice);
    for (name, gateway) in &objects.gateways {
        if !gateway.is_of_class(WAYPOINT_CLASS) {
            continue;
        }
        let mut teller = Teller::new(Kind::Gateway, name, advice);
        if let Some(value) = gateway.label("istio.io/waypoint-for")
            && !FOR.contains(&value)
        {
            let reason = format!("`{value}` is none of {}: it is not used", FOR.join(", "));
            teller.tell("metadata.labels.istio.io/waypoint-for", reason);
        }
        let spec = &gateway.spec;
        let unused = "has no effect on a waypoint";
        teller.tell_if(spec.tls.is_some(), "spec.tls", unused);
        teller.tell_if(
            spec.allowed_listeners.is_some(),
            "spec.allowedListeners",
            unused,
        );
        teller.tell_if(spec.default_scope.is_some(), "spec.defaultScope", unused);
        // There is one, which is validated.
        let Some(listener) = spec.listeners.first() else {
            continue;
        };
        let field = "spec.listeners[0]";
        teller.tell_if(
            listener.hostname.is_some(),
            format!("{field}.hostname"),
            unused,
        );
        teller.tell_if(listener.tls.is_some(), format!("{field}.tls"), unused);
        let allowed = listener.allowed_routes.as_ref();
        let kinds = allowed.and_then(|allowed| allowed.kinds.as_ref());
        let kinds = kinds.and_then(|kinds| kinds.as_array());
        teller.tell_if(
            kinds.is_some_and(|kinds| !kinds.is_empty()),
            format!("{field}.allowedRoutes.kinds"),
            unused,
        );
    }
}

/// Gateways are served by the names of their classes, whatever the object of the class says.
fn classes(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, class) in &objects.gateway_classes {
        let mut teller = Teller {
            object: ObjectKey::new(Kind::GatewayClass, None, name),
            advice,
        };
        let controller = class.spec.controller_name.as_str();
        let known = [WAYPOINT_CLASS, EAST_WEST_CLASS, REMOTE_CLASS].contains(&name.as_str());
        let ours = MESH_CONTROLLERS.contains(&controller);
        teller.tell_if(
            known && !ours,
            "spec.controllerName",
            "is not the controller of this class: its Gateways are served here all the same",
        );
        teller.tell_if(
            ours && !known,
            "metadata.name",
            "is no class that is known here: its Gateways are not served",
        );
        teller.tell_if(
            known && class.spec.parameters_ref.is_some(),
            "spec.parametersRef",
            "has no effect: there is nothing to set for a whole class",
        );
    }
}
