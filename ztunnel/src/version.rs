//! What was built.

use serde::Serialize;

/// The fields that `istioctl` reads.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildInfo {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    istio_version: &'static str,
    crypto_provider: &'static str,
}

pub(crate) fn info() -> BuildInfo {
    BuildInfo {
        version: env!("CARGO_PKG_VERSION"),
        git_revision: option_env!("LEYLINE_GIT_REVISION").unwrap_or("unknown"),
        rust_version: env!("CARGO_PKG_RUST_VERSION"),
        build_profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        build_status: option_env!("LEYLINE_BUILD_STATUS").unwrap_or("unknown"),
        istio_version: "unknown",
        crypto_provider: "tls-aws-lc",
    }
}

/// The line that `ztunnel version` prints (facts PRC-1).
pub fn line() -> String {
    let info = info();
    format!(
        "version.BuildInfo{{Version:\"{}\", GitRevision:\"{}\", RustVersion:\"{}\", BuildProfile:\"{}\", \
         BuildStatus:\"{}\", IstioVersion:\"{}\", CryptoProvider:\"{}\"}}",
        info.version,
        info.git_revision,
        info.rust_version,
        info.build_profile,
        info.build_status,
        info.istio_version,
        info.crypto_provider
    )
}
