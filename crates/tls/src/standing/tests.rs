use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::{
    ClientTls, Revocation, ServerTls, accept, connect, is_revocation,
    testing::{Leaf, TestCa, sockets},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const DEADLINE: Duration = Duration::from_secs(20);

/// A new certificate of an identity, as the store would take it.
fn issued(
    anchors: &Arc<Anchors>,
    uri: &str,
    ca: &TestCa,
    roots: &[&TestCa],
) -> (Arc<WorkloadCertificate>, Change) {
    let (chain, key) = ca.issue(&Leaf::workload(uri));
    let roots = roots.iter().map(|ca| ca.root()).collect();
    let mut certificate =
        WorkloadCertificate::assemble(chain, roots, key, &Revocation::off()).unwrap();
    certificate.follow(Arc::clone(anchors));
    let change = anchors.publish(&certificate);
    (Arc::new(certificate), change)
}

async fn tunnel(
    server: &Arc<WorkloadCertificate>,
    client: &Arc<WorkloadCertificate>,
) -> (ServerTls, ClientTls) {
    let (near, far) = sockets().await;
    let expected = [server.identity().clone()];
    let (accepted, connected) = tokio::join!(
        accept(server, far, &[], DEADLINE),
        connect(client, near, &expected, DEADLINE)
    );
    (accepted.unwrap().0, connected.unwrap().0)
}

/// Reads until the end, which has to be that of a withdrawn root.
async fn cut(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    let read = timeout(DEADLINE, stream.read_u8()).await.unwrap();
    let error = read.unwrap_err();
    assert!(is_revocation(&error), "{error}");
    let error = stream.write_u8(1).await.unwrap_err();
    assert!(is_revocation(&error), "{error}");
}

async fn alive(from: &mut (impl AsyncWriteExt + Unpin), to: &mut (impl AsyncReadExt + Unpin)) {
    from.write_u8(7).await.unwrap();
    from.flush().await.unwrap();
    assert_eq!(timeout(DEADLINE, to.read_u8()).await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_server_cuts_the_clients_of_a_withdrawn_root_and_no_others() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let anchors = Anchors::new(Duration::from_millis(20));
    let (server, _) = issued(&anchors, WEB, &old, &[&old, &new]);
    let of_old = old.unchecked(&Leaf::workload(DB), &[&old, &new]);
    let of_new = new.unchecked(&Leaf::workload(DB), &[&old, &new]);
    let (mut lost, _far) = tunnel(&server, &of_old).await;
    let (mut kept, mut far) = tunnel(&server, &of_new).await;
    let leaving = lost.leaving().asked();
    let withdrawing = async {
        assert_eq!(issued(&anchors, WEB, &new, &[&new]).1, Change::Judge);
    };
    // It is cut while it waits.
    tokio::join!(cut(&mut lost), withdrawing);
    timeout(DEADLINE, leaving).await.unwrap();
    alive(&mut far, &mut kept).await;
    drop((lost, kept));
    assert!(anchors.inner.lock().tunnels.is_empty());
}

#[tokio::test]
async fn a_client_cuts_the_servers_of_a_withdrawn_root_and_no_others() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let anchors = Anchors::new(Duration::ZERO);
    let (client, _) = issued(&anchors, DB, &old, &[&old, &new]);
    let of_old = old.unchecked(&Leaf::workload(WEB), &[&old, &new]);
    let of_new = new.unchecked(&Leaf::workload(WEB), &[&old, &new]);
    let (_far, mut lost) = tunnel(&of_old, &client).await;
    let (mut far, mut kept) = tunnel(&of_new, &client).await;
    issued(&anchors, DB, &new, &[&new]);
    cut(&mut lost).await;
    alive(&mut far, &mut kept).await;
}

#[tokio::test]
async fn what_is_under_way_ends_before_the_tunnel_does() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let anchors = Anchors::new(Duration::from_secs(3600));
    let (server, _) = issued(&anchors, WEB, &old, &[&old]);
    let client = old.workload(DB);
    let (mut near, mut far) = tunnel(&server, &client).await;
    issued(&anchors, WEB, &new, &[&new]);
    alive(&mut far, &mut near).await;
    alive(&mut near, &mut far).await;
    assert!(matches!(near.standing().end, End::At(_)));
    // Whoever made a mistake has time to take it back.
    issued(&anchors, WEB, &new, &[&new, &old]);
    alive(&mut far, &mut near).await;
    assert!(matches!(near.standing().end, End::No));
}

#[tokio::test]
async fn a_root_that_goes_during_a_handshake_is_missed_by_none() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let anchors = Anchors::new(Duration::ZERO);
    let (server, _) = issued(&anchors, WEB, &old, &[&old]);
    issued(&anchors, WEB, &new, &[&new]);
    let (mut near, _far) = tunnel(&server, &old.workload(DB)).await;
    cut(&mut near).await;
}

#[tokio::test]
async fn another_issuer_asks_tunnels_to_be_replaced() {
    let (one, other) = (TestCa::new(), TestCa::new());
    let intermediate = one.intermediate();
    let anchors = Anchors::new(Duration::ZERO);
    let (server, first) = issued(&anchors, WEB, &one, &[&one]);
    assert_eq!(first, Change::Nothing);
    let (mut near, mut far) = tunnel(&server, &one.workload(DB)).await;
    let renewed = |ca, roots: &[&TestCa]| issued(&anchors, WEB, ca, roots).1;
    assert_eq!(renewed(&one, &[&one]), Change::Nothing);
    assert_eq!(renewed(&one, &[&one, &other]), Change::Widen);
    assert!(
        timeout(Duration::ZERO, near.leaving().asked())
            .await
            .is_err()
    );
    assert_eq!(renewed(&intermediate, &[&one, &other]), Change::Replace);
    timeout(DEADLINE, near.leaving().asked()).await.unwrap();
    assert_eq!(renewed(&other, &[&one, &other]), Change::Replace);
    alive(&mut far, &mut near).await;
}
