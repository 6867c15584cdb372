//! Which hosts a name that a client asks for may stand for (facts A16, DNS-3).
//!
//! Resolver libraries append the domains of the pod's search list one after the other until an answer comes. Such a name
//! is answered at the first try, with an alias (CNAME) to the name without the domain.

use leyline_state::{HostView, KnownHost, Snapshot};

use super::resolv_conf::ResolvConf;

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The name without the search domain, if that is what is known.
    pub(super) alias: Option<String>,
    pub(super) host: KnownHost,
}

/// Finds what a name stands for; `None` if others must be asked. The name is in lower case, without a last dot.
pub(super) fn find(
    snapshot: &Snapshot,
    view: HostView<'_>,
    client: &ResolvConf,
    name: &str,
) -> Option<Answer> {
    if let Some(host) = known(snapshot, view, name) {
        return Some(Answer { alias: None, host });
    }
    client.search.iter().find_map(|domain| {
        let stripped = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        // A name with that many dots was tried as it is before, and answered if it is known.
        let dots = stripped.bytes().filter(|byte| *byte == b'.').count();
        if stripped.is_empty() || dots >= client.ndots {
            return None;
        }
        let host = known(snapshot, view, stripped)?;
        let alias = Some(stripped.to_owned());
        Some(Answer { alias, host })
    })
}

/// The name itself, or a short form of a Kubernetes service's.
fn known(snapshot: &Snapshot, view: HostView<'_>, name: &str) -> Option<KnownHost> {
    let itself = snapshot.known_host(name, view);
    itself.or_else(|| snapshot.known_host(&long_form(name, view)?, view))
}

/// `service`, `service.namespace` and `service.namespace.svc` in full.
fn long_form(name: &str, view: HostView<'_>) -> Option<String> {
    let domain = view.cluster_domain;
    let labels: Vec<&str> = name.split('.').collect();
    match labels[..] {
        [service] => Some(format!("{service}.{}.svc.{domain}", view.namespace)),
        [service, namespace] => Some(format!("{service}.{namespace}.svc.{domain}")),
        [_, _, "svc"] => Some(format!("{name}.{domain}")),
        _ => None,
    }
}
