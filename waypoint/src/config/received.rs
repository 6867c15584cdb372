//! What the control plane sent, as it sent it, for `/config_dump`: nothing is decided by it.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use imbl::OrdMap;
use leyline_proto::SECRET_TYPE;
use leyline_types::Str;
use leyline_xds::session::Resource;

/// By type and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received(OrdMap<(&'static str, Str), Arc<Known>>);

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// What is used; `None` when nothing of this name was of use yet.
    pub(crate) active: Option<Version>,
    /// What came last and is refused, as a whole or in part.
    pub(crate) refused: Option<(Version, String)>,
}

/// One state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) version: String,
    pub(crate) body: Bytes,
    pub(crate) at: SystemTime,
}

/// What became of a resource.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate<'a> {
    Used,
    /// What can be used of it is.
    UsedInPart(&'a str),
    /// What was used before is used still.
    Kept(&'a str),
    /// What was used before is used no more.
    Refused(&'a str),
}

impl Received {
    pub(crate) fn put(&mut self, type_url: &'static str, resource: &Resource, fate: Fate<'_>) {
        // Private keys are shown to nobody.
        if type_url == SECRET_TYPE {
            return;
        }
        let version = Version {
            version: resource.version.clone(),
            body: resource.body.clone().into(),
            at: SystemTime::now(),
        };
        let refused = |reason: &str| Some((version.clone(), reason.to_owned()));
        let known = match fate {
            Fate::Used => Known {
                refused: None,
                active: Some(version),
            },
            Fate::UsedInPart(reason) => Known {
                refused: refused(reason),
                active: Some(version),
            },
            Fate::Kept(reason) => Known {
                refused: refused(reason),
                active: self.active(type_url, &resource.name),
            },
            Fate::Refused(reason) => Known {
                active: None,
                refused: refused(reason),
            },
        };
        let key = (type_url, resource.name.as_str().into());
        self.0.insert(key, Arc::new(known));
    }

    fn active(&self, type_url: &'static str, name: &str) -> Option<Version> {
        let known = self.0.get(&(type_url, name.into()))?;
        known.active.clone()
    }

    pub(crate) fn remove(&mut self, type_url: &'static str, name: &str) {
        self.0.remove(&(type_url, name.into()));
    }

    /// Forgets those of a type that nobody uses.
    pub(crate) fn retain(&mut self, type_url: &'static str, is_used: impl Fn(&Str) -> bool) {
        let unused: Vec<Str> = self
            .of(type_url)
            .map(|(name, _)| name)
            .filter(|name| !is_used(name))
            .cloned()
            .collect();
        for name in unused {
            self.0.remove(&(type_url, name));
        }
    }

    /// Those of a type, by name.
    pub(crate) fn of(&self, type_url: &'static str) -> impl Iterator<Item = (&Str, &Known)> {
        let first: Str = "".into();
        self.0
            .range((type_url, first)..)
            .take_while(move |((kind, _), _)| *kind == type_url)
            .map(|((_, name), known)| (name, &**known))
    }
}
