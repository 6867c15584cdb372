//! `envoy.filters.http.jwt_authn`: RequestAuthentication on a waypoint (facts A.9). A token that is there must be good; a
//! request without one passes, and is for AuthorizationPolicy to refuse. Claims go into the exchange's metadata, where
//! policies and routes find them.
//!
//! Keys are those of the configuration, where the control plane fetches them, or are fetched here (`remote`). A request waits for
//! an issuer only when its keys were never fetched, or have no key for its token.

mod failure;
mod keys;
mod provider;
pub(crate) mod remote;
mod token;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtRequirement, jwt_requirement::RequiresType,
    requirement_rule::RequirementType,
};
use serde_json::{Map, Value};

use self::{
    failure::Failure,
    provider::Provider,
    remote::{KeyStore, RemoteSource},
};
use super::super::{
    pipeline::{self, Exchange},
    reply::Reply,
};
use crate::config::{
    error::{At, Compiled, Unsupported},
    route::matching::RouteMatch,
};

/// Where policies look for claims.
const NAME: &str = "envoy.filters.http.jwt_authn";
/// Requirements within requirements.
const MAX_DEPTH: usize = 8;

/// The filter.
#[derive(Debug)]
pub(crate) struct Config {
    providers: Vec<Arc<Provider>>,
    /// The first that matches counts; none: nothing is required.
    rules: Vec<(RouteMatch, Option<Requirement>)>,
    bypass_preflight: bool,
}

/// What must be true of a request's tokens.
#[derive(Debug)]
enum Requirement {
    /// There is a token of this provider, and all that it finds are good; for these audiences instead of its own.
    Provider(Arc<Provider>, Option<Vec<String>>),
    /// In the written order; the first that holds is enough.
    Any(Vec<Self>),
    All(Vec<Self>),
    /// Whatever tokens of these providers there are, they are good.
    Missing(Vec<Arc<Provider>>),
    /// Good ones are used, others are not there.
    MissingOrFailed(Vec<Arc<Provider>>),
}

impl Config {
    pub(crate) fn compile(filter: &JwtAuthentication) -> Compiled<Self> {
        if filter.filter_state_rules.is_some() {
            return Err(Unsupported::new("filter_state_rules"));
        }
        let mut providers = BTreeMap::new();
        for (name, proto) in &filter.providers {
            let provider = Provider::compile(proto).at(format!("provider {name}"))?;
            providers.insert(name.as_str(), Arc::new(provider));
        }
        let mut rules = Vec::with_capacity(filter.rules.len());
        for (index, rule) in filter.rules.iter().enumerate() {
            let matched = rule.r#match.as_ref();
            let matched = matched.ok_or_else(|| Unsupported::missing("match"))?;
            let matched = RouteMatch::compile(matched).at_item("rules", index)?;
            let requirement = match &rule.requirement_type {
                Some(RequirementType::Requires(requirement)) => Some(requirement),
                Some(RequirementType::RequirementName(name)) => {
                    let named = filter.requirement_map.get(name);
                    Some(named.ok_or_else(|| Unsupported::new(format!("no requirement {name}")))?)
                }
                None => None,
            };
            let requirement = requirement
                .map(|requirement| Requirement::compile(requirement, &providers, &[], 0))
                .transpose()
                .at_item("rules", index)?;
            rules.push((matched, requirement));
        }
        Ok(Self {
            providers: providers.into_values().collect(),
            rules,
            bypass_preflight: filter.bypass_cors_preflight,
        })
    }

    /// Where keys are to be fetched from.
    pub(crate) fn remote_sources(&self) -> impl Iterator<Item = &RemoteSource> {
        self.providers
            .iter()
            .filter_map(|provider| provider.remote())
    }
}

type Providers<'a> = BTreeMap<&'a str, Arc<Provider>>;

impl Requirement {
    /// `used` are the providers beside it: a token that may be missing is one of theirs, or of all where there are none.
    fn compile(
        proto: &JwtRequirement,
        providers: &Providers<'_>,
        used: &[Arc<Provider>],
        depth: usize,
    ) -> Compiled<Self> {
        if depth > MAX_DEPTH {
            return Err(Unsupported::new("requirements within requirements"));
        }
        let provider = |name: &str| {
            let found = providers.get(name).cloned();
            found.ok_or_else(|| Unsupported::new(format!("no provider {name}")))
        };
        let beside = || match used {
            [] => providers.values().cloned().collect(),
            used => used.to_vec(),
        };
        match proto.requires_type.as_ref() {
            Some(RequiresType::ProviderName(name)) => Ok(Self::Provider(provider(name)?, None)),
            Some(RequiresType::ProviderAndAudiences(with)) => Ok(Self::Provider(
                provider(&with.provider_name)?,
                Some(with.audiences.clone()),
            )),
            Some(RequiresType::RequiresAny(list)) => {
                let names = list.requirements.iter().filter_map(named);
                let used = names.map(provider).collect::<Compiled<Vec<_>>>()?;
                let all = list.requirements.iter();
                all.map(|one| Self::compile(one, providers, &used, depth + 1))
                    .collect::<Compiled<_>>()
                    .map(Self::Any)
            }
            Some(RequiresType::RequiresAll(list)) => {
                let all = list.requirements.iter();
                all.map(|one| Self::compile(one, providers, &[], depth + 1))
                    .collect::<Compiled<_>>()
                    .map(Self::All)
            }
            Some(RequiresType::AllowMissing(_)) => Ok(Self::Missing(beside())),
            Some(RequiresType::AllowMissingOrFailed(_)) => Ok(Self::MissingOrFailed(beside())),
            Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
                Err(Unsupported::new("extract_only_without_validation"))
            }
            None => Err(Unsupported::missing("requires_type")),
        }
    }
}

fn named(requirement: &JwtRequirement) -> Option<&str> {
    match requirement.requires_type.as_ref()? {
        RequiresType::ProviderName(name) => Some(name),
        RequiresType::ProviderAndAudiences(with) => Some(&with.provider_name),
        _ => None,
    }
}

/// A token that was found good.
struct Verified {
    provider: Arc<Provider>,
    place: token::Place,
    payload: String,
    claims: Map<String, Value>,
}

/// Verifies the tokens of a request and leaves what they claim in its metadata and headers.
///
/// # Errors
/// The answer to a token that is not good.
pub(crate) async fn authenticate(
    config: &Config,
    exchange: &mut Exchange,
    fetched: &KeyStore,
) -> Result<(), Reply> {
    // Whatever the client says in these headers, it is no claim of a token.
    for provider in &config.providers {
        for name in provider.output_headers() {
            exchange.head.headers.remove(name);
        }
    }
    if config.bypass_preflight && pipeline::is_preflight(&exchange.head) {
        return Ok(());
    }
    let head = exchange.request_head();
    let mut rules = config.rules.iter();
    let rule =
        rules.find(|(matched, _)| matched.matches(&head, exchange.random, &exchange.metadata));
    let Some((_, Some(requirement))) = rule else {
        return Ok(());
    };
    let check = |exchange: &Exchange| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut verified = Vec::new();
        let scene = Scene {
            exchange,
            now: now.unwrap_or_default(),
            fetched,
        };
        requirement.check(&scene, &mut verified).map(|()| verified)
    };
    let mut checked = check(exchange);
    // An issuer may have new keys that its newest tokens are signed with.
    if let Err(failure) = &checked
        && failure.is_about_keys()
        && fetched.renew(config.remote_sources()).await
    {
        checked = check(exchange);
    }
    for one in checked.map_err(|failure| failure.reply(exchange))? {
        one.provider.publish(&one, exchange, NAME);
    }
    Ok(())
}

/// What a requirement is checked against.
struct Scene<'a> {
    exchange: &'a Exchange,
    /// Since 1970.
    now: Duration,
    fetched: &'a KeyStore,
}

impl Scene<'_> {
    fn verify(
        &self,
        provider: &Provider,
        token: &str,
        audiences: Option<&[String]>,
    ) -> Result<provider::Good, Failure> {
        provider.verify(token, audiences, self.now, self.fetched)
    }
}

impl Requirement {
    fn check(&self, scene: &Scene<'_>, verified: &mut Vec<Verified>) -> Result<(), Failure> {
        match self {
            Self::Provider(provider, audiences) => {
                let tokens = provider.places.find(scene.exchange);
                if tokens.is_empty() {
                    return Err(Failure::Missing);
                }
                for (place, token) in tokens {
                    let good = scene.verify(provider, &token, audiences.as_deref())?;
                    verified.push(Verified {
                        provider: Arc::clone(provider),
                        place,
                        payload: good.payload,
                        claims: good.claims,
                    });
                }
                Ok(())
            }
            Self::All(all) => all.iter().try_for_each(|one| one.check(scene, verified)),
            Self::Any(any) => {
                let mut first = None;
                for one in any {
                    let before = verified.len();
                    match one.check(scene, verified) {
                        Ok(()) => return Ok(()),
                        Err(failure) => {
                            verified.truncate(before);
                            first = Some(failure.or_rather(first));
                        }
                    }
                }
                Err(first.unwrap_or(Failure::Missing))
            }
            Self::Missing(providers) => lenient(providers, scene, verified),
            Self::MissingOrFailed(providers) => {
                let before = verified.len();
                if lenient(providers, scene, verified).is_err() {
                    verified.truncate(before);
                }
                Ok(())
            }
        }
    }
}

/// Each token is verified by the provider of its issuer, of those who look where it is.
fn lenient(
    providers: &[Arc<Provider>],
    scene: &Scene<'_>,
    verified: &mut Vec<Verified>,
) -> Result<(), Failure> {
    let mut seen: Vec<(token::Place, String)> = Vec::new();
    for provider in providers {
        for found in provider.places.find(scene.exchange) {
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
    }
    for (place, token) in seen {
        let looking = providers
            .iter()
            .filter(|provider| provider.places.contain(&place));
        let mut failed = None;
        let mut good = None;
        for provider in looking {
            match scene.verify(provider, &token, None) {
                Ok(found) => {
                    good = Some((provider, found));
                    break;
                }
                Err(failure) => failed = Some(failure.or_rather(failed)),
            }
        }
        let (provider, found) = good.ok_or_else(|| failed.unwrap_or(Failure::UnknownIssuer))?;
        verified.push(Verified {
            provider: Arc::clone(provider),
            place,
            payload: found.payload,
            claims: found.claims,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
