//! Why a resource, or a part of it, cannot be served: where it is and what is wrong. Goes into NACKs, the log,
//! `/unsupported` and the 503 that the service then answers.

use std::fmt;

/// Something that is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Unsupported {
    /// From the outside in.
    path: Vec<String>,
    reason: String,
}

/// The result of compiling something.
pub(crate) type Compiled<T> = Result<T, Unsupported>;

impl Unsupported {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            reason: reason.into(),
        }
    }

    /// A field that must be there.
    pub(crate) fn missing(field: &str) -> Self {
        Self::new(format!("{field} is missing"))
    }

    fn inside(mut self, part: impl Into<String>) -> Self {
        self.path.insert(0, part.into());
        self
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join("."))?;
        }
        f.write_str(&self.reason)
    }
}

/// Adds where an error happened.
pub(crate) trait At<T> {
    /// The part of the resource.
    fn at(self, part: impl Into<String>) -> Compiled<T>;
    /// An item of a list.
    fn at_item(self, list: &str, index: usize) -> Compiled<T>;
}

impl<T> At<T> for Compiled<T> {
    fn at(self, part: impl Into<String>) -> Self {
        self.map_err(|error| error.inside(part))
    }

    fn at_item(self, list: &str, index: usize) -> Self {
        self.map_err(|error| error.inside(format!("{list}[{index}]")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_from_the_outside_in() {
        let error: Compiled<()> = Err(Unsupported::missing("cluster"));
        let error = error.at("action").at_item("routes", 3).at("web");
        assert_eq!(
            error.unwrap_err().to_string(),
            "web.routes[3].action: cluster is missing"
        );
    }
}
