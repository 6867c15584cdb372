//! All rows, by the modules that they are in.

use std::{future::Future, pin::Pin};

use anyhow::Result;

use crate::{
    connections, egress, gateway_api, matrix, policies, protocols, redirects, services, swaps,
    telemetry, traffic, waypoints, world::World,
};

pub(crate) type Row = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A row for each function of a module.
macro_rules! rows {
    ($($module:ident: $($row:ident)*;)*) => {
        [$($((
            concat!(stringify!($module), "::", stringify!($row)),
            (|world| Box::pin($module::$row(world))) as Row,
        ),)*)*]
    };
}

pub(crate) fn rows() -> Vec<(&'static str, Row)> {
    rows! {
        matrix: services names hbone;
        services:
            pod_ip server_side_lb outbound_policy_allow_any
            service_entry_inlined_workload_entry service_entry_selects_workload_entry
            service_entry_selects_uncaptured_pod service_entry_dns_with_auto_assign
            service_entry_visibility;
        swaps: waypoint_changes;
        waypoints:
            remove_add_waypoint bogus_use_waypoint server_routing traffic_split
            direct waypoint_with_invalid_backend weighted_waypoint_traffic_shift
            weighted_waypoint_canary_not_ready weighted_waypoint_policy_propagation
            cross_namespace_waypoint waypoint_status tcp_route tls_route
            waypoint_xfcc_client_identity waypoint_as_egress_gateway;
        egress:
            waypoint_as_egress_gateway_for_wildcard_entries;
        policies:
            peer_authentication mtls authorization_l4 authorization_service_attached
            authorization_gateway authorization_waypoint_default_deny authorization_l7;
        telemetry:
            customize_metrics l4_telemetry;
        gateway_api:
            mesh_basic mesh_ports mesh_traffic_split mesh_frontend mesh_frontend_hostname
            mesh_http_route_simple_same_namespace mesh_http_route_matching
            mesh_http_route_query_param_matching mesh_http_route_named_rule
            mesh_http_route_weight mesh_http_route_request_header_modifier
            mesh_http_route_backend_request_header_modifier mesh_grpc_route_weight
            mesh_grpc_route_request_header_modifier mesh_grpc_route_request_mirror;
        traffic:
            added_header set_header set_authority_header set_host_header_in_destination
            set_host_header_in_route_and_destination redirect header_matches
            pseudo_header_matches rewrite_uri rewrite_authority rewrite_uri_and_authority cors
            retry_conditions fault_abort fault_abort_grpc
            catch_all_route_short_circuits_the_rest shifting_50 shifting_20 shifting_80
            shifting_100 without_headers without_headers_regex_match_all without_headers_present;
        connections:
            idle_timeout use_client_protocol consistent_hash_source_ip consistent_hash_query
            consistent_hash_header consistent_hash_cookie self_calls protocol_sniffing
            services_with_differing_target_ports service_entry_many_vips;
        protocols: grpc_web header_casing proxy_headers passthrough;
        redirects:
            mesh_http_route_redirect_host_and_status mesh_http_route_redirect_path
            mesh_http_route_redirect_port mesh_http_route_scheme_redirect
            mesh_http_route_rewrite_path mesh_http_route_303_redirect
            mesh_http_route_307_redirect mesh_http_route_308_redirect;
    }
    .to_vec()
}
