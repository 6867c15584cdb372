//! The acceptance lists of Istio's ambient mode (`tests/integration/ambient`) and of the Gateway API's mesh profile, row by
//! row: each test bears the name of its row. All rows run one after the other on one mesh, which is why this is a harness
//! of its own: libtest can start nothing before its tests and end nothing after them.
//!
//! Rows that need a mesh of their own are in `tests/it`: `l7_telemetry`, `l7_jwt` (with jwtClaimRoute), `destination_rule`,
//! `service_dynamic_enroll`, `service_restart`, `ztunnel_restart`, `ztunnel_secure_metrics`, `simple_http_sandwich`, `waypoint_dns`, `waypoint_dns_connect_strategy`;
//! TestIntermediateCertificateRefresh is `rotation`, crl/ and pqc/ are in `operator` and in the tests of the crate `tls`.
//!
//! Left out:
//! - ingress, egress and east-west gateways, several clusters, sidecars, agentgateway: TestIngress, TestIngressTLS,
//!   TestIngressToWaypoint, TestWeightedWaypointIngressTrafficShift, TestMulticlusterFailover, TestEastWestGatewayTLSRoute,
//!   TestNorthSouth, TestWaypointWithSidecarBackend, agentgateway/
//! - Kubernetes itself (revisions, webhooks, `istioctl`, kubelet, NetworkPolicy): TestOtherRevisionIgnored, TestAPIServer,
//!   TestMetadataServer, TestZtunnelConfig, TestWaypoint, TestK8sNetPol, cni/, cnirepair/, cniupgrade/, untaint/
//! - Lua, Wasm and patches of EnvoyFilters beyond rate limits: TestWaypointEnvoyFilter, TestLuaTrafficExtension_*,
//!   TestTrafficExtension_WasmConfigurations, TestWasmPluginConfigurations
//! - REGISTRY_ONLY (MeshConfig `outboundTrafficPolicy`): no more enforced in ambient mode by Istio's node proxies than by ours,
//!   and told as a warning
//! - MeshConsumerRoute: a route of the client's namespace has no place in ambient mode
#![expect(
    clippy::unwrap_used,
    reason = "a test whose surroundings cannot be made has failed"
)]

mod case;
mod connections;
mod egress;
mod gateway_api;
mod matrix;
mod policies;
mod protocols;
mod redirects;
mod rows;
mod services;
mod swaps;
mod telemetry;
mod traffic;
mod waypoints;
mod world;

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{runtime::Runtime, sync::Mutex};

use rows::{Row, rows};
use world::World;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let runtime = Arc::new(Runtime::new().unwrap());
    let world = Arc::new(Mutex::new(None));
    let trials = rows().into_iter().map(|(name, row)| {
        let (runtime, world) = (runtime.clone(), world.clone());
        Trial::test(name, move || {
            let outcome = runtime.block_on(Box::pin(run(row, &world)));
            outcome.map_err(|e| Failed::from(format!("{e:#}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let started = world.blocking_lock().take();
    if let Some(world) = started {
        runtime.block_on(world.stop()).unwrap();
    }
    conclusion.exit_code()
}

/// The first row starts the mesh. The lock lets one row run at a time.
async fn run(row: Row, world: &Mutex<Option<World>>) -> Result<()> {
    let mut world = world.lock().await;
    let world = match &mut *world {
        Some(world) => world,
        none => none.insert(World::start().await?),
    };
    let outcome = row(world).await;
    world.clear()?;
    outcome
}
