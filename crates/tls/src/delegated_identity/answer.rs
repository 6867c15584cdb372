//! What an agent's messages hold, judged item by item: what cannot be used is left out and told, and the rest counts.

use std::{collections::HashMap, fmt, sync::Arc};

use leyline_types::{Identity, TrustDomain};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{Certificate, X509Bundle, X509Svid};
use spire_api::pb::spire::api::{
    agent::delegatedidentity::v1::{
        SubscribeToX509BundlesResponse, SubscribeToX509sviDsResponse, X509svidWithKey,
    },
    types::Spiffeid,
};

use super::pod::DelegatedPod;

/// A pod has one, and one for each further entry that matches it.
const MAX_SVIDS: usize = 64;
const SCHEME: &str = "spiffe://";

/// An SVID of a pod, not yet held against a bundle.
pub(super) struct Svid {
    pub(super) identity: Identity,
    /// In seconds of Unix time, as the agent says.
    pub(super) expires_at: i64,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Svid {
    pub(super) fn leaf(&self) -> &[u8] {
        self.chain.first().map_or(&[], |leaf| leaf.as_ref())
    }
}

/// Why something that the agent sent is not used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unused {
    /// Not an SVID, or not a bundle.
    Unreadable(String),
    /// The certificate is another's than the message says.
    Mismatch { said: String, certified: String },
    /// It is not the pod's service account.
    Other(String),
    /// One too many.
    Excess,
    /// A trust domain that was named before.
    Twice(String),
}

impl Unused {
    /// For the counter.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Mismatch { .. } => "mismatch",
            Self::Other(_) => "other_identity",
            Self::Excess => "excess",
            Self::Twice(_) => "twice",
        }
    }
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::Mismatch { said, certified } => {
                write!(f, "said to be of {said}, and certifies {certified}")
            }
            Self::Other(id) => write!(f, "{id} is not the pod's service account"),
            Self::Excess => write!(f, "a pod has more than {MAX_SVIDS}"),
            Self::Twice(domain) => write!(f, "trust domain {domain} is there twice"),
        }
    }
}

/// The SVIDs of a pod.
pub(super) fn svids(
    pod: &DelegatedPod,
    response: &SubscribeToX509sviDsResponse,
) -> (Vec<Arc<Svid>>, Vec<Unused>) {
    let mut usable = Vec::new();
    let mut unused = Vec::new();
    for one in response.x509_svids.iter().take(MAX_SVIDS) {
        match svid(pod, one) {
            Ok(svid) => usable.push(Arc::new(svid)),
            Err(why) => unused.push(why),
        }
    }
    if response.x509_svids.len() > MAX_SVIDS {
        unused.push(Unused::Excess);
    }
    (usable, unused)
}

fn svid(pod: &DelegatedPod, sent: &X509svidWithKey) -> Result<Svid, Unused> {
    let unreadable = |why: &dyn fmt::Display| Unused::Unreadable(format!("not an SVID: {why}"));
    let svid = sent.x509_svid.as_ref();
    let svid = svid.ok_or_else(|| unreadable(&"no certificate"))?;
    let chain = svid.cert_chain.concat();
    let parsed = X509Svid::parse_from_der(&chain, &sent.x509_svid_key);
    let parsed = parsed.map_err(|error| unreadable(&error))?;
    let certified = parsed.spiffe_id().to_string();
    let said = svid.id.as_ref().map(text).unwrap_or_default();
    if said != certified {
        return Err(Unused::Mismatch { said, certified });
    }
    let identity: Option<Identity> = certified.parse().ok();
    let Some(identity) = identity.filter(|identity| pod.is_of(identity)) else {
        return Err(Unused::Other(certified));
    };
    Ok(Svid {
        identity,
        expires_at: svid.expires_at,
        chain: certificates(parsed.cert_chain()),
        key: PrivatePkcs8KeyDer::from(parsed.private_key().as_bytes().to_vec()).into(),
    })
}

/// The bundles of all trust domains that the agent knows.
pub(super) fn bundles(
    response: &SubscribeToX509BundlesResponse,
) -> (
    HashMap<TrustDomain, Vec<CertificateDer<'static>>>,
    Vec<Unused>,
) {
    let mut usable = HashMap::new();
    let mut unused = Vec::new();
    let mut sent: Vec<_> = response.ca_certificates.iter().collect();
    sent.sort_unstable_by_key(|(name, _)| *name);
    for (name, authorities) in sent {
        match bundle(name, authorities) {
            Ok((domain, _)) if usable.contains_key(&domain) => {
                unused.push(Unused::Twice(domain.to_string()));
            }
            Ok((domain, authorities)) => {
                usable.insert(domain, authorities);
            }
            Err(why) => unused.push(why),
        }
    }
    (usable, unused)
}

/// The protocol says that the key is the domain's name; agents that are in use send its SPIFFE ID.
fn bundle(
    key: &str,
    authorities: &[u8],
) -> Result<(TrustDomain, Vec<CertificateDer<'static>>), Unused> {
    let unreadable =
        |why: &dyn fmt::Display| Unused::Unreadable(format!("no bundle of `{key}`: {why}"));
    let name = key.strip_prefix(SCHEME).unwrap_or(key);
    if name.contains(['/', ':']) {
        return Err(unreadable(&"not a trust domain"));
    }
    let parsed = spiffe::TrustDomain::new(name).map_err(|error| unreadable(&error))?;
    let domain = name.parse::<TrustDomain>();
    let domain = domain.map_err(|error| unreadable(&error))?;
    let bundle = X509Bundle::parse_from_der(parsed, authorities);
    let bundle = bundle.map_err(|error| unreadable(&error))?;
    Ok((domain, certificates(bundle.authorities())))
}

fn certificates(all: &[Certificate]) -> Vec<CertificateDer<'static>> {
    let der = all.iter().map(|one| one.as_bytes().to_vec());
    der.map(CertificateDer::from).collect()
}

fn text(id: &Spiffeid) -> String {
    format!("{SCHEME}{}{}", id.trust_domain, id.path)
}

#[cfg(test)]
mod tests;
