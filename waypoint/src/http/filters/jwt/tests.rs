//! Against keys and tokens that Python's `PyJWT` and `cryptography` made (`tests/vectors.json`).

use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, data_source::Specifier},
        route::v3::{RouteMatch as MatchProto, route_match::PathSpecifier},
    },
    extensions::filters::http::jwt_authn::v3::{
        JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirementOrList, RequirementRule,
        jwt_provider::{JwksSourceSpecifier, NormalizePayload},
    },
};
use futures::FutureExt;
use http::{HeaderMap, Request, StatusCode};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://issuer.example";
/// Within the life of the tokens.
const NOW: Duration = Duration::from_secs(2_000_000_000);

fn vectors() -> Value {
    serde_json::from_str(include_str!("tests/vectors.json")).unwrap()
}

fn token(name: &str) -> String {
    let vectors = vectors();
    let token = vectors["tokens"][name].as_str();
    token
        .unwrap_or_else(|| panic!("no token {name}"))
        .to_owned()
}

fn provider() -> JwtProvider {
    JwtProvider {
        issuer: ISSUER.to_owned(),
        payload_in_metadata: "payload".to_owned(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(vectors()["jwks"].to_string())),
            ..DataSource::default()
        })),
        ..JwtProvider::default()
    }
}

fn requirement(requires_type: RequiresType) -> JwtRequirement {
    JwtRequirement {
        requires_type: Some(requires_type),
    }
}

/// What the control plane asks for: a token of one of them, or none.
fn filter(providers: &[JwtProvider]) -> Config {
    let names = (0..providers.len()).map(|index| format!("origins-{index}"));
    let mut requirements: Vec<_> = names
        .clone()
        .map(|name| requirement(RequiresType::ProviderName(name)))
        .collect();
    requirements.push(requirement(RequiresType::AllowMissing(Default::default())));
    let any = requirement(RequiresType::RequiresAny(JwtRequirementOrList {
        requirements,
    }));
    let filter = JwtAuthentication {
        providers: names.zip(providers.iter().cloned()).collect(),
        rules: vec![RequirementRule {
            r#match: Some(MatchProto {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..MatchProto::default()
            }),
            requirement_type: Some(RequirementType::Requires(any)),
        }],
        bypass_cors_preflight: true,
        ..JwtAuthentication::default()
    };
    Config::compile(&filter).unwrap()
}

fn exchange(path: &str, headers: &[(&str, &str)]) -> Exchange {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Exchange {
        head: request.body(()).unwrap().into_parts().0,
        authority: "shop".to_owned(),
        path: path.to_owned(),
        random: 0,
        metadata: Map::new(),
        malformed: None,
    }
}

fn bearer(token: &str) -> Exchange {
    exchange("/a", &[("authorization", &format!("Bearer {token}"))])
}

/// No keys are to be fetched here, so that nothing is waited for.
fn authenticate(filter: &Config, exchange: &mut Exchange) -> Result<(), Reply> {
    let fetched = KeyStore::default();
    let authenticated = super::authenticate(filter, exchange, &fetched).now_or_never();
    authenticated.expect("no issuer is asked")
}

fn verify(name: &str, now: Duration) -> Result<(), Failure> {
    let provider = Provider::compile(&provider()).unwrap();
    provider
        .verify(&token(name), None, now, &KeyStore::default())
        .map(drop)
}

#[test]
fn every_algorithm_is_verified() {
    for name in [
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
        "RS256 without kid",
    ] {
        assert_eq!(verify(name, NOW), Ok(()), "{name}");
        // One bit of the signature.
        let mut altered = token(name).into_bytes();
        let at = altered.len() - 9;
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        let provider = Provider::compile(&provider()).unwrap();
        let failed = provider
            .verify(&altered, None, NOW, &KeyStore::default())
            .map(drop);
        assert_eq!(failed, Err(Failure::Signature), "{name}");
    }
}

#[test]
fn bad_tokens_are_told_apart() {
    for (name, failure) in [
        ("RS256 of another key", Failure::NoFittingKey),
        ("RS256 signed by a stranger", Failure::Signature),
        ("HS256 keyed with the public key", Failure::NoFittingKey),
        ("none", Failure::AlgorithmUnknown),
        ("critical", Failure::HeaderJson),
        ("numeric iss", Failure::Claim("iss")),
        ("text exp", Failure::Claim("exp")),
        ("numeric aud", Failure::Claim("aud")),
    ] {
        assert_eq!(verify(name, NOW), Err(failure), "{name}");
    }
    let provider = Provider::compile(&provider()).unwrap();
    let good = token("RS256");
    let mut parts = good.split('.');
    let (header, payload) = (parts.next().unwrap(), parts.next().unwrap());
    for (token, failure) in [
        ("".to_owned(), Failure::Format),
        ("a.b".to_owned(), Failure::Format),
        ("a.b.c.d".to_owned(), Failure::Format),
        ("!.b.c".to_owned(), Failure::HeaderBase64),
        ("YQ.b.c".to_owned(), Failure::HeaderJson),
        ("e30.e30.YQ".to_owned(), Failure::Algorithm),
        (format!("{header}.!.c"), Failure::PayloadBase64),
        (format!("{header}.YQ.c"), Failure::PayloadJson),
        (format!("{header}.{payload}.!"), Failure::SignatureBase64),
        (format!("{header}.{payload}."), Failure::SignatureBase64),
        (format!("{header}.e30.YQ"), Failure::UnknownIssuer),
    ] {
        let found = provider
            .verify(&token, None, NOW, &KeyStore::default())
            .map(drop);
        assert_eq!(found, Err(failure), "{token}");
    }
}

#[test]
fn times_are_given_a_minute() {
    let at = |seconds| verify("RS256", Duration::from_secs(seconds));
    assert_eq!(at(2_500_000_060), Ok(()));
    assert_eq!(at(2_500_000_061), Err(Failure::Expired));
    assert_eq!(at(1_499_999_940), Ok(()));
    assert_eq!(at(1_499_999_939), Err(Failure::NotYet));
}

#[test]
fn audiences_issuers_and_keys() {
    let check = |change: &dyn Fn(&mut JwtProvider), expected: Result<(), Failure>| {
        let mut proto = provider();
        change(&mut proto);
        let provider = Provider::compile(&proto).unwrap();
        let found = provider
            .verify(&token("RS256"), None, NOW, &KeyStore::default())
            .map(drop);
        assert_eq!(found, expected);
    };
    check(&|p| p.audiences = vec!["shop".to_owned()], Ok(()));
    check(&|p| p.audiences = vec!["other".to_owned()], Ok(()));
    check(
        &|p| p.audiences = vec!["x".to_owned()],
        Err(Failure::Audience),
    );
    check(
        &|p| p.issuer = "other".to_owned(),
        Err(Failure::UnknownIssuer),
    );
    check(&|p| p.issuer.clear(), Ok(()));
    for keys in [
        "",
        "{}",
        "{\"keys\":[]}",
        "{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}",
    ] {
        let keys = JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(keys.to_owned())),
            ..DataSource::default()
        });
        check(
            &|p| p.jwks_source_specifier = Some(keys.clone()),
            Err(Failure::NoKeys),
        );
    }
}

#[test]
fn a_request_without_a_token_passes_and_one_with_a_bad_one_does_not() {
    let filter = filter(&[provider()]);
    let mut none = exchange("/a", &[("authorization", "Basic eA==")]);
    assert!(authenticate(&filter, &mut none).is_ok());
    assert!(none.metadata.is_empty());

    let mut bad = bearer(&token("RS256 signed by a stranger"));
    bad.path = "/a\"?access_token=x".to_owned();
    let reply = authenticate(&filter, &mut bad).unwrap_err();
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.body, "Jwt verification fails");
    assert_eq!(
        reply.details,
        "jwt_authn_access_denied{Jwt_verification_fails}"
    );
    assert_eq!(
        reply.headers[0].1,
        "Bearer realm=\"http://shop/a%22\", error=\"invalid_token\""
    );

    let mut preflight = bearer("bad");
    preflight.head.method = http::Method::OPTIONS;
    assert!(authenticate(&filter, &mut preflight).is_err());
    let headers = &mut preflight.head.headers;
    headers.insert("origin", "http://a".parse().unwrap());
    headers.insert("access-control-request-method", "PUT".parse().unwrap());
    assert!(authenticate(&filter, &mut preflight).is_ok());
}

#[test]
fn claims_reach_metadata_and_headers_and_the_token_goes_no_further() {
    let header = |name: &str, claim: &str| JwtClaimToHeader {
        header_name: name.to_owned(),
        claim_name: claim.to_owned(),
        ..JwtClaimToHeader::default()
    };
    let mut proto = provider();
    proto.normalize_payload_in_metadata = Some(NormalizePayload {
        space_delimited_claims: vec!["scope".to_owned()],
    });
    proto.forward_payload_header = "x-payload".to_owned();
    proto.claim_to_headers = vec![
        header("x-sub", "sub"),
        header("x-city", "address.city"),
        header("x-admin", "admin"),
        header("x-level", "level"),
        header("x-groups", "groups"),
        header("x-none", "none"),
    ];
    let filter = filter(&[proto]);
    let mut request = bearer(&token("ES256"));
    for name in ["x-sub", "x-none", "x-payload"] {
        request.head.headers.insert(name, "forged".parse().unwrap());
    }
    authenticate(&filter, &mut request).unwrap();
    let claims = &request.metadata[NAME]["payload"];
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["scope"], json!(["read", "write"]));
    let found = |name: &str| {
        request
            .head
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    assert_eq!(found("x-sub"), Some("alice"));
    assert_eq!(found("x-city"), Some("Oslo"));
    assert_eq!(found("x-admin"), Some("true"));
    assert_eq!(found("x-level"), Some("3"));
    assert_eq!(found("x-groups"), Some("WyJhIiwiYiJd"));
    assert_eq!(found("x-none"), None);
    assert_eq!(found("x-payload"), token("ES256").split('.').nth(1));
    assert_eq!(found("authorization"), None);

    let mut without = exchange("/", &[("x-sub", "forged")]);
    authenticate(&filter, &mut without).unwrap();
    assert_eq!(without.head.headers, HeaderMap::new());
}

#[test]
fn tokens_are_found_where_they_are_said_to_be() {
    let token = token("EdDSA");
    let check = |change: &dyn Fn(&mut JwtProvider), path: &str, headers: &[(&str, &str)]| {
        let mut proto = provider();
        change(&mut proto);
        let mut request = exchange(&path.replace("TOKEN", &token), &[]);
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            let value = value.replace("TOKEN", &token).parse().unwrap();
            request.head.headers.append(name, value);
        }
        authenticate(&filter(&[proto]), &mut request).unwrap();
        let verified = request.metadata.contains_key(NAME);
        let text = format!("{} {:?}", request.path, request.head.headers);
        (verified, text.contains(&token))
    };
    let default = |_: &mut JwtProvider| {};
    let own = |proto: &mut JwtProvider| {
        proto.from_headers = vec![JwtHeader {
            name: "x-jwt".to_owned(),
            value_prefix: "jwt ".to_owned(),
        }];
        proto.from_params = vec!["tok".to_owned()];
        proto.from_cookies = vec!["session".to_owned()];
    };
    let kept = |proto: &mut JwtProvider| proto.forward = true;
    assert_eq!(
        check(&default, "/?a=1&access_token=TOKEN", &[]),
        (true, false)
    );
    assert_eq!(check(&kept, "/?access_token=TOKEN", &[]), (true, true));
    assert_eq!(check(&own, "/?access_token=TOKEN", &[]), (false, true));
    assert_eq!(check(&own, "/?tok=TOKEN&b=2", &[]), (true, false));
    assert_eq!(check(&own, "/", &[("x-jwt", "jwt TOKEN")]), (true, false));
    assert_eq!(
        check(&own, "/", &[("authorization", "Bearer TOKEN")]),
        (false, true)
    );
    let cookie = [("cookie", "a=b; session=TOKEN"), ("cookie", "c=d")];
    assert_eq!(check(&own, "/", &cookie), (true, false));
}

#[test]
fn a_token_is_for_the_provider_of_its_issuer() {
    let mut other = provider();
    other.issuer = "https://other.example".to_owned();
    let both = filter(&[other.clone(), provider()]);
    assert!(authenticate(&both, &mut bearer(&token("RS256"))).is_ok());
    let reply = authenticate(&filter(&[other]), &mut bearer(&token("RS256"))).unwrap_err();
    assert_eq!(reply.body, "Jwt issuer is not configured");
    let mut reply = authenticate(&both, &mut bearer("x")).unwrap_err();
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    // What the provider of its issuer says of it, whatever the others say.
    reply = authenticate(&both, &mut bearer(&token("RS256 signed by a stranger"))).unwrap_err();
    assert_eq!(reply.body, "Jwt verification fails");
}
