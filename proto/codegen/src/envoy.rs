//! Descriptors of the messages that a waypoint is configured by.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, MessageOptions};

const FILE: &str = "crates/envoy-json/src/gen/envoy.bin";
/// Where `envoy-types` keeps the files of several projects.
const ROOTS: [&str; 6] = [
    "data-plane-api",
    "googleapis",
    "protoc-gen-validate",
    "xds",
    "cel-spec/proto",
    "opentelemetry-proto",
];
/// The resources, the pages, and what is packed into resources for a waypoint by istiod, by our control plane and by EnvoyFilters.
const SOURCES: [&str; 49] = [
    "envoy/admin/v3/config_dump.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/config/trace/v3/datadog.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/access_loggers/filters/cel/v3/cel.proto",
    "envoy/extensions/clusters/dns/v3/dns_cluster.proto",
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto",
    "envoy/extensions/filters/common/fault/v3/fault.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/formatter/cel/v3/cel.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/extensions/load_balancing_policies/override_host/v3/override_host.proto",
    "envoy/extensions/matching/common_inputs/network/v3/network_inputs.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "xds/type/matcher/v3/ip.proto",
    "xds/type/v3/typed_struct.proto",
    "udpa/type/v1/typed_struct.proto",
];

const ALONE: [&str; 3] = [
    "envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3/sni_dynamic_forward_proxy.proto",
];

pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let protos = source(root)?;
    let ours = std::iter::once(root.join("proto/describe"));
    let includes: Vec<PathBuf> = ours.chain(ROOTS.map(|part| protos.join(part))).collect();
    let mut set = FileDescriptorSet::default();
    // Some files mean `envoy.extensions.common` by `common`; protox finds `envoy.extensions.filters.common` where that is there.
    for sources in [SOURCES.as_slice(), &ALONE] {
        let more = protox::compile(sources, &includes).context("compiling Envoy's protos")?;
        for file in more.file {
            if !set.file.iter().any(|known| known.name == file.name) {
                set.file.push(file);
            }
        }
    }
    reduce(&mut set);
    let bytes = set.encode_to_vec();
    let committed = root.join(FILE);
    if !check {
        fs::create_dir_all(committed.parent().context("a file has a directory")?)?;
        return fs::write(committed, bytes).context(FILE);
    }
    if fs::read(committed).context(FILE)? != bytes {
        bail!("{FILE} differs from the protos of envoy-types; run `cargo xtask codegen`");
    }
    Ok(())
}

/// Where Cargo keeps the sources of the version that is built with.
fn source(root: &Path) -> Result<PathBuf> {
    let metadata = MetadataCommand::new().current_dir(root).exec()?;
    let mut packages = metadata.packages.iter();
    let package = packages.find(|package| package.name.as_str() == "envoy-types");
    let manifest = &package.context("envoy-types is not used")?.manifest_path;
    let directory = manifest.parent().context("a manifest has a directory")?;
    Ok(directory.join("proto").into())
}

/// Leaves out what only compilers and validators look at: two thirds of it.
fn reduce(set: &mut FileDescriptorSet) {
    for file in &mut set.file {
        file.source_code_info = None;
        file.service.clear();
        file.extension.clear();
        file.options = None;
        file.enum_type.iter_mut().for_each(reduce_enum);
        file.message_type.iter_mut().for_each(reduce_message);
    }
}

fn reduce_message(message: &mut DescriptorProto) {
    message.extension.clear();
    // Whether it is the entry of a map has to stay.
    let is_entry = message
        .options
        .as_ref()
        .and_then(|options| options.map_entry);
    message.options = is_entry.map(|is_entry| MessageOptions {
        map_entry: Some(is_entry),
        ..Default::default()
    });
    for field in &mut message.field {
        field.options = None;
    }
    for one in &mut message.oneof_decl {
        one.options = None;
    }
    message.enum_type.iter_mut().for_each(reduce_enum);
    message.nested_type.iter_mut().for_each(reduce_message);
}

fn reduce_enum(one: &mut EnumDescriptorProto) {
    one.options = None;
    for value in &mut one.value {
        value.options = None;
    }
}
