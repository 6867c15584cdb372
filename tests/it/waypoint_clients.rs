//! Clients of the machine that share no code with Leyline: curl, h2load and wrk, through a waypoint.

use std::{net::SocketAddr, time::Duration};

use leyline_net::NetNs;
use leyline_tests::process::{Program, output};

use crate::waypoint::{CANARY, mesh_with_waypoint};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a program of the machine prints, with `URL` among its arguments for the service.
async fn printed(client: &NetNs, vip: SocketAddr, command: &str) -> String {
    let url = format!("http://{vip}/");
    let words = command
        .split_whitespace()
        .map(|word| if word == "URL" { &url } else { word });
    let program = Program::of_machine("client", words, client);
    output(&program, DEADLINE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_h2load_and_wrk_are_answered_through_a_waypoint() {
    let (mesh, vip) = Box::pin(mesh_with_waypoint(&[CANARY])).await;
    let client = mesh.cluster().pod("shop/client").unwrap().namespace();

    for (options, expected) in [
        ("--http1.0", "200/1"),
        ("--http1.1", "200/1.1"),
        ("--http2-prior-knowledge", "200/2"),
        ("--http1.1 --head", "200/1.1"),
        ("--http2-prior-knowledge --head", "200/2"),
        // curl asks before it sends a body of this size.
        (
            "--http1.1 --header expect:100-continue --data-binary @/bin/true",
            "200/1.1",
        ),
        ("--http2-prior-knowledge --data-binary @/bin/true", "200/2"),
    ] {
        let command = format!(
            "curl --silent --show-error --max-time 20 --output /dev/null --write-out %{{http_code}}/%{{http_version}} {options} URL"
        );
        let said = printed(client, vip, &command).await;
        assert_eq!(said, expected, "{options}");
    }

    for protocol in ["--h1 -c 8", "-c 4 -m 8"] {
        let said = printed(client, vip, &format!("h2load {protocol} -n 400 URL")).await;
        let all = "400 done, 400 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all), "{protocol}: {said}");
        assert!(said.contains("status codes: 400 2xx"), "{protocol}: {said}");
    }

    let said = printed(client, vip, "wrk -t 1 -c 8 -d 1s URL").await;
    assert!(said.contains("requests in"), "{said}");
    assert!(!said.contains(" 0 requests in"), "{said}");
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!said.contains(trouble), "{said}");
    }
    mesh.stop().await.unwrap();
}
