//! What pods say of their own capture.

use super::Teller;
use crate::{
    objects::{Kind, Objects},
    translate::{
        Advice,
        enrolment::{BYPASS_INBOUND, DNS_CAPTURE, REROUTE, interface_names},
    },
};

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, pod) in &objects.pods {
        let mut teller = Teller::new(Kind::Pod, name, advice);
        let metadata = &pod.metadata;
        for (place, all) in [
            ("annotations", &metadata.annotations),
            ("labels", &metadata.labels),
        ] {
            for key in [DNS_CAPTURE, BYPASS_INBOUND] {
                let said = all.as_ref().and_then(|all| all.get(key));
                teller.tell_if(
                    said.is_some_and(|said| said != "true" && said != "false"),
                    format!("metadata.{place}.{key}"),
                    "has no effect: it is neither true nor false",
                );
            }
            let list = all.as_ref().and_then(|all| all.get(REROUTE));
            for (part, name) in interface_names(list.map_or("", String::as_str)) {
                if let Err(error) = name {
                    let reason = format!("`{part}` is not the name of an interface: {error}");
                    teller.tell(format!("metadata.{place}.{REROUTE}"), reason);
                }
            }
        }
    }
}
