//! BackendTLSPolicies.

use super::Teller;
use crate::{
    objects::{Kind, Objects},
    translate::Advice,
};

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, policy) in &objects.backend_tls_policies {
        let mut teller = Teller::new(Kind::BackendTlsPolicy, name, advice);
        for option in policy.spec.options.keys() {
            let field = format!("spec.options.{option}");
            teller.tell(field, "has no effect: there are no options");
        }
        let roots = policy.spec.validation.ca_certificate_refs.iter();
        for (index, _) in roots.enumerate().skip(1) {
            let field = format!("spec.validation.caCertificateRefs[{index}]");
            teller.tell(field, "has no effect: only the first is believed");
        }
    }
}
