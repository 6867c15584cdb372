//! Settings of the mesh and policies in the chains of a waypoint.

use envoy_types::pb::envoy::{
    config::listener::v3::filter::ConfigType as NetworkConfig,
    extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
};

use super::*;

/// The connection manager of the service's HTTP port.
fn manager(config: &WaypointConfig) -> HttpConnectionManager {
    let listeners: Vec<Listener> = decoded(&config.listeners.resources);
    let chains = listeners
        .iter()
        .flat_map(|listener| &listener.filter_chains);
    let mut chains = chains.filter(|chain| chain.name.starts_with("inbound-vip|80|http|"));
    let filter = chains.next().unwrap().filters.last().unwrap();
    let Some(NetworkConfig::TypedConfig(any)) = &filter.config_type else {
        panic!("no configuration");
    };
    HttpConnectionManager::decode(any.value.as_slice()).unwrap()
}

fn mesh_config(namespace: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
    )
}

#[test]
fn paths_are_normalised_as_the_mesh_says() {
    let check = |yaml: &str, expected: (bool, bool, i32)| {
        let (_, config) = config(yaml);
        let manager = manager(&config);
        let found = (
            manager.normalize_path.unwrap().value,
            manager.merge_slashes,
            manager.path_with_escaped_slashes_action,
        );
        assert_eq!(found, expected, "{yaml}");
    };
    let of = |how: &str| {
        let mesh = format!("pathNormalization: {{normalization: {how}}}");
        mesh_config("istio-system", &mesh)
    };
    check("", (true, false, 1));
    check(&of("NONE"), (false, false, 1));
    check(&of("BASE"), (true, false, 1));
    check(&of("MERGE_SLASHES"), (true, true, 1));
    check(&of("DECODE_AND_MERGE_SLASHES"), (true, true, 4));
    check(
        &mesh_config("shop", "pathNormalization: {normalization: NONE}"),
        (true, false, 1),
    );
}

#[test]
fn what_the_mesh_config_cannot_do_is_told() {
    let reasons = |yaml: &str| {
        let (translation, _) = config(yaml);
        let advice = translation.advice.into_iter();
        let of_map = advice.filter(|one| one.object.name == "istio");
        of_map.map(|one| one.reason).collect::<Vec<_>>()
    };
    assert_eq!(
        reasons(&mesh_config("istio-system", "enablePrometheusMerge: true")),
        ["enablePrometheusMerge is not acted on"]
    );
    assert_eq!(
        reasons(&mesh_config(
            "istio-system",
            "extensionProviders: [{name: x, zipkin: {service: s}}]"
        )),
        [
            "extensionProviders[0].zipkin is not acted on",
            "provider x is of a kind that is not supported"
        ]
    );
    assert_eq!(
        reasons(&mesh_config("shop", "{}")),
        ["has no effect outside of the root namespace istio-system"]
    );
}
