use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};

use leyline_types::Identity;
use proptest::{collection::vec, prelude::any, prop_assert, proptest, sample::Index};
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::{
    ClientTls, Refusal, ServerTls, TlsError, WorkloadCertificate, accept, connect,
    testing::{Leaf, TestCa, sockets},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const DEADLINE: Duration = Duration::from_secs(20);

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(60)
}

fn lists(pem: &str) -> Lists {
    Lists::parse(pem.as_bytes()).unwrap()
}

fn following() -> Arc<Revocation> {
    Revocation::of_file("/nowhere".into()).0
}

async fn handshake(
    server: &Arc<WorkloadCertificate>,
    client: &Arc<WorkloadCertificate>,
) -> (Result<ServerTls, TlsError>, Result<ClientTls, TlsError>) {
    let (near, far) = sockets().await;
    let expected = [server.identity().clone()];
    let (accepted, connected) = tokio::join!(
        accept(server, far, &[], DEADLINE),
        connect(client, near, &expected, DEADLINE)
    );
    let strip = |(stream, _): (ServerTls, Identity)| stream;
    (accepted.map(strip), connected.map(|(stream, _)| stream))
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_told() {
    let (ca, revocation) = (TestCa::new(), following());
    let (server, client) = (ca.wary(WEB, &revocation), ca.workload(DB));
    let list = ca.revoke(&[&client.chain()[0]], later());
    revocation.replace(lists(&list));
    let (accepted, connected) = handshake(&server, &client).await;
    assert!(matches!(accepted, Err(TlsError::Revoked)), "{accepted:?}");
    let mut connected = connected.unwrap();
    assert!(connected.read_u8().await.is_err());
    assert_eq!(connected.verdict().refusal(), Some(Refusal::Revoked));
    let other = ca.workload(DB);
    assert!(handshake(&server, &other).await.0.is_ok());
}

#[tokio::test]
async fn a_revoked_server_is_refused_also_by_a_list_past_its_end() {
    let (ca, revocation) = (TestCa::new(), following());
    let (server, client) = (ca.workload(WEB), ca.wary(DB, &revocation));
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let list = ca.revoke(&[&server.chain()[0]], hour_ago);
    revocation.replace(lists(&list));
    let (accepted, connected) = handshake(&server, &client).await;
    assert!(matches!(connected, Err(TlsError::Revoked)), "{connected:?}");
    assert!(accepted.is_err());
}

#[tokio::test]
async fn every_certificate_of_the_chain_is_judged() {
    let (ca, revocation) = (TestCa::new(), following());
    let server = ca.wary(WEB, &revocation);
    let one = ca.intermediate();
    let client = one.intermediate().unchecked(&Leaf::workload(DB), &[&ca]);
    assert_eq!(client.chain().len(), 3);
    // The upper one of both, by the root.
    revocation.replace(lists(&ca.revoke(&[&client.chain()[2]], later())));
    assert!(matches!(
        handshake(&server, &client).await.0,
        Err(TlsError::Revoked)
    ));
    // The lower one, by the upper one. The root is silent.
    revocation.replace(lists(&one.revoke(&[&client.chain()[1]], later())));
    assert!(matches!(
        handshake(&server, &client).await.0,
        Err(TlsError::Revoked)
    ));
    revocation.replace(Lists::default());
    assert!(handshake(&server, &client).await.0.is_ok());
}

#[tokio::test]
async fn a_list_counts_only_for_the_key_that_signed_it() {
    // All roots of these tests have one name.
    let (ca, other, revocation) = (TestCa::new(), TestCa::new(), following());
    let (server, client) = (ca.wary(WEB, &revocation), ca.workload(DB));
    let forged = other.revoke(&[&client.chain()[0]], later());
    revocation.replace(lists(&forged));
    assert!(handshake(&server, &client).await.0.is_ok());
    let real = ca.revoke(&[&client.chain()[0]], later());
    revocation.replace(lists(&(forged + &real)));
    assert!(handshake(&server, &client).await.0.is_err());
}

#[tokio::test]
async fn new_lists_cut_the_tunnels_that_they_revoke_and_no_others() {
    let (ca, revocation) = (TestCa::new(), following());
    let server = ca.wary(WEB, &revocation);
    let (bad, good) = (ca.workload(DB), ca.workload(DB));
    let (cut, kept) = (
        handshake(&server, &bad).await,
        handshake(&server, &good).await,
    );
    let (mut cut, _far) = (cut.0.unwrap(), cut.1.unwrap());
    let (mut kept, mut far) = (kept.0.unwrap(), kept.1.unwrap());
    let list = || lists(&ca.revoke(&[&bad.chain()[0]], later()));
    let reading = async {
        // It is cut while it waits.
        let read = timeout(DEADLINE, cut.read_u8()).await.unwrap();
        let error = read.unwrap_err();
        assert!(is_revocation(&error), "{error}");
        assert!(is_revocation(&cut.write_u8(1).await.unwrap_err()));
    };
    let replacing = async { assert_eq!(revocation.replace(list()), 1) };
    tokio::join!(reading, replacing);
    assert_eq!(revocation.replace(list()), 0);
    far.write_u8(7).await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(kept.read_u8().await.unwrap(), 7);
    drop((cut, kept));
    assert!(revocation.tunnels.lock().is_empty());
}

#[tokio::test]
async fn the_file_may_be_missing_malformed_and_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca-crl.pem");
    let (revocation, mut watcher) = Revocation::of_file(path.clone());
    let ca = TestCa::new();
    let (server, client) = (ca.wary(WEB, &revocation), ca.workload(DB));
    let revoked = async || handshake(&server, &client).await.0.is_err();
    watcher.look();
    assert!(!revoked().await);

    // As Kubernetes does it: the file is a link into a directory that is replaced.
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    fs::write(&one, ca.revoke(&[], later())).unwrap();
    fs::write(&two, ca.revoke(&[&client.chain()[0]], later())).unwrap();
    let point_at = |target: &std::path::Path| {
        let temporary = dir.path().join("new");
        symlink(target, &temporary).unwrap();
        fs::rename(&temporary, &path).unwrap();
    };
    point_at(&one);
    watcher.look();
    assert!(!revoked().await);
    point_at(&two);
    watcher.look();
    assert!(revoked().await);

    let broken = dir.path().join("3");
    fs::write(
        &broken,
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    )
    .unwrap();
    point_at(&broken);
    watcher.look();
    assert!(revoked().await, "the last good list stays");
    fs::remove_file(&path).unwrap();
    watcher.look();
    assert!(revoked().await, "a list that is gone revokes nothing less");
    point_at(&one);
    watcher.look();
    assert!(!revoked().await);
}

#[test]
fn files_are_taken_whole_or_not_at_all() {
    let ca = TestCa::new();
    let (chain, _key) = ca.issue(&Leaf::workload(WEB));
    let good = ca.revoke(&[&chain[0]], later());
    let der = CertificateRevocationListDer::from_pem_slice(good.as_bytes()).unwrap();
    for (bytes, outcome) in [
        (b"".to_vec(), Ok((0, 0))),
        (b" \n".to_vec(), Ok((0, 0))),
        (good.clone().into_bytes(), Ok((1, 1))),
        (
            format!("{good}# a comment\n{good}").into_bytes(),
            Ok((2, 2)),
        ),
        (der.to_vec(), Ok((1, 1))),
        (
            [&der[..], &[0]].concat(),
            Err("list 0 is malformed: 1 bytes follow it"),
        ),
        (ca.root_pem().into_bytes(), Err("it holds no X509 CRL")),
        (b"what?".to_vec(), Err("list 0 is malformed")),
        (
            format!("{good}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").into_bytes(),
            Err("list 1 is malformed"),
        ),
        (b"-----BEGIN X509 CRL-----\n".to_vec(), Err("it is not PEM")),
    ] {
        match (Lists::parse(&bytes), outcome) {
            (Ok(lists), Ok((count, revoked))) => {
                assert_eq!((lists.len(), lists.revoked()), (count, revoked));
            }
            (Err(error), Err(text)) => assert!(error.to_string().starts_with(text), "{error}"),
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
}

proptest! {
    /// Whatever a file holds, it is lists or an error.
    #[test]
    fn damaged_files_are_lists_or_an_error(
        damage in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in any::<Index>(),
        armoured in any::<bool>(),
    ) {
        let ca = TestCa::new();
        let (chain, _key) = ca.issue(&Leaf::workload(WEB));
        let pem = ca.revoke(&[&chain[0]], later());
        let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut bytes = if armoured { pem.clone().into_bytes() } else { der.to_vec() };
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(lists) = Lists::parse(&bytes) {
            prop_assert!(lists.len() <= 1);
        }
    }
}
