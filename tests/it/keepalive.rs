//! TCP keepalive on the proxies' sockets, as `ss` sees them in the pods.

use anyhow::{Result, ensure};
use leyline_tests::{
    eventually::eventually,
    mesh::Mesh,
    process::{Program, output},
};

use crate::support::{SOON, enrolled_with, hold};

/// Established connections of a pod whose local and remote ends contain these, each with its timer.
async fn connections(mesh: &Mesh, pod: &str, local: &str, remote: &str) -> Result<Vec<String>> {
    let namespace = mesh.cluster().pod(pod)?.namespace();
    let ss = ["ss", "-H", "-t", "-n", "-o", "state", "established"];
    let printed = output(&Program::of_machine("ss", ss, namespace), SOON).await?;
    let found = printed.lines().filter(|line| {
        let mut columns = line.split_whitespace().skip(2);
        let (from, to) = (columns.next(), columns.next());
        from.is_some_and(|end| end.ends_with(local)) && to.is_some_and(|end| end.ends_with(remote))
    });
    Ok(found.map(str::to_owned).collect())
}

/// B2-21: the accepting end of a tunnel too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalive_is_on_at_both_ends_of_a_tunnel_and_can_be_switched_off() {
    let (long, off) = (("KEEPALIVE_TIME", "599s"), ("KEEPALIVE_ENABLED", "false"));
    for (setting, expected) in [(long, "timer:(keepalive,9min"), (off, "")] {
        let mesh = enrolled_with(&["node-a", "node-b"], &[setting]).await;
        let _held = hold(&mesh, "shop/client", "shop/server-v1").await;
        for (pod, local, remote) in [
            ("shop/client", "", ":15008"),
            ("shop/server-v1", ":15008", ""),
        ] {
            let seen = eventually(format!("{setting:?} in {pod}"), SOON, || async {
                let all = connections(&mesh, pod, local, remote).await?;
                ensure!(!all.is_empty(), "no tunnel");
                // Data that is not acknowledged yet has a timer of its own.
                let fits = |line: &String| match expected {
                    "" => !line.contains("keepalive"),
                    timer => line.contains(timer),
                };
                ensure!(all.iter().all(fits), "{all:#?}");
                Ok(())
            });
            seen.await.unwrap();
        }
        mesh.stop().await.unwrap();
    }
}
