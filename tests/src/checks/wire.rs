//! Check 2: on the wire between the nodes a secret in a request body is seen before the label and never after it, and then
//! only port 15008 is used between pods of the mesh.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use leyline_types::ports::HBONE;

use super::names::{CLIENT, HTTP, HTTP_SERVICE, SERVER, SERVER_V1, SHOP, TCP};
use crate::{
    cluster::Family,
    controlplane, fabric,
    mesh::{Enrolment, Mesh},
    sniffer::{Packet, Sniffer},
};

/// Long enough to be in no packet by chance, short enough to be in one.
pub(super) const SECRET: &[u8] = b"the-secret-of-the-cherry-orchard";

pub(super) async fn check(mesh: &Mesh) -> Result<String> {
    mesh.set_enrolment(SHOP, Enrolment::None).await?;
    let sniffer = Sniffer::start(mesh.cluster().fabric().infra(), SECRET)?;
    send_secret_to_pods(mesh)
        .await
        .context("before the label")?;
    let before = of_pods(sniffer.stop().await?);
    ensure!(
        before.iter().any(|packet| packet.secret),
        "the sniffer is blind: no secret among {} packets in plain text",
        before.len()
    );

    mesh.set_enrolment(SHOP, Enrolment::Ambient).await?;
    let sniffer = Sniffer::start(mesh.cluster().fabric().infra(), SECRET)?;
    send_secret_to_pods(mesh).await.context("after the label")?;
    send_secret_to_vip(mesh).await.context("after the label")?;
    let after = of_pods(sniffer.stop().await?);
    let tunnelled = check_hidden(&after)?;
    ensure!(tunnelled > 0, "no packet at all passed between the nodes");
    Ok(format!(
        "before the label the secret was in {} of {} packets, after it in none of {tunnelled}, all of them to or from port {HBONE}",
        before.iter().filter(|packet| packet.secret).count(),
        before.len(),
    ))
}

/// Nothing but HBONE and waypoints' configuration, and no secret. Returns the number of packets.
pub(super) fn check_hidden(packets: &[Packet]) -> Result<usize> {
    for packet in packets {
        let ports = [packet.source.port(), packet.destination.port()];
        if packet.secret || !(ports.contains(&HBONE) || is_of_control_plane(packet)) {
            bail!("seen on the wire: {packet}");
        }
    }
    Ok(packets.len())
}

/// A waypoint is a pod, and talks to the control plane by TLS of its own.
fn is_of_control_plane(packet: &Packet) -> bool {
    [packet.source, packet.destination]
        .iter()
        .any(|end| end.port() == controlplane::PORT && !fabric::is_pod(end.ip()))
}

/// Packets from or to pods that carry data or ask for a connection. (An older plain connection may still be ending: its
/// FIN does neither.)
pub(super) fn of_pods(packets: Vec<Packet>) -> Vec<Packet> {
    let mut packets = packets;
    packets.retain(|packet| {
        (packet.payload > 0 || packet.opens)
            && (fabric::is_pod(packet.source.ip()) || fabric::is_pod(packet.destination.ip()))
    });
    packets
}

/// By HTTP and by TCP, IPv4 and IPv6, to the server on the other node.
pub(super) async fn send_secret_to_pods(mesh: &Mesh) -> Result<()> {
    let (cluster, deadline) = (mesh.cluster(), mesh.limits().call);
    let client = cluster.client(CLIENT)?;
    for family in Family::ALL {
        let http = cluster.pod_addr(SERVER_V1, family, HTTP)?;
        client
            .post(http, "/", Bytes::from_static(SECRET), deadline)
            .await?;
        let tcp = cluster.pod_addr(SERVER_V1, family, TCP)?;
        client.connect(tcp, deadline).await?.echo(SECRET).await?;
    }
    Ok(())
}

/// To the VIPs of a service with a pod on each node, until the other node was certainly chosen.
async fn send_secret_to_vip(mesh: &Mesh) -> Result<()> {
    /// All on the same node once in a million runs.
    const CALLS: usize = 20;
    let (cluster, deadline) = (mesh.cluster(), mesh.limits().call);
    let client = cluster.client(CLIENT)?;
    for family in Family::ALL {
        let vip = cluster.vip(SERVER, family, HTTP_SERVICE)?;
        for _ in 0..CALLS {
            client
                .post(vip, "/", Bytes::from_static(SECRET), deadline)
                .await?;
        }
    }
    Ok(())
}
