//! Policies and live connections: once a change is in force, nothing that it forbids lives.

use std::net::SocketAddr;

use anyhow::ensure;
use leyline_tests::{
    client::{Client, Connection, End},
    eventually::eventually,
    mesh::{Enrolment, Mesh},
};
use tokio::{sync::watch, task::JoinSet};

use crate::support::{SOON, addr, enrolled_with, hold, inbound_of};

const DENY_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-client, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {principals: [\"*/sa/client\"]}}]
";
/// For the servers of one version only.
const DENY_SELECTED: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: sealed, namespace: shop}
spec:
  selector: {matchLabels: {sealed: \"yes\"}}
";

/// Opens connections without a pause, keeps those that were served, and gives them up when told to stop.
async fn open_many(
    client: Client,
    target: SocketAddr,
    stop: watch::Receiver<bool>,
) -> Vec<Connection> {
    let mut open = Vec::new();
    while !*stop.borrow() {
        if let Ok(mut connection) = client.connect(target, SOON).await
            && connection.echo(b"x").await.is_ok()
        {
            open.push(connection);
        }
        if open.len() > 100 {
            open.clear();
        }
    }
    open
}

/// Whether every proxy has the policy, or none.
async fn in_force(mesh: &Mesh, name: &str, expected: bool) {
    let key = format!("shop/{name}");
    let what = format!("{key} in force: {expected}");
    let done = eventually(what, SOON, || async {
        for (node, dump) in mesh.dumps().await? {
            ensure!(dump.policies.contains(&key) == expected, "on {node}");
        }
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_slips_through_a_change_of_policy() {
    const ROUNDS: usize = 4;
    const OPENERS: usize = 4;
    let mesh = enrolled_with(&[], &[]).await;
    let client = mesh.cluster().client("shop/client").unwrap();
    let servers = ["shop/server-v1", "shop/server-v2"];
    for _ in 0..ROUNDS {
        let (stop, stopped) = watch::channel(false);
        let mut openers = JoinSet::new();
        for server in servers {
            let target = addr(&mesh, server, 9000);
            for _ in 0..OPENERS {
                openers.spawn(open_many(client.clone(), target, stopped.clone()));
            }
        }
        let busy = eventually("connections are open", SOON, || async {
            for server in servers {
                ensure!(inbound_of(&mesh, server).await? > 10, "few to {server}");
            }
            Ok(())
        });
        busy.await.unwrap();
        mesh.write_check_file("policy", DENY_CLIENT).unwrap();
        in_force(&mesh, "not-the-client", true).await;
        // Still opening; what is admitted now would be an error.
        let none = eventually("no forbidden connection lives", SOON, || async {
            for server in servers {
                let live = inbound_of(&mesh, server).await?;
                ensure!(live == 0, "{live} to {server}");
            }
            Ok(())
        });
        none.await.unwrap();
        stop.send(true).unwrap();
        for mut connection in openers.join_all().await.into_iter().flatten() {
            assert!(connection.echo(b"forbidden").await.is_err());
        }
        mesh.remove_check_file("policy").unwrap();
        in_force(&mesh, "not-the-client", false).await;
    }
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_comes_under_a_policy_loses_its_connections() {
    let mesh = enrolled_with(&[], &[]).await;
    mesh.write_check_file("policy", DENY_SELECTED).unwrap();
    in_force(&mesh, "sealed", true).await;
    let mut kept = hold(&mesh, "shop/client", "shop/server-v2").await;
    let mut tunnelled = hold(&mesh, "shop/client", "shop/server-v1").await;
    let mut plain = hold(&mesh, "legacy/legacy", "shop/server-v1").await;
    // The policy stays as it is; only the workload changes.
    let config = mesh.cluster().config();
    let text = config.read("shop.yaml").unwrap();
    let sealed = text.replacen(
        "version: v1\nspec:\n  nodeName: node-b",
        "version: v1\n    sealed: \"yes\"\nspec:\n  nodeName: node-b",
        1,
    );
    assert_ne!(sealed, text);
    config.write("shop.yaml", &sealed).unwrap();
    for held in [&mut tunnelled, &mut plain] {
        assert_eq!(held.ended(SOON).await.unwrap(), End::Reset);
    }
    kept.echo(b"not selected").await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_from_before_a_release_stay_under_the_policies() {
    let mesh = enrolled_with(&[], &[]).await;
    let mut held = hold(&mesh, "shop/client", "shop/server-v1").await;
    for enrolment in [Enrolment::None, Enrolment::Ambient] {
        mesh.set_enrolment("shop", enrolment).await.unwrap();
        held.echo(b"carried on").await.unwrap();
    }
    assert!(inbound_of(&mesh, "shop/server-v1").await.unwrap() > 0);
    mesh.write_check_file("policy", DENY_CLIENT).unwrap();
    assert_eq!(held.ended(SOON).await.unwrap(), End::Reset);
    mesh.stop().await.unwrap();
}
