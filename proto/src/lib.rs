//! The wires that Leyline speaks, as Rust types: workload discovery, authorization, the certificate authority, ZDS,
//! delta ADS and local enrolment. Generated from `proto/` by `cargo xtask codegen`; this crate has no logic.
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::all,
    missing_docs,
    unused_qualifications,
    reason = "generated code follows the generator's style"
)]

pub mod istio {
    pub mod workload {
        include!("gen/istio.workload.rs");
        pub mod zds {
            include!("gen/istio.workload.zds.rs");
        }
    }
    pub mod security {
        include!("gen/istio.security.rs");
    }
    pub mod v1 {
        pub mod auth {
            include!("gen/istio.v1.auth.rs");
        }
    }
}

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("gen/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("gen/envoy.service.discovery.v3.rs");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}

pub mod xds {
    pub mod matcher {
        pub mod v3 {
            include!("gen/xds.r#type.matcher.v3.rs");
        }
    }
}

pub mod leyline {
    pub mod enrolment {
        pub mod v1 {
            include!("gen/leyline.enrolment.v1.rs");
        }
    }
}

/// xDS type of [`istio::workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// xDS type of [`istio::security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// [`xds::matcher::v3::IpMatcher`] in an `Any`.
pub const IP_MATCHER_TYPE: &str = "type.googleapis.com/xds.type.matcher.v3.IPMatcher";
/// Envoy's listeners, clusters, endpoints and routes: what a waypoint is configured by. The crate `envoy-types` has them.
pub const LISTENER_TYPE: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// See [`LISTENER_TYPE`].
pub const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// See [`LISTENER_TYPE`].
pub const ENDPOINT_TYPE: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Certificates, keys and roots of TLS towards applications that want it.
pub const SECRET_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// See [`LISTENER_TYPE`].
pub const ROUTE_TYPE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
