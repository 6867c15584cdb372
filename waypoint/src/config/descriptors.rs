//! Rate limit actions: what of a request makes the descriptors that limits are counted by.

use std::{borrow::Cow, net::IpAddr};

use envoy_types::pb::envoy::config::route::v3::{
    RateLimit as Proto,
    query_parameter_matcher::QueryParameterMatchSpecifier,
    rate_limit::{Action as ActionProto, action::ActionSpecifier, r#override::OverrideSpecifier},
};
use leyline_authz::{HeaderMatch, RequestHead, TextMatch};

use super::{
    error::{At, Compiled, Unsupported},
    text::{header, text},
};
use crate::format::{Source, Template};

/// Pairs of key and value, in order.
pub(crate) type Entries = Vec<(String, String)>;

/// What limits are counted by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) entries: Entries,
    /// The limit, where the configuration and not the rate limit service has it.
    pub(crate) rate: Option<Rate>,
}

/// So many requests in each unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) requests: u32,
    /// Of `envoy.type.v3.RateLimitUnit`.
    pub(crate) unit: i32,
}

/// Actions that make one descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) stage: u32,
    rate: Option<Rate>,
    actions: Vec<Action>,
}

#[derive(Clone, Debug)]
enum Action {
    Header {
        name: String,
        key: String,
        absent: Absent,
    },
    Query {
        name: String,
        key: String,
        absent: Absent,
    },
    /// A fixed value, or one made from the request.
    Value {
        key: String,
        value: Template,
        default: Option<String>,
    },
    HeaderMatch {
        key: String,
        value: Template,
        headers: Vec<HeaderMatch>,
        expect: bool,
    },
    QueryMatch {
        key: String,
        value: Template,
        queries: Vec<(String, Option<TextMatch>)>,
        expect: bool,
    },
    RemoteAddress,
    MaskedRemoteAddress {
        v4: u8,
        v6: u8,
    },
    SourceCluster,
}

/// What a missing value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// No descriptor.
    NoDescriptor,
    /// A descriptor without this pair.
    NoEntry,
}

/// What actions look at.
pub(crate) struct Request<'a> {
    pub(crate) head: RequestHead<'a>,
    pub(crate) source: &'a dyn Source,
    pub(crate) remote: IpAddr,
    /// The cluster of the proxy itself.
    pub(crate) cluster: &'a str,
}

impl Limit {
    pub(crate) fn compile_all(protos: &[Proto]) -> Compiled<Vec<Self>> {
        let protos = protos.iter().enumerate();
        protos
            .map(|(index, proto)| Self::compile(proto).at_item("rate_limits", index))
            .collect()
    }

    fn compile(proto: &Proto) -> Compiled<Self> {
        if proto.hits_addend.is_some() || proto.apply_on_stream_done {
            return Err(Unsupported::new("hits_addend or apply_on_stream_done"));
        }
        let limit = proto.limit.as_ref();
        let rate = match limit.and_then(|limit| limit.override_specifier.as_ref()) {
            None => None,
            Some(OverrideSpecifier::RateLimit(limit)) => Some(Rate {
                requests: limit.requests_per_unit,
                unit: limit.unit,
            }),
            Some(OverrideSpecifier::DynamicMetadata(_)) => {
                return Err(Unsupported::new("a limit from metadata"));
            }
        };
        if !proto.disable_key.is_empty() {
            return Err(Unsupported::new("disable_key"));
        }
        let actions = proto.actions.iter().enumerate();
        Ok(Self {
            stage: proto.stage.map_or(0, |stage| stage.value),
            rate,
            actions: actions
                .map(|(index, action)| Action::compile(action).at_item("actions", index))
                .collect::<Compiled<_>>()?,
        })
    }

    /// The descriptor of a request; `None` when one of its parts is missing.
    pub(crate) fn descriptor(&self, request: &Request<'_>) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(request) {
                Entry::Some(key, value) => entries.push((key.to_owned(), value)),
                Entry::Skipped => {}
                Entry::Missing => return None,
            }
        }
        (!entries.is_empty()).then_some(Descriptor {
            entries,
            rate: self.rate,
        })
    }
}

/// What one action gives.
enum Entry<'a> {
    Some(&'a str, String),
    Skipped,
    Missing,
}

impl Action {
    // tidy: table
    #[expect(deprecated, reason = "an older action is refused like its successor")]
    fn compile(proto: &ActionProto) -> Compiled<Self> {
        let specifier = proto.action_specifier.as_ref();
        let specifier = specifier.ok_or_else(|| Unsupported::new("an action that is not known"))?;
        let key = |key: &str, default: &str| match key {
            "" => default.to_owned(),
            key => key.to_owned(),
        };
        let absent = |skip| {
            if skip {
                Absent::NoEntry
            } else {
                Absent::NoDescriptor
            }
        };
        Ok(match specifier {
            ActionSpecifier::RequestHeaders(it) => Self::Header {
                name: it.header_name.to_ascii_lowercase(),
                key: it.descriptor_key.clone(),
                absent: absent(it.skip_if_absent),
            },
            ActionSpecifier::QueryParameters(it) => Self::Query {
                name: it.query_parameter_name.clone(),
                key: it.descriptor_key.clone(),
                absent: absent(it.skip_if_absent),
            },
            ActionSpecifier::GenericKey(it) => Self::Value {
                key: key(&it.descriptor_key, "generic_key"),
                value: Template::compile(&it.descriptor_value)?,
                default: (!it.default_value.is_empty()).then(|| it.default_value.clone()),
            },
            ActionSpecifier::HeaderValueMatch(it) => Self::HeaderMatch {
                key: key(&it.descriptor_key, "header_match"),
                value: Template::compile(&it.descriptor_value)?,
                headers: it.headers.iter().map(header).collect::<Compiled<_>>()?,
                expect: it.expect_match.is_none_or(|flag| flag.value),
            },
            ActionSpecifier::QueryParameterValueMatch(it) => Self::QueryMatch {
                key: key(&it.descriptor_key, "query_match"),
                value: Template::compile(&it.descriptor_value)?,
                queries: it
                    .query_parameters
                    .iter()
                    .map(|query| match &query.query_parameter_match_specifier {
                        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
                            Ok((query.name.clone(), Some(text(matcher)?)))
                        }
                        Some(QueryParameterMatchSpecifier::PresentMatch(true)) | None => {
                            Ok((query.name.clone(), None))
                        }
                        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
                            Err(Unsupported::new("a query parameter that must be absent"))
                        }
                    })
                    .collect::<Compiled<_>>()?,
                expect: it.expect_match.is_none_or(|flag| flag.value),
            },
            ActionSpecifier::RemoteAddress(_) => Self::RemoteAddress,
            ActionSpecifier::MaskedRemoteAddress(it) => {
                let length = |value: Option<u32>, whole: u8| match value {
                    None => Ok(whole),
                    Some(length) => u8::try_from(length)
                        .ok()
                        .filter(|length| *length <= whole)
                        .ok_or_else(|| Unsupported::new("length of a prefix")),
                };
                Self::MaskedRemoteAddress {
                    v4: length(it.v4_prefix_mask_len.map(|it| it.value), 32)?,
                    v6: length(it.v6_prefix_mask_len.map(|it| it.value), 128)?,
                }
            }
            ActionSpecifier::SourceCluster(_) => Self::SourceCluster,
            ActionSpecifier::DestinationCluster(_)
            | ActionSpecifier::DynamicMetadata(_)
            | ActionSpecifier::Metadata(_)
            | ActionSpecifier::Extension(_)
            | ActionSpecifier::RemoteAddressMatch(_) => {
                return Err(Unsupported::new(
                    "an action by destination cluster, metadata, address match or extension",
                ));
            }
        })
    }

    // tidy: table
    fn entry<'a>(&'a self, request: &Request<'_>) -> Entry<'a> {
        let or = |value: Option<String>, key: &'a str, absent: Absent| match (value, absent) {
            (Some(value), _) => Entry::Some(key, value),
            (None, Absent::NoEntry) => Entry::Skipped,
            (None, Absent::NoDescriptor) => Entry::Missing,
        };
        match self {
            Self::Header { name, key, absent } => {
                let value = request.source.request(name).map(Cow::into_owned);
                or(value, key, *absent)
            }
            Self::Query { name, key, absent } => {
                let value = first_query(request.head.query(), name).map(str::to_owned);
                or(value, key, *absent)
            }
            Self::Value {
                key,
                value,
                default,
            } => {
                let value = value.whole(request.source).or_else(|| default.clone());
                or(value, key, Absent::NoDescriptor)
            }
            Self::HeaderMatch {
                key,
                value,
                headers,
                expect,
            } => {
                let holds = headers.iter().all(|header| header.matches(&request.head));
                let value = (holds == *expect).then(|| value.whole(request.source));
                or(value.flatten(), key, Absent::NoDescriptor)
            }
            Self::QueryMatch {
                key,
                value,
                queries,
                expect,
            } => {
                let query = request.head.query();
                let holds = queries.iter().all(|(name, matcher)| {
                    first_query(query, name).is_some_and(|value| {
                        matcher
                            .as_ref()
                            .is_none_or(|matcher| matcher.matches(value))
                    })
                });
                let value = (holds == *expect).then(|| value.whole(request.source));
                or(value.flatten(), key, Absent::NoDescriptor)
            }
            Self::RemoteAddress => Entry::Some("remote_address", request.remote.to_string()),
            Self::MaskedRemoteAddress { v4, v6 } => {
                let length = if request.remote.is_ipv4() { *v4 } else { *v6 };
                match ipnet::IpNet::new(request.remote, length) {
                    Ok(net) => Entry::Some("masked_remote_address", net.trunc().to_string()),
                    Err(_too_long) => Entry::Missing,
                }
            }
            Self::SourceCluster => Entry::Some("source_cluster", request.cluster.to_owned()),
        }
    }
}

fn first_query<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query?.split('&');
    pairs.find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}
