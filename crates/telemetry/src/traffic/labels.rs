//! Which labels the traffic metrics have: Istio's, or fewer where a mesh has too many series for its Prometheus.

use std::sync::OnceLock;

/// All but `response_flags`, in Istio's order.
pub(super) const NAMES: [&str; 26] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];
/// So many of them come before `response_flags`.
pub(super) const BEFORE_FLAGS: usize = 21;

/// The labels that are written, by their places in [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptLabels(u32);

/// Set once, before anything is counted.
static KEPT: OnceLock<KeptLabels> = OnceLock::new();

impl KeptLabels {
    /// Istio's.
    pub const ALL: Self = Self(u32::MAX);

    /// All but those of a list with commas. Connections that differ in these alone are counted together.
    ///
    /// # Errors
    /// The name that is none of a label which can be left out; both reporters are always told apart.
    pub fn without(list: &str) -> Result<Self, String> {
        let mut kept = Self::ALL;
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let index = NAMES.iter().skip(1).position(|known| *known == name);
            let index =
                index.ok_or_else(|| format!("`{name}` is no label that can be left out"))?;
            kept.0 &= !(1 << (index + 1));
        }
        Ok(kept)
    }

    /// From now on; the first call counts.
    pub fn keep(self) {
        KEPT.get_or_init(|| self);
    }

    pub(super) fn now() -> Self {
        KEPT.get().copied().unwrap_or(Self::ALL)
    }

    pub(super) fn has(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_or_refused() {
        assert_eq!(KeptLabels::without(""), Ok(KeptLabels::ALL));
        let kept = KeptLabels::without("source_app, destination_zone,").unwrap();
        let gone = (0..NAMES.len()).filter(|index| !kept.has(*index));
        let gone: Vec<&str> = gone.map(|index| NAMES[index]).collect();
        assert_eq!(gone, ["source_app", "destination_zone"]);
        for bad in [
            "reporter",
            "response_flags",
            "source",
            "source_app source_zone",
        ] {
            assert!(KeptLabels::without(bad).is_err(), "{bad}");
        }
    }
}
