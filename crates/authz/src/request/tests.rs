use http::{HeaderMap, Method};
use serde_json::json;

use super::*;

struct Given {
    method: Method,
    path: &'static str,
    headers: HeaderMap,
    peer: Option<&'static str>,
    metadata: serde_json::Map<String, Value>,
}

fn given(method: Method, path: &'static str) -> Given {
    let mut headers = HeaderMap::new();
    headers.append("x-many", "a".parse().unwrap());
    headers.append("x-many", "b".parse().unwrap());
    let claims =
        json!({"envoy.filters.http.jwt_authn": {"payload": {"iss": "me", "groups": ["a", "b"]}}});
    Given {
        method,
        path,
        headers,
        peer: Some("spiffe://cluster.local/ns/shop/sa/client"),
        metadata: claims.as_object().unwrap().clone(),
    }
}

impl Given {
    fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            head: RequestHead {
                method: &self.method,
                scheme: "http",
                authority: "web.shop:80",
                path: self.path,
                headers: &self.headers,
            },
            peer: self.peer,
            source_ip: [10, 0, 0, 1].into(),
            remote_ip: [192, 168, 0, 1].into(),
            destination: Some(([10, 96, 0, 1], 80).into()),
            destination_port: 80,
            metadata: &self.metadata,
        }
    }
}

fn check(condition: Condition, expected: bool) {
    let given = given(Method::GET, "/a/b?x=/c");
    assert_eq!(condition.holds(&given.facts()), expected, "{condition:?}");
}

fn header(name: &str, value: Option<TextMatch>, invert: bool) -> Condition {
    Condition::Header(HeaderMatch {
        name: name.parse().unwrap(),
        value,
        invert,
        missing_is_empty: false,
    })
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.to_owned())
}

#[test]
fn conditions() {
    check(Condition::Any, true);
    check(Condition::And(vec![]), true);
    check(Condition::Or(vec![]), false);
    check(Condition::Not(Box::new(Condition::Any)), false);
    check(header(":method", Some(exact("GET")), false), true);
    check(header("Host", Some(exact("web.shop:80")), false), true);
    check(header("x-many", Some(exact("a,b")), false), true);
    check(header("x-many", None, false), true);
    check(header("x-none", None, false), false);
    check(header("x-none", None, true), true);
    check(header("x-none", Some(exact("a")), false), false);
    check(header("x-none", Some(exact("a")), true), true);
    check(Condition::Path(exact("/a/b")), true);
    check(Condition::Path(TextMatch::Suffix("/c".into())), false);
    check(
        Condition::Peer(TextMatch::Suffix("/sa/client".into())),
        true,
    );
    check(Condition::SourceIp("10.0.0.0/8".parse().unwrap()), true);
    check(Condition::RemoteIp("10.0.0.0/8".parse().unwrap()), false);
    check(
        Condition::DestinationIp("10.96.0.0/16".parse().unwrap()),
        true,
    );
    check(Condition::DestinationPort(80, 80), true);
    check(Condition::DestinationPort(81, 90), false);
}

#[test]
fn conditions_on_claims() {
    let claim = |name: &str, value| {
        let path = ["envoy.filters.http.jwt_authn", "payload", name];
        Condition::Metadata(MetadataMatch {
            path: path.map(str::to_owned).to_vec(),
            value,
        })
    };
    check(claim("iss", ValueMatch::Text(exact("me"))), true);
    check(claim("iss", ValueMatch::Text(exact("you"))), false);
    check(claim("none", ValueMatch::Present), false);
    let item = ValueMatch::AnyOf(Box::new(ValueMatch::Text(exact("b"))));
    check(claim("groups", item.clone()), true);
    check(claim("iss", item), false);
}

#[test]
fn a_request_must_pass_every_list() {
    let policy = |id: &str, method: &str| RequestPolicy {
        id: id.into(),
        permission: header(":method", Some(exact(method)), false),
        principal: Condition::Any,
    };
    let rules = |action, method| RequestRules {
        action,
        policies: vec![policy("one", method)],
    };
    let none = RequestRules {
        action: RuleAction::Allow,
        policies: vec![],
    };
    let decide = |lists: &[RequestRules]| {
        let given = given(Method::GET, "/");
        evaluate_request(lists, &given.facts()).map(|_permit| ())
    };
    assert_eq!(decide(&[]), Ok(()));
    assert_eq!(decide(&[rules(RuleAction::Allow, "GET")]), Ok(()));
    assert_eq!(decide(&[rules(RuleAction::Log, "GET")]), Ok(()));
    assert_eq!(decide(&[none]), Err(RequestDenial::NotAllowed));
    assert_eq!(
        decide(&[rules(RuleAction::Allow, "POST")]),
        Err(RequestDenial::NotAllowed)
    );
    assert_eq!(
        decide(&[
            rules(RuleAction::Deny, "GET"),
            rules(RuleAction::Allow, "GET")
        ]),
        Err(RequestDenial::Denied("one".into()))
    );
    assert_eq!(decide(&[rules(RuleAction::Deny, "POST")]), Ok(()));
}

#[test]
fn texts_match_as_envoy_matches_them() {
    let check = |text: Result<TextMatch, PatternError>, value: &str, expected| {
        let text = text.unwrap();
        assert_eq!(text.matches(value), expected, "{text:?} {value}");
    };
    check(Ok(exact("ab")), "AB", false);
    check(exact("ab").ignoring_case(), "AB", true);
    check(TextMatch::Prefix("a.".into()).ignoring_case(), "A.c", true);
    check(TextMatch::Prefix("a.".into()).ignoring_case(), "Abc", false);
    check(TextMatch::Suffix("BC".into()).ignoring_case(), "abc", true);
    check(TextMatch::Contains("B".into()).ignoring_case(), "abc", true);
    check(TextMatch::pattern("a|b"), "b", true);
    check(TextMatch::pattern("a|b"), "bc", false);
    check(TextMatch::pattern("/v[0-9]+"), "/v12/x", false);
    assert!(TextMatch::pattern("(").is_err());
    assert!(TextMatch::pattern("(a{1000}){1000}").is_err());
}
