//! What HTTP objects have in common: matches, header names, shares, times, hosts.

use super::{Invalid, push};
use crate::objects::{
    duration,
    field::Field,
    l7::{Percent, StringMatch},
};

/// Longest regular expression in bytes once compiled; Envoy has a similar limit for its programs.
const REGEX_SIZE: usize = 1 << 20;

/// Whether a match without any of its three forms has a meaning: presence.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Allowed,
    Refused,
}

/// RE2's syntax, which the proxy matches in linear time.
pub(super) fn regex(text: &str) -> Result<(), String> {
    regex::RegexBuilder::new(text)
        .size_limit(REGEX_SIZE)
        .build()
        .map(drop)
        .map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            format!(
                "`{text}` is not a regular expression: {}",
                reason.trim_start_matches("error: ")
            )
        })
}

pub(super) fn string_match(
    field: &Field,
    text: &StringMatch,
    presence: Presence,
    found: &mut Vec<Invalid>,
) {
    let forms = [&text.exact, &text.prefix, &text.regex];
    match forms.into_iter().flatten().count() {
        0 if presence == Presence::Allowed => {}
        1 => {}
        _ => push(found, field.clone(), "needs one of exact, prefix and regex"),
    }
    if let Some(Err(reason)) = text.regex.as_deref().map(regex) {
        push(found, field.key("regex"), reason);
    }
}

/// A token of RFC 9110, 5.1; `:authority` and the like only where the caller allows them.
pub(super) fn header_name(field: &Field, name: &str, found: &mut Vec<Invalid>) {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        push(
            found,
            field.clone(),
            format!("`{name}` is not a header name"),
        );
    }
}

pub(super) fn header_value(field: &Field, value: &str, found: &mut Vec<Invalid>) {
    if http::HeaderValue::from_str(value).is_err() {
        push(
            found,
            field.clone(),
            format!("`{value}` is not a header value"),
        );
    }
}

pub(super) fn percent(field: &Field, share: Option<Percent>, found: &mut Vec<Invalid>) {
    if let Some(share) = share
        && !(0.0..=100.0).contains(&share.value)
    {
        let reason = format!("{} is not between 0 and 100", share.value);
        push(found, field.key("value"), reason);
    }
}

/// A duration, if there is one.
pub(super) fn time(field: &Field, text: Option<&String>, found: &mut Vec<Invalid>) {
    if let Some(Err(reason)) = text.map(|text| duration::parse(text)) {
        push(found, field.clone(), reason);
    }
}

pub(super) fn one_of(field: &Field, text: &str, allowed: &[&str], found: &mut Vec<Invalid>) {
    if !allowed.contains(&text) {
        let reason = format!("`{text}` is none of {}", allowed.join(", "));
        push(found, field.clone(), reason);
    }
}

pub(super) fn port(field: &Field, number: i64, found: &mut Vec<Invalid>) {
    if let Err(reason) = super::net::port(number) {
        push(found, field.clone(), reason);
    }
}

/// A host name, where `*` may stand for the whole or for the first label.
pub(super) fn host(field: &Field, name: &str, found: &mut Vec<Invalid>) {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if name != "*"
        && let Err(reason) = super::text::dns_subdomain(rest)
    {
        push(found, field.clone(), reason);
    }
}

/// Shares that make a whole: none negative, and not all zero where there are several.
pub(super) fn weights(field: &Field, weights: &[i64], found: &mut Vec<Invalid>) {
    if weights.iter().any(|weight| *weight < 0) {
        push(found, field.clone(), "a weight is negative");
    } else if weights.len() > 1 && weights.iter().sum::<i64>() == 0 {
        push(found, field.clone(), "the weights are all 0");
    }
}

/// An item of a list as `field[index]`.
pub(super) fn each<T>(
    field: &Field,
    items: &[T],
    found: &mut Vec<Invalid>,
    mut check: impl FnMut(&Field, &T, &mut Vec<Invalid>),
) {
    for (index, item) in items.iter().enumerate() {
        check(&field.index(index), item, found);
    }
}
