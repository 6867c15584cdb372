use std::{borrow::Cow, time::SystemTime};

use super::*;
use crate::format::{Field, Told};

struct Fake;

impl Source for Fake {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some("GET".into()),
            ":path" => Some("/shop/cart?x=1".into()),
            "x-user" => Some("ann".into()),
            _ => None,
        }
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
            Field::ResponseCode => Some(Told::Number(503)),
            Field::UpstreamCluster => Some(Told::text("a|b")),
            _ => None,
        }
    }

    fn start(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

#[test]
fn expressions_have_their_values() {
    let check = |text: &str, expected: Option<&str>| {
        let expression = Expression::compile(text).unwrap();
        assert_eq!(expression.text(&Fake).as_deref(), expected, "{text}");
    };
    check("response.code", Some("503"));
    check("response.code >= 400 && response.code < 600", Some("true"));
    check("!(response.code == 503)", Some("false"));
    check("request.url_path.startsWith('/shop')", Some("true"));
    check(
        "request.path.endsWith('x=1') && 1 + 2 * 3 == 7",
        Some("true"),
    );
    check("request.url_path.matches(\"^/[a-z]+/cart$\")", Some("true"));
    check("request.method in ['PUT', \"GET\"]", Some("true"));
    check(
        "request.headers['X-User'] + '-' + request.query",
        Some("ann-x=1"),
    );
    check("has(request.headers['x-none']) ? 'yes' : 'no'", Some("no"));
    check("request.headers['x-none']", None);
    check("request.headers['x-none'] == 'a' || true", Some("true"));
    check("request.headers['x-none'] == 'a' && false", Some("false"));
    check("request.headers['x-none'] == 'a'", None);
    check(
        "size(request.method) == 3 && request.method.size() == 3",
        Some("true"),
    );
    check("string(response.code) + xds.cluster_name", Some("503a|b"));
    check("10 / 0 == 1", None);
    check("-3 < 2.5", Some("true"));
    check("'it\\'s'", Some("it's"));
    check("response.grpc_status == 0", None);
}

#[test]
fn what_is_not_understood_is_refused() {
    for text in [
        "",
        "response.",
        "response.codes > 3",
        "request.headers[3]",
        "a(",
        "request.method.reverse()",
        "'open",
        "1 +",
        "1 2",
        "request.path.matches('(')",
        "#",
    ] {
        assert!(Expression::compile(text).is_err(), "{text}");
    }
    assert!(Expression::compile(&"(".repeat(100_000)).is_err());
    assert!(Expression::compile(&"!".repeat(100_000)).is_err());
    assert!(Expression::compile(&"[".repeat(100_000)).is_err());
}

#[test]
fn headers_that_are_asked_for_are_told() {
    let expression = Expression::compile("request.headers['A'] == response.headers['b']").unwrap();
    let needed = expression.headers();
    assert_eq!(needed.request, ["a"]);
    assert_eq!(needed.response, ["b"]);
}
