//! Connections of which one direction has ended and on which nothing happens any more.

use std::{cell::Cell, net::SocketAddr};

use leyline_net::{Accepted, ListenOptions, accept, listen};
use leyline_tests::{
    access_log,
    client::{Connection, End},
    mesh::Mesh,
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::TcpStream,
    time::timeout,
};

use crate::support::{SOON, addr, enrolled_with, hold};

const CLIENT: &str = "shop/client";
const PORT: u16 = 9555;
const WHY: &str =
    "connection closed because one direction had ended and the other was silent for 1s";

/// Both ends of a connection of which the client has ended its half.
async fn half_closed(mesh: &Mesh, server: &str) -> (SocketAddr, Connection, TcpStream) {
    let namespace = mesh.cluster().pod(server).unwrap().namespace();
    let listener = listen(namespace, PORT, &ListenOptions::default()).unwrap();
    let target = addr(mesh, server, PORT);
    let client = mesh.cluster().client(CLIENT).unwrap();
    let mut connection = client.connect(target, SOON).await.unwrap();
    connection.write(b"last words").await.unwrap();
    connection.finish().await.unwrap();
    let accepted = timeout(SOON, accept(&listener)).await.unwrap().unwrap();
    let Accepted { mut stream, .. } = accepted;
    let mut heard = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut heard)).await;
    read.unwrap().unwrap();
    assert_eq!(heard, b"last words");
    (target, connection, stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_closed_connections_that_are_silent_are_reset() {
    let limit = [("LEYLINE_HALF_CLOSED_TIMEOUT", "1s")];
    let mesh = enrolled_with(&["node-a", "node-b"], &limit).await;
    let node = mesh.ztunnel_of(CLIENT).unwrap();
    // Silent and open is no reason.
    let mut held = hold(&mesh, CLIENT, "shop/server-v1").await;
    for server in ["shop/server-v1", "shop/server-v2"] {
        let (target, mut connection, stream) = half_closed(&mesh, server).await;
        assert_eq!(connection.ended(SOON).await.unwrap(), End::Reset);
        // Its own half has been open all the time.
        let broken = timeout(SOON, stream.ready(Interest::ERROR)).await;
        broken.unwrap().unwrap();
        let target = target.to_string();
        let log = node.log().unwrap();
        let wanted = [
            ("direction", "outbound"),
            ("dst.hbone_addr", target.as_str()),
        ];
        let local = [("path", "node-local"), ("dst.addr", target.as_str())];
        let wanted = if server == "shop/server-v2" {
            &local[..]
        } else {
            &wanted[..]
        };
        let entry = access_log::find(log, wanted, SOON).await.unwrap();
        // The other node may have been first.
        let error = entry.field("error").unwrap();
        assert!(error == WHY || server == "shop/server-v1", "{error}");
    }
    let mut reaped = 0.0;
    for node in ["node-a", "node-b"] {
        let metrics = mesh.ztunnel(node).unwrap().metrics().await.unwrap();
        let labels = [("reason", "half_closed")];
        reaped += metrics.sum("leyline_connections_reaped_total", &labels);
    }
    assert!((2.0..=3.0).contains(&reaped), "{reaped}");
    held.echo(b"still there").await.unwrap();
    mesh.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_silent_are_reset_where_that_is_wanted() {
    let mesh = enrolled_with(&["node-a"], &[("LEYLINE_IDLE_TIMEOUT", "1s")]).await;
    let node = mesh.ztunnel_of(CLIENT).unwrap();
    let mut busy = hold(&mesh, CLIENT, "shop/server-v1").await;
    for server in ["shop/server-v1", "shop/server-v2", "legacy/legacy"] {
        let mut silent = hold(&mesh, CLIENT, server).await;
        let over = Cell::new(false);
        let listen = async {
            let end = silent.ended(SOON).await.unwrap();
            over.set(true);
            end
        };
        let talk = async {
            while !over.get() {
                busy.echo(b"and so on").await.unwrap();
            }
        };
        let (end, ()) = tokio::join!(listen, talk);
        assert_eq!(end, End::Reset, "{server}");
        let target = addr(&mesh, server, 9000).to_string();
        let error = "connection closed because it was silent for 1s";
        let (tunnelled, direct) = (("dst.hbone_addr", &*target), ("dst.addr", &*target));
        let target = if server == "shop/server-v1" {
            tunnelled
        } else {
            direct
        };
        let wanted = [("direction", "outbound"), ("error", error), target];
        access_log::find(node.log().unwrap(), &wanted, SOON)
            .await
            .unwrap();
    }
    let metrics = node.metrics().await.unwrap();
    let reason = [("reason", "idle")];
    assert_eq!(
        metrics.sum("leyline_connections_reaped_total", &reason),
        3.0
    );
    busy.echo(b"to the end").await.unwrap();
    mesh.stop().await.unwrap();
}
