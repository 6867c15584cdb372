//! Header mutation: request headers that are changed before any other filter looks at the request. istiod sends it to tell
//! applications who the client is (`x-forwarded-client-cert`, facts A.4.2), which tunnels would hide from them.

use std::{borrow::Cow, time::SystemTime};

use envoy_types::pb::envoy::{
    config::{
        common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
        core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction},
    },
    extensions::filters::http::header_mutation::v3::{HeaderMutation, Mutations},
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{
        error::{At, Compiled, Unsupported},
        route::headers::{HeaderChanges, how, name},
    },
    format::{Field, Source, Template, Told},
    http::server::HttpConnection,
};

/// The mutations of all filters of a chain, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Remove(HeaderName),
    Put {
        name: HeaderName,
        value: Template,
        how: HeaderAppendAction,
    },
}

impl Config {
    pub(super) fn compile(proto: &HeaderMutation) -> Compiled<Self> {
        let mutations = proto.mutations.clone().unwrap_or_default();
        let known = Mutations {
            request_mutations: mutations.request_mutations.clone(),
            ..Mutations::default()
        };
        if mutations != known {
            return Err(Unsupported::new("mutations of more than request headers"));
        }
        let steps = known.request_mutations.iter().enumerate();
        let steps = steps.map(|(index, one)| step(one).at_item("request_mutations", index));
        Ok(Self {
            steps: steps.collect::<Compiled<_>>()?,
        })
    }

    /// Those of `other` come after.
    pub(super) fn extend(&mut self, other: Self) {
        self.steps.extend(other.steps);
    }

    /// Changes the headers of a request.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, conn: &HttpConnection) {
        if self.steps.is_empty() {
            return;
        }
        let local = conn.shared.settings.identity.to_string();
        self.apply_for(headers, (&conn.client.principal, &local));
    }

    fn apply_for(&self, headers: &mut HeaderMap, (peer, local): (&str, &str)) {
        for step in &self.steps {
            match step {
                Step::Remove(name) => drop(headers.remove(name)),
                Step::Put { name, value, how } => {
                    let told = Request {
                        headers,
                        peer,
                        local,
                    };
                    let value = value.whole(&told);
                    put_or_remove(headers, name, value, *how);
                }
            }
        }
    }
}

/// What the client has made up must not stand where there is no value, or none that a header may have.
fn put_or_remove(
    headers: &mut HeaderMap,
    name: &HeaderName,
    value: Option<String>,
    how: HeaderAppendAction,
) {
    let Some(value) = value.and_then(|text| HeaderValue::try_from(text).ok()) else {
        headers.remove(name);
        return;
    };
    let mut change = HeaderChanges::default();
    change.put(name.clone(), value, how);
    change.apply(headers);
}

fn step(proto: &Mutation) -> Compiled<Step> {
    match &proto.action {
        Some(Action::Remove(header)) => Ok(Step::Remove(name(header)?)),
        Some(Action::Append(option)) => put(option),
        Some(Action::RemoveOnMatch(_)) => Err(Unsupported::new("remove_on_match")),
        None => Err(Unsupported::missing("action")),
    }
}

fn put(option: &HeaderValueOption) -> Compiled<Step> {
    let header = option.header.as_ref();
    let header = header.ok_or_else(|| Unsupported::missing("header"))?;
    Ok(Step::Put {
        name: name(&header.key)?,
        value: Template::compile(&header.value).at(&header.key)?,
        how: how(option)?,
    })
}

/// What values are made of before there is more than the request.
struct Request<'a> {
    headers: &'a HeaderMap,
    peer: &'a str,
    local: &'a str,
}

impl Source for Request<'_> {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value.into())
    }

    fn response(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn trailer(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn metadata(&self, _path: &[String]) -> Option<Cow<'_, str>> {
        None
    }

    fn field(&self, field: Field) -> Option<Told<'_>> {
        match field {
            Field::PeerPrincipal => Some(Told::text(self.peer)),
            Field::LocalPrincipal => Some(Told::text(self.local)),
            _ => None,
        }
    }

    fn start(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderValue as Proto;

    use super::*;

    const XFCC: &str = "x-forwarded-client-cert";

    fn compiled(actions: Vec<Action>) -> Compiled<Config> {
        let actions = actions.into_iter();
        let mutations = actions.map(|action| Mutation {
            action: Some(action),
        });
        Config::compile(&HeaderMutation {
            mutations: Some(Mutations {
                request_mutations: mutations.collect(),
                ..Mutations::default()
            }),
            ..HeaderMutation::default()
        })
    }

    fn append(key: &str, value: &str) -> Action {
        Action::Append(HeaderValueOption {
            header: Some(Proto {
                key: key.to_owned(),
                value: value.to_owned(),
                ..Proto::default()
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        })
    }

    #[test]
    fn the_client_is_told_whatever_it_says_of_itself() {
        let value = "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%";
        let config = compiled(vec![
            append(XFCC, value),
            append("x-copy", "%REQ(x-a)%"),
            append("x-late", "%RESPONSE_CODE%"),
            Action::Remove("x-a".to_owned()),
        ])
        .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [(XFCC, "forged"), ("x-late", "forged"), ("x-a", "1")] {
            headers.insert(name, value.parse().unwrap());
        }
        config.apply_for(&mut headers, ("spiffe://td/peer", "spiffe://td/local"));
        assert_eq!(headers[XFCC], "By=spiffe://td/local;URI=spiffe://td/peer");
        assert_eq!(headers["x-copy"], "1");
        assert_eq!(headers.len(), 2, "{headers:?}");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        assert!(compiled(vec![append("a b", "x")]).is_err());
        assert!(compiled(vec![append("a", "%NOBODY_KNOWS%")]).is_err());
        let responses = HeaderMutation {
            mutations: Some(Mutations {
                response_mutations: vec![Mutation { action: None }],
                ..Mutations::default()
            }),
            ..HeaderMutation::default()
        };
        assert!(Config::compile(&responses).is_err());
    }
}
