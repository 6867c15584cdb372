//! What of a request ties it to an endpoint: Envoy's hash policies, from `consistentHash` of a DestinationRule.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy as Proto, hash_policy::PolicySpecifier,
};
use http::HeaderName;

use crate::config::{
    any::duration,
    error::{At, Compiled, Unsupported},
};

/// One part of the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HashPolicy {
    pub(crate) source: HashSource,
    /// When it gives a hash, those after it do not count.
    pub(crate) terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashSource {
    Header(HeaderName),
    Cookie(Cookie),
    /// The client's address.
    SourceIp,
    /// A parameter of the query.
    Query(String),
}

/// A cookie, which is made where a request has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub(crate) name: String,
    /// Its life; 0 is until the client ends; without any, no cookie is made.
    pub(crate) ttl: Option<Duration>,
    pub(crate) path: String,
    /// `name=value` or only `name`.
    pub(crate) attributes: Vec<String>,
}

impl HashPolicy {
    pub(super) fn compile_all(protos: &[Proto]) -> Compiled<Vec<Self>> {
        let mut policies = Vec::with_capacity(protos.len());
        for (index, proto) in protos.iter().enumerate() {
            policies.push(Self::compile(proto).at_item("hash_policy", index)?);
        }
        Ok(policies)
    }

    fn compile(proto: &Proto) -> Compiled<Self> {
        let source = match &proto.policy_specifier {
            Some(PolicySpecifier::Header(header)) => {
                if header.regex_rewrite.is_some() {
                    return Err(Unsupported::new("header.regex_rewrite"));
                }
                let name = header.header_name.to_ascii_lowercase().parse();
                let name = name.map_err(|_invalid| Unsupported::new("header_name"))?;
                HashSource::Header(name)
            }
            Some(PolicySpecifier::Cookie(cookie)) => {
                let attributes = cookie.attributes.iter();
                let attributes = attributes.map(|one| match one.value.as_str() {
                    "" => one.name.clone(),
                    value => format!("{}={value}", one.name),
                });
                let cookie = Cookie {
                    name: cookie.name.clone(),
                    ttl: cookie.ttl.as_ref().map(duration).transpose()?,
                    path: cookie.path.clone(),
                    attributes: attributes.collect(),
                };
                if !cookie.is_safe() {
                    return Err(Unsupported::new("cookie"));
                }
                HashSource::Cookie(cookie)
            }
            Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
                HashSource::SourceIp
            }
            Some(PolicySpecifier::QueryParameter(parameter)) => {
                HashSource::Query(parameter.name.clone())
            }
            Some(PolicySpecifier::ConnectionProperties(_) | PolicySpecifier::FilterState(_))
            | None => return Err(Unsupported::new("hash policy of this kind")),
        };
        Ok(Self {
            source,
            terminal: proto.terminal,
        })
    }
}

impl Cookie {
    /// Nothing in it ends the cookie, or the header.
    fn is_safe(&self) -> bool {
        let parts = self.attributes.iter().chain([&self.name, &self.path]);
        let mut bytes = parts.flat_map(|part| part.bytes());
        !self.name.is_empty() && bytes.all(|byte| (0x20..0x7f).contains(&byte) && byte != b';')
    }
}
