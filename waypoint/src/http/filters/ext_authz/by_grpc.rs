//! An authorizer that is asked by gRPC (`envoy.service.auth.v3`): the question about a request, and the answer.

use std::{collections::HashMap, time::SystemTime};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderMap, HeaderValue as HeaderProto, HeaderValueOption,
            header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            AttributeContext, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::{HttpRequest, Request},
            check_response::HttpResponse,
        },
    },
    google::protobuf::Timestamp,
};
use http::{HeaderName, HeaderValue, StatusCode, Version, header};

use super::{Changes, Config, HeaderForm, PARTIAL_BODY, Verdict, denied, is_of_hop, query};
use crate::{
    authorizer,
    http::{pipeline::Exchange, sample::Sample, server::HttpConnection},
};

pub(super) fn question(
    filter: &Config,
    exchange: &Exchange,
    conn: &HttpConnection,
    seen: Option<&Sample>,
) -> AttributeContext {
    let head = &exchange.head;
    let mut request = HttpRequest {
        id: exchange.random.to_string(),
        method: head.method.to_string(),
        path: exchange.path.clone(),
        host: exchange.authority.clone(),
        scheme: "http".to_owned(),
        size: content_length(exchange).unwrap_or(-1),
        protocol: protocol(head.version).to_owned(),
        ..HttpRequest::default()
    };
    let headers = headers(filter, exchange, seen);
    match filter.form {
        HeaderForm::Text => request.headers = joined(headers),
        HeaderForm::Raw => request.header_map = Some(raw(headers)),
    }
    if let Some(seen) = seen {
        if filter.body.is_some_and(|settings| settings.pack_as_bytes) {
            request.raw_body = seen.bytes.to_vec();
        } else {
            request.body = String::from_utf8_lossy(&seen.bytes).into_owned();
        }
    }
    AttributeContext {
        request: Some(Request {
            time: now(),
            http: Some(request),
        }),
        ..authorizer::attributes(&conn.client, &conn.destination)
    }
}

/// As Envoy tells them: pseudo headers too.
fn headers(filter: &Config, exchange: &Exchange, seen: Option<&Sample>) -> Vec<(String, Vec<u8>)> {
    let head = &exchange.head;
    let own = [
        (":authority", exchange.authority.as_str()),
        (":method", head.method.as_str()),
        (":path", exchange.path.as_str()),
        (":scheme", "http"),
    ];
    let own = own.map(|(name, value)| (name, value.as_bytes()));
    let headers = head
        .headers
        .iter()
        .filter(|(name, _)| *name != header::HOST);
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    let told = own.into_iter().chain(headers);
    let told = told.filter(|(name, _)| filter.is_told(name));
    let mut told: Vec<_> = told
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .collect();
    if let Some(seen) = seen {
        let partial = seen.is_partial.to_string();
        told.push((PARTIAL_BODY.to_string(), partial.into_bytes()));
    }
    told
}

/// As text, several of a name on one line.
fn joined(headers: Vec<(String, Vec<u8>)>) -> HashMap<String, String> {
    let mut told: HashMap<String, String> = HashMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(&value);
        match told.get_mut(&name) {
            Some(before) => {
                before.push(',');
                before.push_str(&value);
            }
            None => {
                told.insert(name, value.into_owned());
            }
        }
    }
    told
}

/// As bytes, each by itself.
fn raw(headers: Vec<(String, Vec<u8>)>) -> HeaderMap {
    let headers = headers.into_iter();
    HeaderMap {
        headers: headers
            .map(|(key, raw_value)| HeaderProto {
                key,
                raw_value,
                ..HeaderProto::default()
            })
            .collect(),
    }
}

fn content_length(exchange: &Exchange) -> Option<i64> {
    let length = exchange.head.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn now() -> Option<Timestamp> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(Timestamp {
        seconds: i64::try_from(now.as_secs()).ok()?,
        // Less than 10^9.
        nanos: now.subsec_nanos() as i32,
    })
}

pub(super) fn verdict(answer: CheckResponse) -> Verdict {
    let allows = authorizer::allows(&answer);
    let metadata = answer.dynamic_metadata.as_ref();
    let metadata = metadata.map(leyline_envoy_json::from_struct);
    match (allows, answer.http_response) {
        (true, Some(HttpResponse::OkResponse(ok))) => {
            let changes = Changes {
                metadata,
                ..changes(ok)
            };
            Verdict::Allowed(Box::new(changes))
        }
        (true, _) => Verdict::Allowed(Box::new(Changes {
            metadata,
            ..Changes::default()
        })),
        (
            false,
            Some(HttpResponse::DeniedResponse(response) | HttpResponse::ErrorResponse(response)),
        ) => refusal(response),
        (false, _) => refusal(DeniedHttpResponse::default()),
    }
}

fn refusal(response: DeniedHttpResponse) -> Verdict {
    let code = response.status.map_or(0, |status| status.code);
    // A code that is none is as none.
    let status = super::status(code).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers.iter().filter_map(header);
    denied(status, response.body, headers)
}

fn changes(ok: OkHttpResponse) -> Changes {
    let mut changes = Changes::default();
    for option in &ok.headers {
        if let Some((name, value)) = header(option).filter(|(name, _)| !is_of_hop(name)) {
            changes.request.put(name, value, how(option, Appending::No));
        }
    }
    for option in &ok.response_headers_to_add {
        if let Some((name, value)) = header(option).filter(|(name, _)| !is_of_hop(name)) {
            changes
                .response
                .put(name, value, how(option, Appending::Yes));
        }
    }
    let remove = ok.headers_to_remove.iter();
    let remove = remove.filter_map(|name| HeaderName::try_from(name.as_str()).ok());
    changes.remove = remove.filter(|name| !is_of_hop(name)).collect();
    changes.query = query::Changes {
        set: ok
            .query_parameters_to_set
            .into_iter()
            .map(|one| (one.key, one.value))
            .collect(),
        remove: ok.query_parameters_to_remove,
    };
    changes
}

/// What is done where an answer does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Appending {
    Yes,
    No,
}

#[expect(deprecated, reason = "it is what authorizers set")]
fn how(option: &HeaderValueOption, default: Appending) -> HeaderAppendAction {
    use HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    match (
        option.append,
        HeaderAppendAction::try_from(option.append_action),
    ) {
        (Some(append), _) if append.value => AppendIfExistsOrAdd,
        (Some(_), _) => OverwriteIfExistsOrAdd,
        // The first of the enumeration is also what is there when nothing is set.
        (None, Ok(AppendIfExistsOrAdd) | Err(_)) if default == Appending::No => {
            OverwriteIfExistsOrAdd
        }
        (None, Ok(action)) => action,
        (None, Err(_)) => AppendIfExistsOrAdd,
    }
}

/// `None`: not a header, or a pseudo header, which authorizers cannot change.
fn header(option: &HeaderValueOption) -> Option<(HeaderName, HeaderValue)> {
    let header = option.header.as_ref()?;
    let name = HeaderName::try_from(header.key.as_str()).ok()?;
    let value = if header.raw_value.is_empty() {
        HeaderValue::try_from(header.value.as_str()).ok()?
    } else {
        HeaderValue::from_bytes(&header.raw_value).ok()?
    };
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_on_one_line_or_each_by_itself() {
        let headers = || {
            let pairs: [(&str, &[u8]); 3] = [("a", b"1"), ("b", b"\xff"), ("a", b"2")];
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_vec()));
            Vec::from(pairs)
        };
        let text = joined(headers());
        assert_eq!(
            (text["a"].as_str(), text["b"].as_str()),
            ("1,2", "\u{fffd}")
        );
        let raw = raw(headers()).headers;
        let raw: Vec<(&str, &[u8])> = raw
            .iter()
            .map(|one| (one.key.as_str(), one.raw_value.as_slice()))
            .collect();
        assert_eq!(raw, [("a", &b"1"[..]), ("b", b"\xff"), ("a", b"2")]);
    }
}
