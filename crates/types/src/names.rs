//! Names of workloads, services, policies and networks. All are cheap to clone.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};

/// A shared immutable string.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Str(Arc<str>);

impl Str {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Str {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

impl From<&str> for Str {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl From<String> for Str {
    fn from(text: String) -> Self {
        Self(Arc::from(text))
    }
}

impl AsRef<str> for Str {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Str {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Str {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Str {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Debug for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Str {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name(Str);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<Str>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_name! {
    /// The key of a workload in xDS, for a pod `cluster//Pod/namespace/name`.
    WorkloadUid
}
text_name! {
    /// A network in which addresses are unique; empty is the default network.
    Network
}

/// What a node knows of one of its pods before xDS has told the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadName {
    /// Pod name.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `namespace/name`, the key of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: Str,
    /// Name within it.
    pub name: Str,
}

/// A text that is not `namespace/name`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not of the form namespace/name")]
pub struct NamespacedNameError(String);

/// `namespace/hostname`, the key of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Str,
    /// Fully qualified host name.
    pub hostname: Str,
}

/// A text that is not `namespace/hostname`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not of the form namespace/hostname")]
pub struct ServiceKeyError(String);

/// Both halves of `first/second`, if neither is empty and there is exactly one slash.
fn halves(text: &str) -> Option<(&str, &str)> {
    let (first, second) = text.split_once('/')?;
    (!first.is_empty() && !second.is_empty() && !second.contains('/')).then_some((first, second))
}

macro_rules! slash_name {
    ($name:ident, $error:ident, $second:ident) => {
        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                let (namespace, second) = halves(text).ok_or_else(|| $error(text.to_owned()))?;
                Ok(Self {
                    namespace: namespace.into(),
                    $second: second.into(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.$second)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

slash_name!(NamespacedName, NamespacedNameError, name);
slash_name!(ServiceKey, ServiceKeyError, hostname);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slash_names_round_trip_and_reject_other_shapes() {
        let key: ServiceKey = "shop/web.shop.svc.cluster.local".parse().unwrap();
        assert_eq!(key.hostname, "web.shop.svc.cluster.local");
        assert_eq!(key.to_string(), "shop/web.shop.svc.cluster.local");
        for bad in ["", "/", "a", "a/", "/b", "a/b/c"] {
            assert!(bad.parse::<NamespacedName>().is_err(), "{bad}");
        }
    }
}
