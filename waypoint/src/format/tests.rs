use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::*;

struct Fake;

impl Source for Fake {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some("GET".into()),
            ":path" => Some("/a?b=1".into()),
            "user-agent" => Some("curl".into()),
            _ => None,
        }
    }

    fn response(&self, name: &str) -> Option<Cow<'_, str>> {
        (name == "server").then_some("istio-envoy".into())
    }

    fn trailer(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn metadata(&self, path: &[String]) -> Option<Cow<'_, str>> {
        (path == ["jwt", "sub"]).then_some("someone".into())
    }

    fn field(&self, field: Field) -> Option<Told<'_>> {
        match field {
            Field::ResponseCode => Some(Told::Number(200)),
            Field::RouteName => Some(Told::text("über")),
            _ => None,
        }
    }

    fn start(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1500)
    }
}

#[test]
fn operators_become_values() {
    let check = |format: &str, expected: &str| {
        let template = Template::compile(format).unwrap();
        assert_eq!(template.text(&Fake), expected, "{format}");
    };
    check("plain 100%%", "plain 100%");
    check("%REQ(:METHOD)% %RESPONSE_CODE%", "GET 200");
    check("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/a?b=1");
    check(
        "%REQ(USER-AGENT):2%|%REQ(x-none)%|%REQ(x-none):3%",
        "cu|-|-",
    );
    check("%RESP(Server)% %TRAILER(x)%", "istio-envoy -");
    check("%START_TIME%", "1970-01-01T00:00:01.500Z");
    check("%START_TIME(%s.%3f)%", "1.500");
    check("%ROUTE_NAME:1%%ROUTE_NAME:2%", "ü");
    check("%PATH(NQ)% %REQ_WITHOUT_QUERY(:PATH)%", "/a /a");
    check(
        "%DYNAMIC_METADATA(jwt:sub)% %DYNAMIC_METADATA(jwt:x)%",
        "someone -",
    );
}

#[test]
fn what_is_not_known_is_refused() {
    for format in ["%NO_SUCH%", "%REQ()%", "%REQ(a", "50% off", "%REQ(a):x%"] {
        assert!(Template::compile(format).is_err(), "{format}");
    }
}

#[test]
fn json_keeps_types() {
    let json = |format: &str| Template::compile(format).unwrap().json(&Fake);
    assert_eq!(json("%RESPONSE_CODE%"), json!(200));
    assert_eq!(json("%PROTOCOL%"), json!(null));
    assert_eq!(json("code %RESPONSE_CODE%"), json!("code 200"));
}

#[test]
fn a_whole_needs_all_its_parts() {
    let whole = |format: &str| Template::compile(format).unwrap().whole(&Fake);
    assert_eq!(whole("%REQ(:method)%-x"), Some("GET-x".to_owned()));
    assert_eq!(whole("%REQ(x-none)%-x"), None);
}

#[test]
fn needed_headers_are_told_without_pseudo_headers() {
    let template = Template::compile("%REQ(X-A?:PATH)% %REQ(B?C)% %RESP(D)%").unwrap();
    let needed = template.headers();
    assert_eq!(needed.request, ["x-a", "b", "c"]);
    assert_eq!(needed.response, ["d"]);
}

#[test]
fn nothing_ends_a_line_of_text_early() {
    let mut line = String::new();
    escape_into(&mut line, "a\"b\n\\");
    assert_eq!(line, "a\\\"b\\x0a\\\\");
}
