//! MeshConfig: what Istio's admission refuses.

use leyline_types::TrustDomain;

use super::{
    Invalid,
    http::{self, each, one_of, time},
    metadata_of, push, route,
};
use crate::objects::{
    field::Field,
    key::Kind,
    mesh_config::{
        ExtensionProvider, MeshConfig, MeshConfigMap, OpenTelemetry, OtlpHeader, RequestBody,
    },
};

const NORMALIZATIONS: [&str; 5] = [
    "DEFAULT",
    "NONE",
    "BASE",
    "MERGE_SLASHES",
    "DECODE_AND_MERGE_SLASHES",
];

/// The ConfigMap `istio`; fields are told from the start of the text of its key.
pub(crate) fn mesh_config(object: &MeshConfigMap, found: &mut Vec<Invalid>) {
    metadata_of(Kind::ConfigMap, &object.metadata, found);
    let mesh = &object.mesh;
    let root = Field::of("data.mesh");
    if let Some(encoding) = &mesh.access_log_encoding {
        let field = root.key("accessLogEncoding");
        one_of(&field, encoding, &["TEXT", "JSON"], found);
    }
    if let Some(normalization) = &mesh.path_normalization.normalization {
        let field = root.key("pathNormalization").key("normalization");
        one_of(&field, normalization, &NORMALIZATIONS, found);
    }
    if let Some(retry) = &mesh.default_http_retry_policy {
        route::check_retry(&root.key("defaultHttpRetryPolicy"), retry, found);
    }
    let field = root.key("trustDomainAliases");
    let trust_domain = |field: &Field, name: &String, found: &mut Vec<Invalid>| {
        if let Err(error) = name.parse::<TrustDomain>() {
            let reason = format!("`{name}` is no trust domain: {error}");
            push(found, field.clone(), reason);
        }
    };
    each(&field, &mesh.trust_domain_aliases, found, trust_domain);
    let field = root.key("extensionProviders");
    each(&field, &mesh.extension_providers, found, provider);
    for (index, one) in mesh.extension_providers.iter().enumerate() {
        let before = mesh.extension_providers.iter().take(index);
        if before.into_iter().any(|other| other.name == one.name) {
            let reason = format!("`{}` is the name of another provider, too", one.name);
            push(found, field.index(index).key("name"), reason);
        }
    }
    let sampling = mesh.default_config.tracing.as_ref();
    let sampling = sampling.and_then(|tracing| tracing.sampling);
    if sampling.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        let field = root.key("defaultConfig").key("tracing").key("sampling");
        push(found, field, "is not between 0 and 100");
    }
    proxy_headers(&root, mesh, found);
}

/// A header that nobody could be sent would be left out in silence.
fn proxy_headers(root: &Field, mesh: &MeshConfig, found: &mut Vec<Invalid>) {
    let headers = mesh.default_config.proxy_headers.as_ref();
    let server = headers.and_then(|headers| headers.server.as_ref());
    let is_printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if server.is_some_and(|server| !is_printable(&server.value)) {
        let field = ["defaultConfig", "proxyHeaders", "server", "value"];
        let field = field.iter().fold(root.clone(), |field, key| field.key(key));
        push(found, field, "is no value of a header");
    }
}

fn provider(field: &Field, provider: &ExtensionProvider, found: &mut Vec<Invalid>) {
    if provider.name.is_empty() {
        push(found, field.key("name"), "is needed");
    }
    if provider.kinds() > 1 {
        push(found, field.clone(), "is of more than one kind");
    }
    if let Some(http) = &provider.envoy_ext_authz_http {
        let field = field.key("envoyExtAuthzHttp");
        service(&field, &http.service, http.port, found);
        time(&field.key("timeout"), http.timeout.as_ref(), found);
        status(&field, http.status_on_error.as_deref(), found);
        body(&field, http.include_request_body_in_check.as_ref(), found);
        let prefix = http.path_prefix.as_deref();
        if prefix.is_some_and(|prefix| !prefix.starts_with('/')) {
            push(found, field.key("pathPrefix"), "does not start with /");
        }
        for name in http.include_additional_headers_in_check.keys() {
            let field = field.key("includeAdditionalHeadersInCheck");
            http::header_name(&field, name, found);
        }
    }
    if let Some(grpc) = &provider.envoy_ext_authz_grpc {
        let field = field.key("envoyExtAuthzGrpc");
        service(&field, &grpc.service, grpc.port, found);
        time(&field.key("timeout"), grpc.timeout.as_ref(), found);
        status(&field, grpc.status_on_error.as_deref(), found);
        body(&field, grpc.include_request_body_in_check.as_ref(), found);
    }
    access_logs(field, provider, found);
    if let Some(otlp) = &provider.opentelemetry {
        opentelemetry(&field.key("opentelemetry"), otlp, found);
    }
}

/// Those that go to services.
fn access_logs(field: &Field, provider: &ExtensionProvider, found: &mut Vec<Invalid>) {
    if let Some(als) = &provider.envoy_http_als {
        let field = field.key("envoyHttpAls");
        service(&field, &als.service, als.port, found);
        for (list, names) in [
            (
                "additionalRequestHeadersToLog",
                &als.additional_request_headers_to_log,
            ),
            (
                "additionalResponseHeadersToLog",
                &als.additional_response_headers_to_log,
            ),
            (
                "additionalResponseTrailersToLog",
                &als.additional_response_trailers_to_log,
            ),
        ] {
            let header = |field: &Field, name: &String, found: &mut Vec<Invalid>| {
                http::header_name(field, name, found);
            };
            each(&field.key(list), names, found, header);
        }
    }
    if let Some(als) = &provider.envoy_tcp_als {
        service(&field.key("envoyTcpAls"), &als.service, als.port, found);
    }
    if let Some(als) = &provider.envoy_otel_als {
        service(&field.key("envoyOtelAls"), &als.service, als.port, found);
    }
}

fn opentelemetry(field: &Field, otlp: &OpenTelemetry, found: &mut Vec<Invalid>) {
    service(field, &otlp.service, otlp.port, found);
    let header = |field: &Field, header: &OtlpHeader, found: &mut Vec<Invalid>| {
        http::header_name(&field.key("name"), &header.name, found);
    };
    if let Some(grpc) = &otlp.grpc {
        let field = field.key("grpc");
        time(&field.key("timeout"), grpc.timeout.as_ref(), found);
        let metadata = field.key("initialMetadata");
        each(&metadata, &grpc.initial_metadata, found, header);
    }
    if let Some(http) = &otlp.http {
        let field = field.key("http");
        time(&field.key("timeout"), http.timeout.as_ref(), found);
        each(&field.key("headers"), &http.headers, found, header);
    }
}

fn service(field: &Field, service: &str, port: u32, found: &mut Vec<Invalid>) {
    if service.is_empty() {
        push(found, field.key("service"), "is needed");
    }
    if !u16::try_from(port).is_ok_and(|port| port > 0) {
        let reason = format!("{port} is not a port (1 to 65535)");
        push(found, field.key("port"), reason);
    }
}

fn status(field: &Field, status: Option<&str>, found: &mut Vec<Invalid>) {
    let Some(status) = status else { return };
    let number = status.parse::<u16>().ok();
    if !number.is_some_and(|number| (200..600).contains(&number)) {
        let reason = format!("`{status}` is not an HTTP status (200 to 599)");
        push(found, field.key("statusOnError"), reason);
    }
}

fn body(field: &Field, body: Option<&RequestBody>, found: &mut Vec<Invalid>) {
    if body.is_some_and(|body| body.max_request_bytes == 0) {
        let field = field
            .key("includeRequestBodyInCheck")
            .key("maxRequestBytes");
        push(found, field, "is needed");
    }
}
