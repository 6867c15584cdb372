//! What an authorizer does to the query of a request.

/// Parameters that are set, and those that are removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) set: Vec<(String, String)>,
    pub(super) remove: Vec<String>,
}

impl Changes {
    /// The path with its new query; `None` when nothing is done.
    pub(super) fn apply(&self, path: &str) -> Option<String> {
        if self.set.is_empty() && self.remove.is_empty() {
            return None;
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let is_changed = |parameter: &str| {
            let name = parameter.split('=').next().unwrap_or_default();
            let mut names = self.set.iter().map(|(name, _)| name).chain(&self.remove);
            names.any(|changed| changed == name)
        };
        let kept = query
            .split('&')
            .filter(|parameter| !parameter.is_empty() && !is_changed(parameter))
            .map(str::to_owned);
        let set = self
            .set
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let parameters: Vec<String> = kept.chain(set).collect();
        Some(if parameters.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", parameters.join("&"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_removed() {
        let check = |path: &str, set: &[(&str, &str)], remove: &[&str], expected: Option<&str>| {
            let set = set.iter();
            let changes = Changes {
                set: set
                    .map(|(name, value)| (name.to_string(), value.to_string()))
                    .collect(),
                remove: remove.iter().map(ToString::to_string).collect(),
            };
            assert_eq!(changes.apply(path).as_deref(), expected, "{path}");
        };
        check("/a?x=1&y=2", &[], &[], None);
        check("/a?x=1&y=2", &[("x", "3")], &[], Some("/a?y=2&x=3"));
        check("/a", &[("x", "3")], &["y"], Some("/a?x=3"));
        check("/a?y=1&y=2", &[], &["y"], Some("/a"));
        check("/a?yy=1&y", &[], &["y"], Some("/a?yy=1"));
    }
}
