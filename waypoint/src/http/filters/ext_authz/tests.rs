//! What authorizers are told and may do, without the wire.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            GrpcService, HeaderValue as HeaderProto, HeaderValueOption, HttpUri,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            http_uri::HttpUpstreamType,
        },
        extensions::filters::http::ext_authz::v3::{AuthorizationResponse, HttpService},
        service::auth::v3::{
            CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
        },
        r#type::{
            matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::HttpStatus,
        },
    },
    google::{protobuf::Duration as ProtoDuration, rpc::Status},
};
use http::Response;

use super::*;

fn grpc() -> ExtAuthz {
    ExtAuthz {
        services: Some(Services::GrpcService(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: "outbound|9000||authz".to_owned(),
                ..EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        })),
        ..ExtAuthz::default()
    }
}

#[test]
fn failures_refuse_with_403_where_nothing_is_said() {
    let check = |proto: &ExtAuthz, expected: OnFailure| {
        assert_eq!(Config::compile(proto).unwrap().on_failure, expected);
    };
    check(&grpc(), OnFailure::Refuse(StatusCode::FORBIDDEN));
    let busy = Some(HttpStatus { code: 503 });
    let status_on_error = busy;
    check(
        &ExtAuthz {
            status_on_error,
            ..grpc()
        },
        OnFailure::Refuse(StatusCode::SERVICE_UNAVAILABLE),
    );
    check(
        &ExtAuthz {
            failure_mode_allow: true,
            ..grpc()
        },
        OnFailure::Pass,
    );
}

#[test]
fn what_would_be_another_filter_is_refused() {
    let check = |proto: ExtAuthz, field: &str| {
        let error = Config::compile(&proto).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    };
    check(
        ExtAuthz {
            services: None,
            ..grpc()
        },
        "services",
    );
    check(
        ExtAuthz {
            shadow_mode: true,
            ..grpc()
        },
        "shadow_mode",
    );
    let metadata_context_namespaces = vec!["x".to_owned()];
    check(
        ExtAuthz {
            metadata_context_namespaces,
            ..grpc()
        },
        "metadata_context_namespaces",
    );
    let wrong = Some(HttpStatus { code: 7 });
    check(
        ExtAuthz {
            status_on_error: wrong,
            ..grpc()
        },
        "HTTP status 7",
    );
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderProto {
            key: key.to_owned(),
            value: value.to_owned(),
            ..HeaderProto::default()
        }),
        ..HeaderValueOption::default()
    }
}

fn answer(code: i32, response: HttpResponse) -> CheckResponse {
    CheckResponse {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        http_response: Some(response),
        ..CheckResponse::default()
    }
}

fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let headers = headers.iter();
    headers
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

#[test]
fn grpc_changes_headers_as_it_says() {
    let ok = OkHttpResponse {
        headers: vec![
            option("x-user", "alice"),
            option("host", "elsewhere"),
            option(":path", "/elsewhere"),
        ],
        headers_to_remove: vec!["x-secret".to_owned(), "Host".to_owned()],
        response_headers_to_add: vec![option("x-seen", "1")],
        ..OkHttpResponse::default()
    };
    let verdict = by_grpc::verdict(answer(0, HttpResponse::OkResponse(ok)));
    let Verdict::Allowed(changes) = verdict else {
        panic!("{verdict:?}");
    };
    let mut headers = map(&[("host", "canary"), ("x-user", "forged"), ("x-secret", "1")]);
    changes.request.apply(&mut headers);
    for name in &changes.remove {
        headers.remove(name);
    }
    assert_eq!(headers, map(&[("host", "canary"), ("x-user", "alice")]));
    let mut headers = map(&[("x-seen", "0")]);
    changes.response.apply(&mut headers);
    assert_eq!(headers.get_all("x-seen").iter().count(), 2);
}

#[test]
fn grpc_refuses_as_it_says_or_with_403() {
    let check = |response: DeniedHttpResponse, status: u16, body: &str| {
        let verdict = by_grpc::verdict(answer(7, HttpResponse::DeniedResponse(response)));
        let Verdict::Denied(reply) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (status, body.as_bytes())
        );
        assert_eq!(reply.flag, Flag::UnauthorizedExternalService);
        assert_eq!(reply.details, "ext_authz_denied");
    };
    check(DeniedHttpResponse::default(), 403, "");
    let response = DeniedHttpResponse {
        status: Some(HttpStatus { code: 302 }),
        body: "log in".to_owned(),
        headers: vec![option("location", "/login"), option("content-length", "9")],
    };
    check(response, 302, "log in");
    // A refusal that says how the request is to be changed is a refusal.
    let ok = HttpResponse::OkResponse(OkHttpResponse::default());
    assert!(matches!(
        by_grpc::verdict(answer(7, ok)),
        Verdict::Denied(_)
    ));
}

fn list(names: &[&str]) -> Option<ListStringMatcher> {
    let pattern = |name: &&str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact((*name).to_owned())),
        ignore_case: true,
    };
    Some(ListStringMatcher {
        patterns: names.iter().map(pattern).collect(),
    })
}

#[test]
fn http_allows_by_200_and_tells_only_what_is_listed() {
    let service = by_http::Service::compile(&HttpService {
        server_uri: Some(HttpUri {
            timeout: Some(ProtoDuration {
                seconds: 1,
                nanos: 0,
            }),
            http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
            ..HttpUri::default()
        }),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: list(&["x-user"]),
            allowed_client_headers: list(&["x-why"]),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    });
    let service = service.unwrap();
    let answer = |status: u16| {
        let mut response = Response::new(bytes::Bytes::from_static(b"body"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = map(&[
            ("x-user", "alice"),
            ("x-why", "because"),
            ("www-authenticate", "Basic"),
            ("x-other", "1"),
        ]);
        service.verdict(response)
    };
    let Ok(Verdict::Allowed(changes)) = answer(200) else {
        panic!("refused");
    };
    let mut headers = map(&[("x-user", "forged")]);
    changes.request.apply(&mut headers);
    assert_eq!(headers, map(&[("x-user", "alice")]));
    for status in [204, 302, 401] {
        let Ok(Verdict::Denied(reply)) = answer(status) else {
            panic!("{status} is no refusal");
        };
        let mut names: Vec<&str> = reply
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["www-authenticate", "x-why"]);
    }
    assert!(answer(500).is_err());
}
