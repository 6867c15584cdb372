//! ProxyConfigs: they say how a proxy is started, and this control plane starts none.

use super::Teller;
use crate::{
    objects::{Kind, Objects},
    translate::Advice,
};

const AT_START: &str = "has no effect here: who starts the waypoint gives it PROXY_CONFIG, which it reads when it starts";

pub(super) fn advise(objects: &Objects, advice: &mut Vec<Advice>) {
    for (name, config) in &objects.proxy_configs {
        let mut teller = Teller::new(Kind::ProxyConfig, name, advice);
        let spec = &config.spec;
        teller.tell_if(spec.concurrency.is_some(), "spec.concurrency", AT_START);
        teller.tell_if(
            !spec.environment_variables.is_empty(),
            "spec.environmentVariables",
            AT_START,
        );
        teller.tell_if(
            spec.image.is_some(),
            "spec.image",
            "has no effect: there is one build of a waypoint",
        );
    }
}
