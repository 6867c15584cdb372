//! Where in a request tokens are, and how they are taken out of it.

use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtProvider;
use http::{
    HeaderName, HeaderValue,
    header::{AUTHORIZATION, COOKIE},
};

use crate::{
    config::error::{At, Compiled, Unsupported},
    http::pipeline::Exchange,
};

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A header, after this text.
    Header(HeaderName, String),
    /// A query parameter.
    Param(String),
    Cookie(String),
}

/// All places where a provider looks.
#[derive(Debug)]
pub(super) struct Places(Vec<Place>);

impl Places {
    /// RFC 6750, 2.1 and 2.3, where nothing is configured.
    pub(super) fn compile(provider: &JwtProvider) -> Compiled<Self> {
        let mut places = Vec::new();
        for header in &provider.from_headers {
            let name = header
                .name
                .parse()
                .map_err(|_not_a_name| Unsupported::new(format!("header `{}`", header.name)));
            places.push(Place::Header(
                name.at("from_headers")?,
                header.value_prefix.clone(),
            ));
        }
        places.extend(provider.from_params.iter().cloned().map(Place::Param));
        places.extend(provider.from_cookies.iter().cloned().map(Place::Cookie));
        if places.is_empty() {
            places.push(Place::Header(AUTHORIZATION, "Bearer ".to_owned()));
            places.push(Place::Param("access_token".to_owned()));
        }
        Ok(Self(places))
    }

    pub(super) fn contain(&self, place: &Place) -> bool {
        self.0.contains(place)
    }

    /// Tokens with their places. An empty text is no token.
    pub(super) fn find(&self, exchange: &Exchange) -> Vec<(Place, String)> {
        let mut found = Vec::new();
        for place in &self.0 {
            let mut add = |token: &str| {
                if !token.is_empty() {
                    found.push((place.clone(), token.to_owned()));
                }
            };
            match place {
                Place::Header(name, prefix) => {
                    for value in exchange.head.headers.get_all(name) {
                        if let Ok(text) = value.to_str()
                            && let Some(token) = after(text, prefix)
                        {
                            add(token);
                        }
                    }
                }
                Place::Param(name) => {
                    let pairs = query(&exchange.path).split('&');
                    let values = pairs.filter_map(|pair| pair.split_once('='));
                    values
                        .filter(|(key, _)| key == name)
                        .for_each(|(_, value)| add(value));
                }
                Place::Cookie(name) => {
                    for value in exchange.head.headers.get_all(COOKIE) {
                        let pairs = value.to_str().unwrap_or_default().split(';');
                        let pairs = pairs.filter_map(|pair| pair.trim().split_once('='));
                        pairs
                            .filter(|(key, _)| key == name)
                            .for_each(|(_, value)| add(value.trim_matches('"')));
                    }
                }
            }
        }
        found
    }
}

impl Place {
    /// Takes the token out of the request, and with it whatever else is in the same place.
    pub(super) fn clear(&self, exchange: &mut Exchange) {
        match self {
            Self::Header(name, _) => {
                exchange.head.headers.remove(name);
            }
            Self::Param(name) => {
                let kept = without(query(&exchange.path), '&', name).join("&");
                let path = exchange.path.split('?').next().unwrap_or_default();
                exchange.path = if kept.is_empty() {
                    path.to_owned()
                } else {
                    format!("{path}?{kept}")
                };
            }
            Self::Cookie(name) => {
                let headers = &mut exchange.head.headers;
                let kept: Vec<HeaderValue> = headers
                    .get_all(COOKIE)
                    .iter()
                    .filter_map(|value| {
                        let text = value.to_str().ok()?;
                        let kept = without(text, ';', name).join("; ");
                        (!kept.is_empty()).then(|| kept.try_into().ok())?
                    })
                    .collect();
                headers.remove(COOKIE);
                for value in kept {
                    headers.append(COOKIE, value);
                }
            }
        }
    }
}

/// The pairs of a list but those of this name.
fn without<'a>(list: &'a str, between: char, name: &str) -> Vec<&'a str> {
    list.split(between)
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .filter(|pair| pair.split('=').next() != Some(name))
        .collect()
}

fn query(path: &str) -> &str {
    path.split_once('?').map_or("", |(_, query)| query)
}

/// What follows the prefix, wherever that is, as far as it can be a token: `token="…"` has one within quotes.
fn after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(text.trim());
    }
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let (_, rest) = text.split_once(prefix)?;
    let rest = rest.trim_start_matches(|c| !is_token(c));
    let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
    rest.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_follow_their_prefix() {
        for (text, prefix, expected) in [
            ("Bearer a.b.c", "Bearer ", Some("a.b.c")),
            ("bearer a.b.c", "Bearer ", None),
            ("a.b.c", "", Some("a.b.c")),
            ("x token=\"a.b.c\", y", "token=", Some("a.b.c")),
            ("Bearer ", "Bearer ", Some("")),
        ] {
            assert_eq!(after(text, prefix), expected, "{text}");
        }
    }

    #[test]
    fn lists_lose_one_name() {
        assert_eq!(without("a=1&tok=2&b&tok", '&', "tok"), ["a=1", "b"]);
        assert_eq!(without("a=1; tok=2;b=3", ';', "tok"), ["a=1", "b=3"]);
    }
}
