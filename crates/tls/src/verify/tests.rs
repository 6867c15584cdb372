//! Nothing that a verifier has taken once is taken where it should not be: each test first has a chain taken, and so
//! remembered.

use std::{
    fs, io,
    time::{Duration, SystemTime},
};

use rcgen::ExtendedKeyUsagePurpose;

use super::*;
use crate::{
    TlsError, WorkloadCertificate,
    revocation::Revocation,
    testing::{Leaf, TestCa},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const FOREIGN: &str = "spiffe://elsewhere.example/ns/shop/sa/web";
const PASSES: &str = "passes";

/// How a workload judges peers.
struct Judge<'a> {
    own: &'a WorkloadCertificate,
    now: SystemTime,
}

impl<'a> Judge<'a> {
    fn new(own: &'a WorkloadCertificate) -> Self {
        let now = SystemTime::now();
        Self { own, now }
    }

    fn now(&self) -> UnixTime {
        let now = self.now.duration_since(SystemTime::UNIX_EPOCH);
        UnixTime::since_unix_epoch(now.unwrap())
    }

    fn client(&self, chain: &[CertificateDer<'_>]) -> &'static str {
        let verifier = InboundVerifier {
            trusted: Arc::clone(self.own.trusted()),
            trust_domain: self.own.identity().trust_domain().clone(),
            aliases: Arc::default(),
            issuers: self.own.issuers().clone(),
        };
        let verified = verifier.verify_client_cert(&chain[0], &chain[1..], self.now());
        verdict(verified.map(|_verified| ()))
    }

    fn server(&self, chain: &[CertificateDer<'_>], expected: &str) -> &'static str {
        let verifier = OutboundVerifier::new(
            Arc::clone(self.own.trusted()),
            self.own.issuers().clone(),
            &[expected.parse().unwrap()],
        );
        let name = ServerName::try_from("ignored").unwrap();
        let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], self.now());
        assert_eq!(verified.is_ok(), verifier.verified().is_some());
        verdict(verified.map(|_verified| ()))
    }

    /// In both directions.
    #[track_caller]
    fn finds(&self, chain: &[CertificateDer<'_>], want: &'static str) {
        let found = (self.client(chain), self.server(chain, WEB));
        assert_eq!(found, (want, want), "at {:?}", self.now);
    }
}

fn verdict(verified: Result<(), RustlsError>) -> &'static str {
    match verified {
        Ok(()) => PASSES,
        Err(error) => TlsError::from_handshake(io::Error::other(error)).reason(),
    }
}

fn issue(ca: &TestCa, leaf: &Leaf) -> Vec<CertificateDer<'static>> {
    ca.issue(leaf).0
}

#[test]
fn a_known_chain_passes_only_while_all_of_it_is_valid() {
    let ca = TestCa::new();
    let own = ca.workload(DB);
    let mut judge = Judge::new(&own);
    let (start, second) = (judge.now, Duration::from_secs(1));
    let leaf = Leaf {
        not_before: start - 100 * second,
        not_after: start + 100 * second,
        ..Leaf::workload(WEB)
    };
    let lasting = issue(&ca.intermediate(), &leaf);
    let brief = issue(&ca.intermediate_until(start + 50 * second), &leaf);
    for _ in 0..2 {
        judge.finds(&lasting, PASSES);
        judge.finds(&brief, PASSES);
    }
    for (now, of_lasting, of_brief) in [
        (start + 49 * second, PASSES, PASSES),
        (start + 51 * second, PASSES, "expired"),
        (start + 99 * second, PASSES, "expired"),
        (start + 101 * second, "expired", "expired"),
        (start - 99 * second, PASSES, PASSES),
        // A clock that is set back.
        (start - 102 * second, "not_yet_valid", "not_yet_valid"),
        (start, PASSES, PASSES),
    ] {
        judge.now = now;
        judge.finds(&lasting, of_lasting);
        judge.finds(&brief, of_brief);
    }
}

#[test]
fn a_known_chain_does_not_pass_once_its_root_is_withdrawn() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let trusting = |roots: &[&TestCa]| old.unchecked(&Leaf::workload(DB), roots);
    let chain = issue(&old.intermediate(), &Leaf::workload(WEB));
    for (roots, want) in [
        (&[&old][..], PASSES),
        (&[&old, &new], PASSES),
        (&[&new], "unknown_root"),
        (&[&new, &old], PASSES),
        (&[&new], "unknown_root"),
    ] {
        let own = trusting(roots);
        let judge = Judge::new(&own);
        judge.finds(&chain, want);
        judge.finds(&chain, want);
    }
}

#[test]
fn a_known_chain_does_not_pass_once_a_list_revokes_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca-crl.pem");
    let (revocation, mut watcher) = Revocation::of_file(path.clone());
    let ca = TestCa::new();
    let issuer = ca.intermediate();
    let own = ca.wary(DB, &revocation);
    let judge = Judge::new(&own);
    let chain = issue(&issuer, &Leaf::workload(WEB));
    let later = SystemTime::now() + Duration::from_secs(60);
    watcher.look();
    judge.finds(&chain, PASSES);
    // Several sizes, so that the watcher sees each as another file whatever the clock says.
    for (lists, want) in [
        (issuer.revoke(&[&chain[0]], later), "revoked"),
        (
            issuer.revoke(&[], later) + &ca.revoke(&[], later) + "\n",
            PASSES,
        ),
        (ca.revoke(&[&chain[1]], later) + "\n\n", "revoked"),
    ] {
        fs::write(&path, lists).unwrap();
        watcher.look();
        judge.finds(&chain, want);
        judge.finds(&chain, want);
    }
}

#[test]
fn a_known_chain_is_still_only_who_it_is() {
    let ca = TestCa::new();
    let own = ca.workload(DB);
    let judge = Judge::new(&own);
    let web = issue(&ca, &Leaf::workload(WEB));
    judge.finds(&web, PASSES);
    assert_eq!(judge.server(&web, DB), "identity");
    assert_eq!(judge.server(&web, FOREIGN), "identity");
    assert_eq!(judge.server(&web, WEB), PASSES);

    let foreign = issue(&ca, &Leaf::workload(FOREIGN));
    assert_eq!(judge.server(&foreign, FOREIGN), PASSES);
    assert_eq!(judge.client(&foreign), "trust_domain");
    assert_eq!(judge.client(&foreign), "trust_domain");
    let there = ca.workload(FOREIGN);
    assert_eq!(Judge::new(&there).client(&foreign), PASSES);
    assert_eq!(judge.client(&foreign), "trust_domain");

    let nobody = issue(&ca, &Leaf::server("web.shop"));
    for _ in 0..2 {
        judge.finds(&nobody, "not_spiffe");
    }
}

#[test]
fn a_known_client_is_no_server_and_a_known_server_no_client() {
    let ca = TestCa::new();
    let own = ca.workload(DB);
    let judge = Judge::new(&own);
    let only = |usage| {
        let usages = vec![usage];
        let leaf = Leaf {
            usages,
            ..Leaf::workload(WEB)
        };
        issue(&ca, &leaf)
    };
    let (client, server) = (
        only(ExtendedKeyUsagePurpose::ClientAuth),
        only(ExtendedKeyUsagePurpose::ServerAuth),
    );
    for _ in 0..2 {
        assert_eq!(judge.client(&client), PASSES);
        assert_eq!(judge.server(&client, WEB), "purpose");
        assert_eq!(judge.server(&server, WEB), PASSES);
        assert_eq!(judge.client(&server), "purpose");
    }
}

#[test]
fn a_chain_that_is_like_a_known_one_is_not_known() {
    let ca = TestCa::new();
    let own = ca.workload(DB);
    let judge = Judge::new(&own);
    let chain = issue(&ca.intermediate(), &Leaf::workload(WEB));
    judge.finds(&chain, PASSES);
    let changed = |place: usize, from_end: usize| {
        let mut chain = chain.clone();
        let mut der = chain[place].to_vec();
        let at = der.len() - from_end;
        der[at] ^= 1;
        chain[place] = der.into();
        chain
    };
    // In signatures, which are last.
    for chain in [changed(0, 1), changed(0, 40), changed(1, 1)] {
        let refused = (judge.client(&chain), judge.server(&chain, WEB));
        assert!(refused.0 != PASSES && refused.1 != PASSES, "{refused:?}");
    }
    judge.finds(&chain[..1], "unknown_root");
    judge.finds(&chain, PASSES);
}
