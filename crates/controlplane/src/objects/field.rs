//! Where in an object something is wrong: `spec.ports[0].targetPort`, `metadata.labels[app.kubernetes.io/name]`.

use std::fmt;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// A path into an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Field(Vec<Segment>);

impl Field {
    /// A path of map keys, such as `spec.ports`.
    pub(crate) fn of(dotted: &str) -> Self {
        Self(
            dotted
                .split('.')
                .filter(|key| !key.is_empty())
                .map(|key| Segment::Key(key.to_owned()))
                .collect(),
        )
    }

    /// One step further into a map.
    pub(crate) fn key(&self, key: &str) -> Self {
        let mut path = self.0.clone();
        path.push(Segment::Key(key.to_owned()));
        Self(path)
    }

    /// One step further into a list.
    pub(crate) fn index(&self, index: usize) -> Self {
        let mut path = self.0.clone();
        path.push(Segment::Index(index));
        Self(path)
    }

    /// The steps.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// From a path of an unknown field.
    pub(crate) fn from_ignored(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path;
        match path {
            Path::Root => Self::default(),
            Path::Seq { parent, index } => Self::from_ignored(parent).index(*index),
            Path::Map { parent, key } => Self::from_ignored(parent).key(key),
            Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => Self::from_ignored(parent),
        }
    }

    /// From the path of a value that did not decode.
    pub(crate) fn from_error(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as Step;
        let mut segments = Vec::new();
        for step in path {
            match step {
                Step::Seq { index } => segments.push(Segment::Index(*index)),
                Step::Map { key } => segments.push(Segment::Key(key.clone())),
                Step::Enum { variant } => segments.push(Segment::Key(variant.clone())),
                // Nothing below is known.
                Step::Unknown => break,
            }
        }
        Self(segments)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if key.contains(['.', '[']) => write!(f, "[{key}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
