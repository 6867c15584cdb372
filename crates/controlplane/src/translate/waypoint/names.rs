//! What host names in the user's objects mean.

use leyline_types::NamespacedName;

/// A short name is of the object's own namespace (Istio's documents on VirtualService `host`).
pub(in crate::translate) fn full_host(host: &str, namespace: &str, cluster_domain: &str) -> String {
    if host.contains(['.', '*']) {
        host.to_ascii_lowercase()
    } else {
        format!("{host}.{namespace}.svc.{cluster_domain}").to_ascii_lowercase()
    }
}

/// How well the host of a rule fits a service: by equality, or by the longest `*.suffix`; `*` fits all.
pub(super) fn fit(pattern: &str, host: &str) -> Option<usize> {
    if pattern == host {
        return Some(usize::MAX);
    }
    let suffix = pattern.strip_prefix('*')?;
    let fits = suffix.is_empty() || (host.len() > suffix.len() && host.ends_with(suffix));
    fits.then_some(suffix.len())
}

/// Whether an object of `namespace` with this `exportTo` is seen in another.
pub(super) fn is_exported(export_to: &[String], namespace: &str, to: &str) -> bool {
    if export_to.is_empty() || namespace == to {
        return export_to.is_empty()
            || export_to
                .iter()
                .any(|one| one == "*" || one == "." || one == to);
    }
    export_to.iter().any(|one| one == "*" || one == to)
}

/// The host of a Kubernetes Service.
pub(super) fn service_host(name: &NamespacedName, cluster_domain: &str) -> String {
    format!("{}.{}.svc.{cluster_domain}", name.name, name.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_their_namespace() {
        for (host, full) in [
            ("reviews", "reviews.shop.svc.cluster.local"),
            (
                "Reviews.Shop.svc.cluster.local",
                "reviews.shop.svc.cluster.local",
            ),
            ("example.com", "example.com"),
            ("*", "*"),
        ] {
            assert_eq!(full_host(host, "shop", "cluster.local"), full);
        }
    }

    #[test]
    fn longer_suffixes_fit_better() {
        assert_eq!(fit("a.example", "a.example"), Some(usize::MAX));
        assert_eq!(fit("*.example", "a.example"), Some(8));
        assert_eq!(fit("*", "a.example"), Some(0));
        assert_eq!(fit("*.example", ".example"), None);
        assert_eq!(fit("b.example", "a.example"), None);
    }

    #[test]
    fn exports_reach_whom_they_name() {
        let to = |names: &[&str], other: &str| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            is_exported(&names, "shop", other)
        };
        assert!(to(&[], "web") && to(&["*"], "web") && to(&["web"], "web"));
        assert!(to(&["."], "shop") && !to(&["."], "web") && !to(&["api"], "web"));
    }
}
