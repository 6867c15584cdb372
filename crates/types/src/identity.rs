//! Workload identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Parsing goes through the crate `spiffe` first, so that what passes here is a valid SPIFFE ID and of Istio's shape.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use spiffe::{SpiffeId, SpiffeIdError};

use crate::names::Str;

/// The authority part of an identity; peers of one trust domain share roots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TrustDomain(Str);

impl TrustDomain {
    /// What Istio uses where nothing is set.
    pub const DEFAULT: &str = "cluster.local";

    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parsed = spiffe::TrustDomain::new(text).map_err(|source| IdentityError::Spiffe {
            id: text.to_owned(),
            source,
        })?;
        Ok(Self(parsed.as_str().into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a workload is. Ordered and hashable, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Str,
    service_account: Str,
}

/// Why a text is not a workload identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a SPIFFE ID at all.
    #[error("`{id}` is not a SPIFFE ID")]
    Spiffe {
        /// The text.
        id: String,
        /// What is wrong with it.
        #[source]
        source: SpiffeIdError,
    },
    /// A SPIFFE ID of another shape.
    #[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
}

impl Identity {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// When a part has a character that a SPIFFE path segment may not have.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &Str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &Str {
        &self.service_account
    }

    /// The form that policies name: the SPIFFE ID without `spiffe://`.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let id = SpiffeId::new(text).map_err(|source| IdentityError::Spiffe {
            id: text.to_owned(),
            source,
        })?;
        let segments: Vec<&str> = id.path().trim_start_matches('/').split('/').collect();
        let ["ns", namespace, "sa", service_account] = segments[..] else {
            return Err(IdentityError::Shape(text.to_owned()));
        };
        Ok(Self {
            trust_domain: TrustDomain(id.trust_domain_name().into()),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }
}

impl fmt::Display for Identity {
    /// The SPIFFE ID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest, sample::select};

    use super::*;

    /// What identities are made of, and what does not belong in them.
    const PIECES: [&str; 18] = [
        "spiffe://",
        "cluster.local",
        "td",
        "/ns/",
        "/sa/",
        "/",
        "a",
        "web",
        "A",
        ".",
        "..",
        "%2f",
        "%",
        "?",
        "#",
        "@",
        ":80",
        "é",
    ];

    proptest! {
        /// Texts of one identity differ only in the case of scheme and trust domain, and nothing is lost on the way.
        #[test]
        fn what_parses_is_written_and_read_back(
            damage in vec((0_usize..8, select(&PIECES[..])), 0..3),
        ) {
            let mut pieces = vec!["spiffe://", "td", "/ns/", "a", "/sa/", "web"];
            for (at, piece) in damage {
                pieces.insert(at.min(pieces.len()), piece);
            }
            let text = pieces.concat();
            if let Ok(parsed) = text.parse::<Identity>() {
                let written = parsed.to_string();
                prop_assert!(written.eq_ignore_ascii_case(&text), "{written} {text}");
                let (namespace, account) = (parsed.namespace(), parsed.service_account());
                let path = format!("/ns/{namespace}/sa/{account}");
                prop_assert!(text.ends_with(&path), "{path} {text}");
                prop_assert_eq!(written.parse::<Identity>().unwrap(), parsed);
            }
        }
    }

    #[test]
    fn parses_istio_identities_only() {
        let id: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.namespace(), &Str::from("shop"));
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/web");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        for bad in [
            "",
            "cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
