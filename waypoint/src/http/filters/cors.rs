//! `envoy.filters.http.cors`: which origins a browser may call from (Fetch standard, "CORS protocol"). Only routes and
//! virtual hosts carry a policy.

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ORIGIN,
    },
};
use leyline_authz::TextMatch;

use crate::{
    config::{
        error::{Compiled, Unsupported},
        route::matching::Fraction,
        text::text,
    },
    http::{
        pipeline::{Exchange, is_preflight},
        reply::{Flag, Reply},
    },
};

/// The policy of a route.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    origins: Vec<TextMatch>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    /// Preflights of other origins go to the application.
    forward_unmatched: bool,
}

/// What the response is to say; nothing where the request is not of an origin that is allowed.
#[derive(Debug)]
pub(crate) struct Allowed<'a>(Option<(&'a Config, HeaderValue)>);

impl Config {
    pub(crate) fn compile(policy: &CorsPolicy) -> Compiled<Option<Self>> {
        let enabled = policy.filter_enabled.as_ref();
        if let Some(share) = enabled.and_then(|fraction| fraction.default_value.as_ref()) {
            if share.numerator == 0 {
                return Ok(None);
            }
            if !Fraction::compile(share)?.is_whole() {
                return Err(Unsupported::new("filter_enabled for a share of requests"));
            }
        }
        let flag = |value: Option<bool>| value.unwrap_or_default();
        if flag(policy.allow_private_network_access.map(|flag| flag.value)) {
            return Err(Unsupported::new("allow_private_network_access"));
        }
        let value = |name: &str, text: &str| match text {
            "" => Ok(None),
            text => HeaderValue::from_str(text)
                .map(Some)
                .map_err(|_not_a_value| Unsupported::new(format!("{name} `{text}`"))),
        };
        let origins = policy.allow_origin_string_match.iter();
        Ok(Some(Self {
            origins: origins.map(text).collect::<Compiled<_>>()?,
            methods: value("allow_methods", &policy.allow_methods)?,
            headers: value("allow_headers", &policy.allow_headers)?,
            expose: value("expose_headers", &policy.expose_headers)?,
            max_age: value("max_age", &policy.max_age)?,
            credentials: flag(policy.allow_credentials.map(|flag| flag.value)),
            forward_unmatched: policy
                .forward_not_matching_preflights
                .is_none_or(|flag| flag.value),
        }))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().unwrap_or_default();
        !origin.is_empty()
            && self.origins.iter().any(|allowed| match allowed {
                TextMatch::Exact(any) if any == "*" => true,
                allowed => allowed.matches(origin),
            })
    }
}

/// Looks at a request.
///
/// # Errors
/// The answer to a preflight: the application is not asked.
pub(crate) fn check<'a>(
    config: Option<&'a Config>,
    exchange: &Exchange,
) -> Result<Allowed<'a>, Reply> {
    let origin = exchange.head.headers.get(ORIGIN);
    let Some((config, origin)) = config.zip(origin) else {
        return Ok(Allowed(None));
    };
    let preflight = is_preflight(&exchange.head);
    if !config.allows(origin) {
        return if preflight && !config.forward_unmatched {
            Err(answer(Vec::new()))
        } else {
            Ok(Allowed(None))
        };
    }
    if !preflight {
        return Ok(Allowed(Some((config, origin.clone()))));
    }
    let mut headers = vec![(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
    if config.credentials {
        let yes = HeaderValue::from_static("true");
        headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, yes));
    }
    let told = [
        (ACCESS_CONTROL_ALLOW_METHODS, &config.methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, &config.headers),
        (ACCESS_CONTROL_MAX_AGE, &config.max_age),
    ];
    let told = told
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)));
    headers.extend(told);
    Err(answer(headers))
}

fn answer(headers: Vec<(HeaderName, HeaderValue)>) -> Reply {
    let mut reply = Reply::new(StatusCode::OK, Flag::None, "cors_response", "");
    reply.headers = headers;
    reply
}

impl Allowed<'_> {
    /// Tells the browser on a response that its page may read it.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        let Some((config, origin)) = &self.0 else {
            return;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if config.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(expose) = &config.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        google::protobuf::BoolValue,
    };
    use http::Request;

    use super::*;

    fn policy() -> CorsPolicy {
        let origin = |pattern| StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        };
        CorsPolicy {
            allow_origin_string_match: vec![
                origin(MatchPattern::Exact("https://shop.example".to_owned())),
                origin(MatchPattern::Suffix(".test.example".to_owned())),
            ],
            allow_methods: "GET,PUT".to_owned(),
            allow_headers: "x-a".to_owned(),
            expose_headers: "x-b".to_owned(),
            max_age: "60".to_owned(),
            allow_credentials: Some(BoolValue { value: true }),
            ..CorsPolicy::default()
        }
    }

    fn exchange(method: &str, headers: &[(&str, &str)]) -> Exchange {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Exchange {
            head: request.body(()).unwrap().into_parts().0,
            authority: "shop".to_owned(),
            path: "/".to_owned(),
            random: 0,
            metadata: Default::default(),
            malformed: None,
        }
    }

    fn show(headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> String {
        let headers = headers.into_iter();
        let mut lines: Vec<String> = headers
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join("; ")
    }

    #[test]
    fn preflights_are_answered_and_responses_marked() {
        let config = Config::compile(&policy()).unwrap().unwrap();
        let ask = ("access-control-request-method", "PUT");
        let check = |method, headers: &[(&str, &str)]| match check(
            Some(&config),
            &exchange(method, headers),
        ) {
            Ok(allowed) => {
                let mut headers = HeaderMap::new();
                allowed.apply(&mut headers);
                let headers = headers.into_iter();
                show(headers.map(|(name, value)| (name.unwrap(), value)))
            }
            Err(reply) => format!("{} {}", reply.status.as_u16(), show(reply.headers)),
        };
        let shop = ("origin", "https://shop.example");
        let stranger = ("origin", "https://evil.example");
        assert_eq!(
            check("OPTIONS", &[shop, ask]),
            "200 access-control-allow-credentials: true; access-control-allow-headers: x-a; \
             access-control-allow-methods: GET,PUT; \
             access-control-allow-origin: https://shop.example; access-control-max-age: 60"
        );
        let marked = "access-control-allow-credentials: true; \
             access-control-allow-origin: https://shop.example; access-control-expose-headers: x-b";
        assert_eq!(check("GET", &[shop]), marked);
        assert_eq!(check("OPTIONS", &[shop]), marked);
        let tested = ("origin", "https://a.test.example");
        assert!(check("GET", &[tested]).contains("https://a.test.example"));
        for (method, headers) in [
            ("GET", vec![]),
            ("GET", vec![stranger]),
            ("OPTIONS", vec![stranger, ask]),
            ("GET", vec![("origin", "")]),
        ] {
            assert_eq!(check(method, &headers), "", "{method} {headers:?}");
        }
    }

    #[test]
    fn preflights_of_strangers_can_be_kept_from_the_application() {
        let mut policy = policy();
        policy.forward_not_matching_preflights = Some(BoolValue { value: false });
        let config = Config::compile(&policy).unwrap().unwrap();
        let headers = [
            ("origin", "https://evil.example"),
            ("access-control-request-method", "PUT"),
        ];
        let reply = check(Some(&config), &exchange("OPTIONS", &headers)).unwrap_err();
        assert_eq!((reply.status, reply.headers.len()), (StatusCode::OK, 0));
        assert!(check(Some(&config), &exchange("GET", &headers)).is_ok());
        assert!(check(None, &exchange("OPTIONS", &headers)).is_ok());
    }
}
