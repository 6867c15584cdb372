//! Fields that are understood and not acted on: each is told as advice, with its place and what happens instead, so that
//! nothing of an object is ignored in silence. What no kind has is found when it is read (`objects::decode`); what refers to
//! nothing is found by `waypoint::findings`; filters, telemetry and mesh settings tell of their own parts.

mod backend_tls;
mod destination_rules;
mod gateways;
mod keys;
mod pods;
mod proxy_configs;
mod routes;
mod security;

use leyline_types::NamespacedName;

use super::{Advice, MeshSettings};
use crate::objects::{Kind, ObjectKey, Objects};

/// Tells of one object.
struct Teller<'a> {
    object: ObjectKey,
    advice: &'a mut Vec<Advice>,
}

impl<'a> Teller<'a> {
    fn new(kind: Kind, name: &NamespacedName, advice: &'a mut Vec<Advice>) -> Self {
        Self {
            object: ObjectKey::new(kind, Some(name.namespace.as_str()), name.name.as_str()),
            advice,
        }
    }

    fn tell(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.advice.push(Advice {
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
        });
    }

    fn tell_if(&mut self, holds: bool, field: impl Into<String>, reason: &str) {
        if holds {
            self.tell(field, reason);
        }
    }
}

/// Tells of everything.
pub(super) fn advise(objects: &Objects, mesh: &MeshSettings, advice: &mut Vec<Advice>) {
    keys::advise(objects, advice);
    gateways::advise(objects, advice);
    pods::advise(objects, advice);
    routes::virtual_services(objects, mesh, advice);
    routes::of_gateway_api(objects, mesh, advice);
    destination_rules::advise(objects, advice);
    backend_tls::advise(objects, advice);
    proxy_configs::advise(objects, advice);
    security::advise(objects, advice);
    for (name, limit) in &objects.rate_limits {
        let mut teller = Teller::new(Kind::RateLimit, name, advice);
        let limits = limit.spec.limits.iter().enumerate();
        for (index, one) in limits.filter(|_| limit.spec.global.is_some()) {
            teller.tell_if(
                one.burst.is_some_and(|burst| burst > 0),
                format!("spec.limits[{index}].burst"),
                "has no effect: a rate limit service knows no bursts",
            );
        }
    }
}
