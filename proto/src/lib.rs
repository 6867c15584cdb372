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
