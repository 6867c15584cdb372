//! `sessionAffinity: ClientIP` of a Service, from the YAML to the endpoint that a client stays with.

use std::collections::BTreeSet;

use anyhow::ensure;
use leyline_tests::{client::Client, cluster::Family, eventually::eventually};

use crate::support::{SOON, enrolled_with};

const CALLS: usize = 24;
/// As a person would write it, below the name of the service.
const NAME: &str = "  name: server\n  namespace: shop\nspec:\n  clusterIP";
const WITH_AFFINITY: &str =
    "  name: server\n  namespace: shop\nspec:\n  sessionAffinity: ClientIP\n  clusterIP";

async fn pods(client: &Client, service: std::net::SocketAddr) -> anyhow::Result<BTreeSet<String>> {
    let mut pods = BTreeSet::new();
    for _ in 0..CALLS {
        pods.insert(client.get(service, "/", SOON).await?.description()?.pod);
    }
    Ok(pods)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stays_with_one_endpoint_while_the_service_says_so() {
    let mesh = enrolled_with(&[], &[]).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let vip = mesh.cluster().vip("shop/server", Family::V4, 80).unwrap();
    assert_eq!(pods(&client, vip).await.unwrap().len(), 2);

    let config = mesh.cluster().config();
    let without = config.read("shop.yaml").unwrap();
    let with = without.replacen(NAME, WITH_AFFINITY, 1);
    assert_ne!(with, without);
    config.write("shop.yaml", &with).unwrap();
    eventually("the client stays", SOON, || async {
        let pods = pods(&client, vip).await?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(())
    })
    .await
    .unwrap();
    let kept = pods(&client, vip).await.unwrap();
    assert_eq!(pods(&client, vip).await.unwrap(), kept);

    config.write("shop.yaml", &without).unwrap();
    eventually("the client goes to both", SOON, || async {
        let pods = pods(&client, vip).await?;
        ensure!(pods.len() == 2, "{pods:?}");
        Ok(())
    })
    .await
    .unwrap();
    mesh.stop().await.unwrap();
}
