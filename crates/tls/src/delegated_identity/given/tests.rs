use leyline_types::WorkloadName;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn web() -> Identity {
    identity("spiffe://cluster.local/ns/shop/sa/web")
}

fn pod(name: &str, account: &str) -> DelegatedPod {
    DelegatedPod {
        name: WorkloadName {
            name: name.into(),
            namespace: "shop".into(),
            service_account: account.into(),
        },
        uid: None,
    }
}

/// One that is told by its leaf.
fn svid(identity: &Identity, leaf: u8, expires_at: i64) -> Arc<Svid> {
    Arc::new(Svid {
        identity: identity.clone(),
        expires_at,
        chain: vec![vec![leaf].into()],
        key: PrivatePkcs8KeyDer::from(vec![leaf]).into(),
    })
}

fn bundles() -> HashMap<TrustDomain, Vec<CertificateDer<'static>>> {
    HashMap::from([(web().trust_domain().clone(), vec![vec![9].into()])])
}

/// What there is for an identity, in words: `wait`, the leaves, or why not.
fn outlook(given: &Given, identity: &Identity) -> String {
    match given.outlook(identity) {
        Outlook::Wait => "wait".to_owned(),
        Outlook::Take { svids, roots } => {
            assert_eq!(roots.len(), 1);
            let leaves: Vec<u8> = svids.iter().map(|svid| svid.leaf()[0]).collect();
            format!("{leaves:?}")
        }
        Outlook::Fail(error) => error.to_string(),
    }
}

fn check(given: &Given, identity: &Identity, expected: &str) {
    let got = outlook(given, identity);
    assert!(got.contains(expected), "{got}");
}

#[test]
fn an_identity_waits_for_its_pods_and_for_the_bundles() {
    let mut given = Given::default();
    check(&given, &web(), "wait");
    assert!(!given.knows(&web()));
    let (one, other) = (pod("web-0", "web"), pod("web-1", "web"));
    given.keep(&[one.clone(), other.clone()].into());
    assert!(given.knows(&web()));
    check(&given, &web(), "wait");
    // One of its pods has no entry; the other may.
    assert!(given.answered(&one, Vec::new(), Vec::new()).is_empty());
    check(&given, &web(), "wait");
    let changed = given.answered(&other, vec![svid(&web(), 1, 10)], Vec::new());
    assert_eq!(changed, [web()]);
    check(&given, &web(), "wait");
    assert!(given.take_bundles(bundles()));
    check(&given, &web(), "[1]");
    assert!(!given.take_bundles(bundles()));
    given.take_bundles(HashMap::new());
    check(&given, &web(), "no bundle of trust domain cluster.local");
}

#[test]
fn what_is_missing_is_told() {
    let mut given = Given::default();
    given.take_bundles(bundles());
    let (one, other) = (pod("web-0", "web"), pod("web-1", "web"));
    given.keep(&[one.clone(), other.clone()].into());
    for pod in [&one, &other] {
        given.answered(pod, Vec::new(), Vec::new());
    }
    check(
        &given,
        &web(),
        "no SVID of this identity for its pods on this node (2); check the registration entry",
    );
    let elsewhere = identity("spiffe://example.org/ns/shop/sa/web");
    let unused = vec![Unused::Other("spiffe://cluster.local/db".to_owned())];
    given.answered(&one, vec![svid(&elsewhere, 1, 10)], unused);
    check(
        &given,
        &web(),
        "spiffe://example.org/ns/shop/sa/web is of another trust domain",
    );
    check(
        &given,
        &web(),
        "spiffe://cluster.local/db is not the pod's service account",
    );
    given.failed(&other, "gone");
    check(&given, &web(), "has given no SVID yet: gone");
    // What is wrong with one service account is no other's trouble.
    check(
        &given,
        &identity("spiffe://cluster.local/ns/shop/sa/db"),
        "wait",
    );
}

#[test]
fn what_was_given_stays_while_the_agent_is_away() {
    let mut given = Given::default();
    given.take_bundles(bundles());
    let pod = pod("web-0", "web");
    given.keep(&[pod.clone()].into());
    given.answered(&pod, vec![svid(&web(), 1, 10)], Vec::new());
    given.lost("agent gone");
    given.failed(&pod, "gone");
    check(&given, &web(), "[1]");
    // An entry that is deleted is another matter.
    assert_eq!(given.answered(&pod, Vec::new(), Vec::new()), [web()]);
    check(&given, &web(), "check the registration entry");
    given.lost("agent gone");
    check(&given, &web(), "agent gone");
}

#[test]
fn the_svid_that_lives_longest_is_the_best_and_only_another_best_is_news() {
    let mut given = Given::default();
    given.take_bundles(bundles());
    let (one, other) = (pod("web-0", "web"), pod("web-1", "web"));
    given.keep(&[one.clone(), other.clone()].into());
    let mut step = |pod: &DelegatedPod, svids: &[(u8, i64)], news: bool, expected: &str| {
        let svids = svids
            .iter()
            .map(|(leaf, expires)| svid(&web(), *leaf, *expires));
        let changed = given.answered(pod, svids.collect(), Vec::new());
        assert_eq!(!changed.is_empty(), news, "{expected}");
        check(&given, &web(), expected);
    };
    step(&one, &[(1, 10)], true, "[1]");
    // Of one entry: the same for both.
    step(&other, &[(1, 10)], false, "[1]");
    step(&other, &[(2, 5)], false, "[1, 2]");
    step(&other, &[(2, 20), (3, 15)], true, "[2, 3, 1]");
    step(&one, &[(1, 10)], false, "[2, 3, 1]");
    step(&one, &[], false, "[2, 3]");
    step(&other, &[], true, "check the registration entry");
}

#[test]
fn pods_that_go_take_what_was_given_for_them_along() {
    let mut given = Given::default();
    given.take_bundles(bundles());
    let (one, other) = (pod("web-0", "web"), pod("web-1", "web"));
    let both = BTreeSet::from([one.clone(), other.clone()]);
    assert_eq!(given.keep(&both), Affected::default());
    given.answered(&one, vec![svid(&web(), 1, 20)], Vec::new());
    given.answered(&other, vec![svid(&web(), 2, 10)], Vec::new());
    assert_eq!(given.keep(&both), Affected::default());
    let affected = given.keep(&[other.clone()].into());
    assert_eq!(
        (affected.renewed, affected.forgotten),
        (vec![web()], vec![])
    );
    check(&given, &web(), "[2]");
    // Too late.
    assert!(
        given
            .answered(&one, vec![svid(&web(), 1, 20)], Vec::new())
            .is_empty()
    );
    check(&given, &web(), "[2]");
    let affected = given.keep(&[pod("db-0", "db")].into());
    assert_eq!(
        (affected.renewed, affected.forgotten),
        (vec![], vec![web()])
    );
    assert!(!given.knows(&web()));
}
