//! The hash of a request, by which it reaches the same endpoint as others of the same hash (Envoy's router does it so:
//! parts are rotated together, and a cookie is made where there is none).

use http::{HeaderMap, HeaderValue, header};
use rand::RngExt;
use twox_hash::XxHash64;

use super::pipeline::Exchange;
use crate::config::route::hash::{Cookie, HashPolicy, HashSource};

/// What ties a request to an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    pub(crate) hash: Option<u64>,
    /// The cookie that makes the client's next requests have the same hash.
    cookie: Option<HeaderValue>,
}

impl Affinity {
    /// Of a request from `client`.
    pub(crate) fn of(
        policies: &[HashPolicy],
        exchange: &Exchange,
        client: std::net::IpAddr,
    ) -> Self {
        let mut affinity = Self::default();
        for policy in policies {
            let headers = &exchange.head.headers;
            let part = match &policy.source {
                HashSource::Header(name) => of_header(headers, name),
                HashSource::SourceIp => Some(hash_of_client(client)),
                HashSource::Query(name) => {
                    query(&exchange.path, name).map(|it| hash(it.as_bytes()))
                }
                HashSource::Cookie(cookie) => match cookie_value(headers, &cookie.name) {
                    Some(value) => Some(hash(value.as_bytes())),
                    None => affinity.make(cookie),
                },
            };
            affinity.hash = match (affinity.hash, part) {
                (Some(before), Some(part)) => Some(before.rotate_left(1) ^ part),
                (before, part) => before.or(part),
            };
            if policy.terminal && affinity.hash.is_some() {
                break;
            }
        }
        affinity
    }

    fn make(&mut self, cookie: &Cookie) -> Option<u64> {
        let ttl = cookie.ttl?;
        let value = format!("{:016x}", rand::rng().random::<u64>());
        let mut text = format!("{}=\"{value}\"", cookie.name);
        if !ttl.is_zero() {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !cookie.path.is_empty() {
            text.push_str(&format!("; Path={}", cookie.path));
        }
        for attribute in &cookie.attributes {
            text.push_str(&format!("; {attribute}"));
        }
        text.push_str("; HttpOnly");
        // Its parts were looked at when the configuration came.
        self.cookie = HeaderValue::try_from(text).ok();
        Some(hash(value.as_bytes()))
    }

    /// Gives the client its cookie.
    pub(crate) fn mark(self, response: &mut HeaderMap) {
        if let Some(cookie) = self.cookie {
            response.append(header::SET_COOKIE, cookie);
        }
    }
}

/// Of a client's address.
pub(crate) fn hash_of_client(client: std::net::IpAddr) -> u64 {
    hash(client.to_string().as_bytes())
}

fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// Of all values, whatever their order.
fn of_header(headers: &HeaderMap, name: &header::HeaderName) -> Option<u64> {
    let mut values: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if values.is_empty() {
        return None;
    }
    values.sort_unstable();
    Some(hash(&values.concat()))
}

/// The first value of a parameter, as it is written.
fn query<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path.split_once('?')?;
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// RFC 6265, 5.4; quotes around a value are not part of it.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter();
    let texts = lines.filter_map(|line| line.to_str().ok());
    let mut pairs = texts
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| key.trim() == name)?;
    let value = value.trim();
    let inner = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    Some(inner.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    fn exchange(path: &str, headers: &[(&str, &str)]) -> Exchange {
        let mut request = http::Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        Exchange {
            head,
            authority: "shop".to_owned(),
            path: path.to_owned(),
            random: 0,
            metadata: serde_json::Map::new(),
            malformed: None,
        }
    }

    fn policy(source: HashSource) -> HashPolicy {
        HashPolicy {
            source,
            terminal: false,
        }
    }

    fn cookie(ttl: Option<Duration>) -> HashPolicy {
        policy(HashSource::Cookie(Cookie {
            name: "user".to_owned(),
            ttl,
            path: "/shop".to_owned(),
            attributes: vec!["SameSite=Strict".to_owned(), "Secure".to_owned()],
        }))
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    #[test]
    fn each_source_gives_the_hash_of_its_value() {
        let of = |bytes: &str| Some(hash(bytes.as_bytes()));
        let header = || {
            policy(HashSource::Header(header::HeaderName::from_static(
                "x-user",
            )))
        };
        let query = || policy(HashSource::Query("user".to_owned()));
        for (policies, path, headers, expected) in [
            (vec![header()], "/", vec![("x-user", "ann")], of("ann")),
            (vec![header()], "/", vec![("x-other", "ann")], None),
            (
                vec![header()],
                "/",
                vec![("x-user", "b"), ("x-user", "a")],
                of("ab"),
            ),
            (vec![query()], "/?a=1&user=ann&user=x", vec![], of("ann")),
            (vec![query()], "/?users=ann", vec![], None),
            (
                vec![policy(HashSource::SourceIp)],
                "/",
                vec![],
                of("10.1.2.3"),
            ),
            (
                vec![cookie(None)],
                "/",
                vec![("cookie", "a=b; user=\"ann\"; c=d")],
                of("ann"),
            ),
            (vec![cookie(None)], "/", vec![("cookie", "users=x")], None),
            (
                vec![header(), query()],
                "/?user=bob",
                vec![("x-user", "ann")],
                Some(hash(b"ann").rotate_left(1) ^ hash(b"bob")),
            ),
        ] {
            let affinity = Affinity::of(&policies, &exchange(path, &headers), CLIENT);
            assert_eq!(affinity.hash, expected, "{policies:?}");
            assert_eq!(affinity.cookie, None);
        }
    }

    #[test]
    fn a_terminal_policy_ends_the_list_when_it_has_a_hash() {
        let header = HashPolicy {
            source: HashSource::Header(header::HeaderName::from_static("x-user")),
            terminal: true,
        };
        let policies = [header, policy(HashSource::SourceIp)];
        let with = Affinity::of(&policies, &exchange("/", &[("x-user", "ann")]), CLIENT);
        assert_eq!(with.hash, Some(hash(b"ann")));
        let without = Affinity::of(&policies, &exchange("/", &[]), CLIENT);
        assert_eq!(without.hash, Some(hash_of_client(CLIENT)));
    }

    #[test]
    fn a_cookie_is_made_that_leads_back_to_the_same_hash() {
        for (ttl, age) in [(3600, "; Max-Age=3600"), (0, "")] {
            let policies = [cookie(Some(Duration::from_secs(ttl)))];
            let first = Affinity::of(&policies, &exchange("/", &[]), CLIENT);
            let hash = first.hash;
            let mut headers = HeaderMap::new();
            first.mark(&mut headers);
            let set = headers[header::SET_COOKIE].to_str().unwrap();
            let (pair, rest) = set.split_once(';').unwrap();
            let expected = format!("{age}; Path=/shop; SameSite=Strict; Secure; HttpOnly");
            assert_eq!(format!(";{rest}"), expected);
            let again = Affinity::of(&policies, &exchange("/", &[("cookie", pair)]), CLIENT);
            assert_eq!((again.hash, again.cookie), (hash, None));
        }
    }
}
