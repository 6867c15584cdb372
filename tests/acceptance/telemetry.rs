//! Rows of `tests/integration/ambient` about what is told of traffic.

use anyhow::{Result, ensure};
use leyline_tests::eventually::eventually;

use crate::{
    case::get,
    world::{SOON, World},
};

/// A tag of the user's comes, and a label of Istio's goes, for one service.
pub(crate) async fn customize_metrics(world: &World) -> Result<()> {
    let text = "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: row, namespace: apps}
spec:
  targetRefs: [{kind: Service, group: '', name: echo}]
  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides:
        custom_dimension: {value: '\"test\"'}
        source_principal: {operation: REMOVE}
";
    world.apply(text)?;
    eventually("the metric has other labels", SOON, || async {
        get("echo:80", "/").status(200).check(world).await?;
        let metrics = world.mesh.waypoint("apps/waypoint")?.metrics().await?;
        let custom = [
            ("custom_dimension", "test"),
            ("reporter", "waypoint"),
            ("destination_service_name", "echo"),
        ];
        ensure!(
            metrics.sum("istio_requests_total", &custom) > 0.0,
            "none of them"
        );
        let principal = [
            ("custom_dimension", "test"),
            (
                "source_principal",
                "spiffe://cluster.local/ns/apps/sa/client",
            ),
        ];
        ensure!(
            metrics.sum("istio_requests_total", &principal) == 0.0,
            "with the principal"
        );
        Ok(())
    })
    .await
    .map(|_| ())
}

pub(crate) async fn l4_telemetry(world: &World) -> Result<()> {
    world.echoes("apps/client", "apps/echo-v1:9000").await?;
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("source_workload", "client"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/apps/sa/client",
        ),
        ("destination_workload", "echo-v1"),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/apps/sa/echo",
        ),
        ("response_flags", "-"),
    ];
    eventually("the connection is counted", SOON, || async {
        let metrics = world.mesh.ztunnel_of("apps/echo-v1")?.metrics().await?;
        let opened = metrics.sum("istio_tcp_connections_opened_total", &labels);
        ensure!(opened > 0.0, "not counted");
        Ok(())
    })
    .await
    .map(|_| ())
}
