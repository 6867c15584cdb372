//! What proxies do to headers by themselves (Istio's ProxyConfig, `proxyHeaders`): the one that says who serves, the one that
//! identifies requests, and how the names of HTTP/1.1 headers are written: in lower case, or as clients and applications write
//! them. Of the latter listeners tell for requests, and clusters for responses.

use envoy_types::pb::envoy::{
    config::core::v3::{
        Http1ProtocolOptions, TypedExtensionConfig,
        http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat},
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::ServerHeaderTransformation,
        },
        http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig,
    },
};

use super::pb;
use crate::objects::mesh_config::MeshConfig;

const FORMATTER: &str = "envoy.http.stateful_header_formatters.preserve_case";

/// Changes what holds without a word of the mesh.
pub(super) fn set(manager: &mut HttpConnectionManager, mesh: &MeshConfig) {
    manager.http_protocol_options = http1(mesh);
    let headers = mesh.default_config.proxy_headers.as_ref();
    if let Some(server) = headers.and_then(|headers| headers.server.as_ref()) {
        if server.disabled == Some(true) {
            let pass = ServerHeaderTransformation::PassThrough;
            manager.server_header_transformation = pass.into();
        }
        if !server.value.is_empty() {
            manager.server_name.clone_from(&server.value);
        }
    }
    let id = headers.and_then(|headers| headers.request_id.as_ref());
    if id.is_some_and(|id| id.disabled == Some(true)) {
        manager.generate_request_id = pb::boolean(false);
    }
}

/// None where the mesh says nothing.
pub(super) fn http1(mesh: &MeshConfig) -> Option<Http1ProtocolOptions> {
    let headers = mesh.default_config.proxy_headers.as_ref()?;
    let formatter = TypedExtensionConfig {
        name: FORMATTER.to_owned(),
        typed_config: Some(pb::any(&PreserveCaseFormatterConfig::default())),
    };
    let preserved = headers.preserve_http1_header_case == Some(true);
    preserved.then(|| Http1ProtocolOptions {
        header_key_format: Some(HeaderKeyFormat {
            header_format: Some(HeaderFormat::StatefulFormatter(formatter)),
        }),
        ..Http1ProtocolOptions::default()
    })
}
