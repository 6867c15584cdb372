//! One issuer of tokens: what a token of it must be, and what becomes of its claims.

use std::time::Duration;

use base64::{
    Engine,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use envoy_types::pb::envoy::{
    config::core::v3::data_source::Specifier,
    extensions::filters::http::jwt_authn::v3::{JwtProvider, jwt_provider::JwksSourceSpecifier},
};
use http::{HeaderName, HeaderValue};
use leyline_authz::TextMatch;
use serde_json::{Map, Value};

use super::{
    Verified,
    failure::Failure,
    keys::{Keys, Signing},
    remote::{KeyStore, RemoteSource},
    token::Places,
};
use crate::{
    config::{
        any::duration,
        error::{At, Compiled, Unsupported},
        text::text,
    },
    http::pipeline::Exchange,
};

/// For clocks that differ; Envoy's default.
const CLOCK_SKEW: u64 = 60;

/// The issuer.
#[derive(Debug)]
pub(super) struct Provider {
    /// Any where it is empty.
    issuer: String,
    audiences: Vec<String>,
    subjects: Option<TextMatch>,
    keys: KeySource,
    pub(super) places: Places,
    keep_token: bool,
    skew: u64,
    require_expiration: bool,
    max_lifetime: Option<Duration>,
    payload_key: String,
    space_delimited: Vec<String>,
    payload_header: Option<(HeaderName, Padding)>,
    claim_headers: Vec<(HeaderName, Vec<String>)>,
}

/// Where the issuer's keys are.
#[derive(Debug)]
enum KeySource {
    /// In the configuration.
    Given(Keys),
    /// To be fetched.
    Remote(RemoteSource),
}

#[derive(Clone, Copy, Debug)]
enum Padding {
    None,
    Padded,
}

/// What a good token says.
pub(super) struct Good {
    /// As it is in the token.
    pub(super) payload: String,
    pub(super) claims: Map<String, Value>,
}

impl Provider {
    pub(super) fn compile(proto: &JwtProvider) -> Compiled<Self> {
        if !proto.failed_status_in_metadata.is_empty() || !proto.header_in_metadata.is_empty() {
            let reason = "failed_status_in_metadata or header_in_metadata";
            return Err(Unsupported::new(reason));
        }
        let normalize = proto.normalize_payload_in_metadata.as_ref();
        let skew = u64::from(proto.clock_skew_seconds);
        let name = |name: &str| {
            let parsed = name.parse::<HeaderName>();
            parsed.map_err(|_not_a_name| Unsupported::new(format!("header `{name}`")))
        };
        let payload_header = match proto.forward_payload_header.as_str() {
            "" => None,
            text if proto.pad_forward_payload_header => Some((name(text)?, Padding::Padded)),
            text => Some((name(text)?, Padding::None)),
        };
        let mut claim_headers = Vec::with_capacity(proto.claim_to_headers.len());
        for claim in &proto.claim_to_headers {
            let path = if claim.claim_path.is_empty() {
                claim.claim_name.split('.').map(str::to_owned).collect()
            } else {
                claim
                    .claim_path
                    .iter()
                    .map(|part| part.key.clone())
                    .collect()
            };
            claim_headers.push((name(&claim.header_name)?, path));
        }
        Ok(Self {
            issuer: proto.issuer.clone(),
            audiences: proto.audiences.iter().map(|one| plain(one)).collect(),
            subjects: proto.subjects.as_ref().map(text).transpose()?,
            keys: keys(proto)?,
            places: Places::compile(proto)?,
            keep_token: proto.forward,
            skew: if skew == 0 { CLOCK_SKEW } else { skew },
            require_expiration: proto.require_expiration,
            max_lifetime: proto.max_lifetime.as_ref().map(duration).transpose()?,
            payload_key: proto.payload_in_metadata.clone(),
            space_delimited: normalize
                .map(|normalize| normalize.space_delimited_claims.clone())
                .unwrap_or_default(),
            payload_header,
            claim_headers,
        })
    }

    /// Headers that say what a token claims.
    pub(super) fn output_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let payload = self.payload_header.iter().map(|(name, _)| name);
        payload.chain(self.claim_headers.iter().map(|(name, _)| name))
    }

    /// Where keys are to be fetched from.
    pub(super) fn remote(&self) -> Option<&RemoteSource> {
        match &self.keys {
            KeySource::Given(_) => None,
            KeySource::Remote(source) => Some(source),
        }
    }

    /// All that makes a token good, the signature last: it costs most.
    pub(super) fn verify(
        &self,
        token: &str,
        audiences: Option<&[String]>,
        now: Duration,
        fetched: &KeyStore,
    ) -> Result<Good, Failure> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::Format);
        };
        let (algorithm, key_id) = read_header(header)?;
        let claims = URL_SAFE_NO_PAD.decode(payload);
        let claims = claims.map_err(|_not_base64| Failure::PayloadBase64)?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&claims).map_err(|_not_json| Failure::PayloadJson)?;
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(Failure::SignatureBase64);
        }
        if !self.issuer.is_empty() && text_claim(&claims, "iss")? != Some(&self.issuer) {
            return Err(Failure::UnknownIssuer);
        }
        self.check_subject(&claims)?;
        self.check_times(&claims, now.as_secs())?;
        let own: Option<Vec<String>> =
            audiences.map(|audiences| audiences.iter().map(|one| plain(one)).collect());
        check_audience(&claims, own.as_deref().unwrap_or(&self.audiences))?;
        let message = token.get(..header.len() + 1 + payload.len());
        let message = message.unwrap_or_default();
        let id = key_id.as_deref();
        match &self.keys {
            KeySource::Given(keys) => keys.verify(algorithm, id, message, signature)?,
            KeySource::Remote(source) => {
                let keys = fetched.of(source).current();
                let keys = keys.ok_or(Failure::NotFetched)?;
                keys.verify(algorithm, id, message, signature)?;
            }
        }
        Ok(Good {
            payload: payload.to_owned(),
            claims,
        })
    }

    fn check_subject(&self, claims: &Map<String, Value>) -> Result<(), Failure> {
        let subject = text_claim(claims, "sub")?;
        match &self.subjects {
            Some(allowed) if !subject.is_some_and(|subject| allowed.matches(subject)) => {
                Err(Failure::Subject)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_times(&self, claims: &Map<String, Value>, now: u64) -> Result<(), Failure> {
        // Only its type matters.
        time_claim(claims, "iat")?;
        let not_before = time_claim(claims, "nbf")?;
        let expires = time_claim(claims, "exp")?;
        if not_before.is_some_and(|time| now.saturating_add(self.skew) < time) {
            return Err(Failure::NotYet);
        }
        let Some(expires) = expires else {
            let needed = self.require_expiration || self.max_lifetime.is_some();
            return if needed {
                Err(Failure::Lifetime)
            } else {
                Ok(())
            };
        };
        if now > expires.saturating_add(self.skew) {
            return Err(Failure::Expired);
        }
        match self.max_lifetime {
            Some(most) if expires.saturating_sub(now) > most.as_secs() => Err(Failure::Lifetime),
            Some(_) | None => Ok(()),
        }
    }

    /// Leaves claims in metadata and headers, and takes the token out unless it is to be kept.
    pub(super) fn publish(&self, verified: &Verified, exchange: &mut Exchange, filter: &str) {
        if !self.payload_key.is_empty() {
            let entry = exchange.metadata.entry(filter);
            let entry = entry.or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(fields) = entry {
                let claims = self.normalized(verified.claims.clone());
                fields.insert(self.payload_key.clone(), Value::Object(claims));
            }
        }
        let headers = &mut exchange.head.headers;
        if let Some((name, padding)) = &self.payload_header {
            let text = match padding {
                Padding::None => verified.payload.clone(),
                Padding::Padded => {
                    let bytes = URL_SAFE_NO_PAD.decode(&verified.payload);
                    URL_SAFE.encode(bytes.unwrap_or_default())
                }
            };
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
        for (name, path) in &self.claim_headers {
            if let Some(value) = claim_text(&verified.claims, path)
                && let Ok(value) = HeaderValue::try_from(value)
            {
                headers.insert(name, value);
            }
        }
        if !self.keep_token {
            verified.place.clear(exchange);
        }
    }

    /// Claims like `scope`, which are lists in one text, as lists.
    fn normalized(&self, mut claims: Map<String, Value>) -> Map<String, Value> {
        for name in &self.space_delimited {
            if let Some(claim) = claims.get_mut(name)
                && let Some(text) = claim.as_str()
            {
                *claim = text.split_whitespace().map(Value::from).collect();
            }
        }
        claims
    }
}

fn keys(proto: &JwtProvider) -> Compiled<KeySource> {
    let given = |text: &str| Ok(KeySource::Given(Keys::parse(text)));
    match &proto.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => match &source.specifier {
            Some(Specifier::InlineString(text)) => given(text),
            Some(Specifier::InlineBytes(bytes)) => given(&String::from_utf8_lossy(bytes)),
            _ => Err(Unsupported::new("keys that are not inline")),
        },
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            let source = RemoteSource::compile(remote).at("remote_jwks")?;
            Ok(KeySource::Remote(source))
        }
        None => Err(Unsupported::missing("jwks_source_specifier")),
    }
}

fn read_header(header: &str) -> Result<(Signing, Option<String>), Failure> {
    let header = URL_SAFE_NO_PAD.decode(header);
    let header = header.map_err(|_not_base64| Failure::HeaderBase64)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|_not_json| Failure::HeaderJson)?;
    let algorithm = header.get("alg").and_then(Value::as_str);
    let algorithm = algorithm.ok_or(Failure::Algorithm)?;
    let algorithm = Signing::parse(algorithm).ok_or(Failure::AlgorithmUnknown)?;
    // RFC 7515, 4.1.11: who does not know an extension that is critical must refuse.
    if header.contains_key("crit") {
        return Err(Failure::HeaderJson);
    }
    match header.get("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(id)) => Ok((algorithm, Some(id.clone()))),
        Some(_) => Err(Failure::KeyId),
    }
}

fn text_claim<'a>(
    claims: &'a Map<String, Value>,
    name: &'static str,
) -> Result<Option<&'a String>, Failure> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Failure::Claim(name)),
    }
}

/// Seconds since 1970; parts of a second are left out.
fn time_claim(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, Failure> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let whole = value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| *number >= 0.0)?;
        // No f64 above has a meaning as a time.
        (number < 1e15).then(|| Duration::from_secs_f64(number).as_secs())
    });
    whole.map(Some).ok_or(Failure::Claim(name))
}

fn check_audience(claims: &Map<String, Value>, allowed: &[String]) -> Result<(), Failure> {
    let own: Vec<&str> = match claims.get("aud") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => {
            let all = all.iter().map(Value::as_str);
            all.collect::<Option<_>>().ok_or(Failure::Claim("aud"))?
        }
        Some(_) => return Err(Failure::Claim("aud")),
    };
    if allowed.is_empty() || own.iter().any(|one| allowed.contains(&plain(one))) {
        Ok(())
    } else {
        Err(Failure::Audience)
    }
}

/// Envoy takes `https://shop/` and `shop` for the same audience.
fn plain(audience: &str) -> String {
    let rest = audience
        .strip_prefix("https://")
        .or_else(|| audience.strip_prefix("http://"))
        .unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest).to_owned()
}

/// A claim as a header's value; what is no plain value as JSON in base64url.
fn claim_text(claims: &Map<String, Value>, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let found = rest
        .iter()
        .try_fold(claims.get(first)?, |at, key| at.as_object()?.get(key))?;
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Array(_) | Value::Object(_) => Some(URL_SAFE_NO_PAD.encode(found.to_string())),
        Value::Null => None,
    }
}
