//! Entries of Envoy's access log service (`envoy.data.accesslog.v3`), of what is known of a request or a connection at its end.

use std::{collections::HashMap, net::SocketAddr, time::UNIX_EPOCH};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, RequestMethod, SocketAddress, address, socket_address::PortSpecifier,
        },
        data::accesslog::v3::{
            AccessLogCommon, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties,
            HttpResponseProperties, ResponseFlags, TcpAccessLogEntry, TlsProperties,
            http_access_log_entry::HttpVersion,
            response_flags::{Unauthorized, unauthorized::Reason},
            tls_properties::{
                CertificateProperties,
                certificate_properties::{SubjectAltName, subject_alt_name::San},
            },
        },
    },
    google::protobuf::{Duration as ProtoDuration, Timestamp, UInt32Value},
};

use crate::format::{Field, Needed, Source, Told};

/// Headers that an entry has besides those that are asked for.
const HEADERS: [&str; 5] = [
    "user-agent",
    "referer",
    "x-forwarded-for",
    "x-request-id",
    "x-envoy-original-path",
];

/// What is looked at of requests and responses.
pub(crate) fn needs(more: &Needed) -> Needed {
    let mut needed = Needed {
        request: HEADERS.map(str::to_owned).into(),
        ..Needed::default()
    };
    needed.extend(more.clone());
    needed
}

/// Of a request, with these headers.
pub(crate) fn of_request(source: &dyn Source, more: &Needed) -> HttpAccessLogEntry {
    let request = |name: &str| source.request(name).unwrap_or_default().into_owned();
    let pick = |names: &[String], value: &dyn Fn(&str) -> Option<String>| {
        let found = names.iter();
        let found = found.filter_map(|name| Some((name.clone(), value(name)?)));
        found.collect::<HashMap<String, String>>()
    };
    let protocol = text(source, Field::Protocol);
    let version = match protocol.as_str() {
        "HTTP/1.0" => HttpVersion::Http10,
        "HTTP/1.1" => HttpVersion::Http11,
        "HTTP/2" => HttpVersion::Http2,
        _ => HttpVersion::ProtocolUnspecified,
    };
    HttpAccessLogEntry {
        common_properties: Some(common(source)),
        protocol_version: version.into(),
        request: Some(HttpRequestProperties {
            request_method: RequestMethod::from_str_name(&request(":method"))
                .unwrap_or(RequestMethod::MethodUnspecified)
                .into(),
            scheme: request(":scheme"),
            authority: request(":authority"),
            path: request(":path"),
            user_agent: request("user-agent"),
            referer: request("referer"),
            forwarded_for: request("x-forwarded-for"),
            request_id: request("x-request-id"),
            original_path: request("x-envoy-original-path"),
            request_body_bytes: number(source, Field::BytesReceived),
            request_headers: pick(&more.request, &|name| {
                source.request(name).map(|value| value.into_owned())
            }),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: u32::try_from(number(source, Field::ResponseCode))
                .ok()
                .map(|value| UInt32Value { value }),
            response_body_bytes: number(source, Field::BytesSent),
            response_headers: pick(&more.response, &|name| {
                source.response(name).map(|value| value.into_owned())
            }),
            response_trailers: pick(&more.trailers, &|name| {
                source.trailer(name).map(|value| value.into_owned())
            }),
            response_code_details: text(source, Field::ResponseCodeDetails),
            ..HttpResponseProperties::default()
        }),
    }
}

/// Of a connection.
pub(crate) fn of_connection(source: &dyn Source) -> TcpAccessLogEntry {
    TcpAccessLogEntry {
        common_properties: Some(common(source)),
        connection_properties: Some(ConnectionProperties {
            received_bytes: number(source, Field::BytesReceived),
            sent_bytes: number(source, Field::BytesSent),
        }),
    }
}

fn common(source: &dyn Source) -> AccessLogCommon {
    let remote = address(source, Field::DownstreamRemote);
    let lasts = |field| milliseconds(source, field);
    AccessLogCommon {
        downstream_remote_address: remote.clone(),
        downstream_direct_remote_address: remote,
        downstream_local_address: address(source, Field::DownstreamLocal),
        tls_properties: tls(source),
        start_time: start(source),
        time_to_last_rx_byte: lasts(Field::RequestDuration),
        time_to_first_upstream_tx_byte: lasts(Field::RequestDuration),
        time_to_first_upstream_rx_byte: lasts(Field::ResponseDuration),
        time_to_first_downstream_tx_byte: lasts(Field::ResponseDuration),
        time_to_last_downstream_tx_byte: lasts(Field::Duration),
        duration: lasts(Field::Duration),
        upstream_remote_address: address(source, Field::UpstreamHost),
        upstream_cluster: text(source, Field::UpstreamCluster),
        response_flags: flags(&text(source, Field::ResponseFlags)),
        upstream_transport_failure_reason: text(source, Field::UpstreamTransportFailureReason),
        route_name: text(source, Field::RouteName),
        upstream_request_attempt_count: u32::try_from(number(source, Field::UpstreamAttempts))
            .unwrap_or(u32::MAX),
        connection_termination_details: text(source, Field::ConnectionTerminationDetails),
        ..AccessLogCommon::default()
    }
}

/// Who is at both ends of the tunnel.
fn tls(source: &dyn Source) -> Option<TlsProperties> {
    let certificate = |field| {
        let id = text(source, field);
        (!id.is_empty()).then(|| CertificateProperties {
            subject_alt_name: vec![SubjectAltName {
                san: Some(San::Uri(id)),
            }],
            ..CertificateProperties::default()
        })
    };
    let properties = TlsProperties {
        local_certificate_properties: certificate(Field::LocalPrincipal),
        peer_certificate_properties: certificate(Field::PeerPrincipal),
        ..TlsProperties::default()
    };
    (properties != TlsProperties::default()).then_some(properties)
}

/// Empty where it is not there.
fn text(source: &dyn Source, field: Field) -> String {
    match source.field(field) {
        Some(Told::Text(text)) => text.into_owned(),
        Some(Told::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

fn number(source: &dyn Source, field: Field) -> u64 {
    match source.field(field) {
        Some(Told::Number(number)) => number,
        Some(Told::Text(_)) | None => 0,
    }
}

fn address(source: &dyn Source, field: Field) -> Option<Address> {
    let addr: SocketAddr = text(source, field).parse().ok()?;
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: addr.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(addr.port().into())),
            ..SocketAddress::default()
        })),
    })
}

fn start(source: &dyn Source) -> Option<Timestamp> {
    let since = source.start().duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        nanos: i32::try_from(since.subsec_nanos()).ok()?,
    })
}

fn milliseconds(source: &dyn Source, field: Field) -> Option<ProtoDuration> {
    let Some(Told::Number(millis)) = source.field(field) else {
        return None;
    };
    Some(ProtoDuration {
        seconds: i64::try_from(millis / 1000).ok()?,
        nanos: i32::try_from(millis % 1000).ok()? * 1_000_000,
    })
}

/// By Envoy's letters.
fn flags(letters: &str) -> Option<ResponseFlags> {
    let mut flags = ResponseFlags::default();
    for flag in letters.split(',') {
        match flag {
            "UH" => flags.no_healthy_upstream = true,
            "UT" => flags.upstream_request_timeout = true,
            "UF" => flags.upstream_connection_failure = true,
            "UC" => flags.upstream_connection_termination = true,
            "UO" => flags.upstream_overflow = true,
            "NR" => flags.no_route_found = true,
            "DI" => flags.delay_injected = true,
            "FI" => flags.fault_injected = true,
            "RL" => flags.rate_limited = true,
            "UAEX" => {
                flags.unauthorized_details = Some(Unauthorized {
                    reason: Reason::ExternalService.into(),
                });
            }
            "RLSE" => flags.rate_limit_service_error = true,
            "DC" => flags.downstream_connection_termination = true,
            "URX" => flags.upstream_retry_limit_exceeded = true,
            "SI" => flags.stream_idle_timeout = true,
            "DT" => flags.duration_timeout = true,
            "NC" => flags.no_cluster_found = true,
            "DF" => flags.dns_resolution_failure = true,
            _ => {}
        }
    }
    (flags != ResponseFlags::default()).then_some(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::reply::Flag;

    #[test]
    fn every_flag_has_its_place() {
        for flag in Flag::ALL {
            assert!(flags(flag.as_str()).is_some(), "{flag:?}");
        }
        assert_eq!(flags("-"), None);
        let two = flags("UF,URX").unwrap();
        assert!(two.upstream_connection_failure && two.upstream_retry_limit_exceeded);
    }
}
