//! RequestAuthentications. AuthorizationPolicies are told of where they are translated.

use super::Teller;
use crate::{
    objects::{Kind, Objects},
    translate::Advice,
};

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, authentication) in &objects.request_authentications {
        let spec = &authentication.spec;
        if !spec.target_refs.is_empty() || spec.target_ref.is_some() {
            continue;
        }
        let field = if spec.selector.is_some() {
            "spec.selector"
        } else {
            "spec"
        };
        let reason = "has no effect without targetRefs: only waypoints verify tokens";
        Teller::new(Kind::RequestAuthentication, name, advice).tell(field, reason);
    }
}
