use std::sync::LazyLock;

use proptest::{collection::vec, prelude::any, prop_assert_eq, proptest, sample::Index};
use spire_api::pb::spire::api::types::X509svid;

use super::*;
use crate::testing::TestCa;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn pod() -> DelegatedPod {
    DelegatedPod {
        name: leyline_types::WorkloadName {
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        },
        uid: None,
    }
}

fn spiffe_id(id: &str) -> Spiffeid {
    let (trust_domain, path) = id.strip_prefix(SCHEME).unwrap().split_once('/').unwrap();
    Spiffeid {
        trust_domain: trust_domain.to_owned(),
        path: format!("/{path}"),
    }
}

/// Certifies one and says the other.
fn sent(ca: &TestCa, certified: &str, said: &str) -> X509svidWithKey {
    let (chain, key) = ca.issue_svid(certified);
    X509svidWithKey {
        x509_svid: Some(X509svid {
            cert_chain: chain.iter().map(|one| one.to_vec().into()).collect(),
            id: Some(spiffe_id(said)),
            expires_at: 7,
            hint: String::new(),
        }),
        x509_svid_key: key.secret_der().to_vec().into(),
    }
}

fn response(x509_svids: Vec<X509svidWithKey>) -> SubscribeToX509sviDsResponse {
    SubscribeToX509sviDsResponse {
        x509_svids,
        federates_with: vec!["spiffe://example.org".to_owned()],
    }
}

#[test]
fn an_svid_of_the_pod_is_used_and_any_other_is_told() {
    let ca = TestCa::new();
    let check = |sent: X509svidWithKey, expected: Result<&str, &str>| {
        let (usable, unused) = svids(&pod(), &response(vec![sent]));
        let used = usable.first().map(|svid| svid.identity.to_string());
        let why = unused.first().map(ToString::to_string).unwrap_or_default();
        match expected {
            Ok(identity) => assert_eq!((used.as_deref(), why.as_str()), (Some(identity), "")),
            Err(reason) => assert!(used.is_none() && why.contains(reason), "{used:?} {why}"),
        }
    };
    check(sent(&ca, WEB, WEB), Ok(WEB));
    check(sent(&ca.intermediate(), WEB, WEB), Ok(WEB));
    let elsewhere = "spiffe://example.org/ns/shop/sa/web";
    check(sent(&ca, elsewhere, elsewhere), Ok(elsewhere));

    let db = "spiffe://cluster.local/ns/shop/sa/db";
    check(
        sent(&ca, db, WEB),
        Err("certifies spiffe://cluster.local/ns/shop/sa/db"),
    );
    check(
        sent(&ca, WEB, db),
        Err("said to be of spiffe://cluster.local/ns/shop/sa/db"),
    );
    check(
        sent(&ca, db, db),
        Err("db is not the pod's service account"),
    );
    let free = "spiffe://cluster.local/billing";
    check(
        sent(&ca, free, free),
        Err("billing is not the pod's service account"),
    );
    check(X509svidWithKey::default(), Err("no certificate"));
    let mut nothing = sent(&ca, WEB, WEB);
    nothing.x509_svid.as_mut().unwrap().cert_chain.clear();
    check(nothing, Err("not an SVID"));
    let mut damaged = sent(&ca, WEB, WEB);
    damaged.x509_svid.as_mut().unwrap().cert_chain[0] = vec![0x30, 3, 1].into();
    check(damaged, Err("not an SVID"));
    let mut keyless = sent(&ca, WEB, WEB);
    keyless.x509_svid_key = vec![1, 2, 3].into();
    check(keyless, Err("not an SVID"));
}

#[test]
fn bad_svids_leave_the_good_ones_and_there_is_a_limit() {
    let ca = TestCa::new();
    let good = sent(&ca, WEB, WEB);
    let mut all = vec![X509svidWithKey::default(), good.clone()];
    let (usable, unused) = svids(&pod(), &response(all.clone()));
    assert_eq!((usable.len(), unused.len()), (1, 1));
    assert_eq!(usable[0].expires_at, 7);

    all.resize(MAX_SVIDS + 5, good);
    let (usable, unused) = svids(&pod(), &response(all));
    assert_eq!(usable.len(), MAX_SVIDS - 1);
    assert_eq!(unused.last(), Some(&Unused::Excess));
    assert!(svids(&pod(), &response(Vec::new())).0.is_empty());
}

#[test]
fn bundles_are_known_by_name_and_by_spiffe_id() {
    let (one, other) = (TestCa::new().root(), TestCa::new().root());
    let two = [one.as_ref(), other.as_ref()].concat();
    let check = |sent: &[(&str, &[u8])], expected: &[(&str, usize)], why: &str| {
        let ca_certificates = sent
            .iter()
            .map(|(key, der)| ((*key).to_owned(), der.to_vec().into()))
            .collect();
        let (usable, unused) = bundles(&SubscribeToX509BundlesResponse { ca_certificates });
        let mut got: Vec<_> = usable
            .iter()
            .map(|(domain, roots)| (domain.as_str(), roots.len()))
            .collect();
        got.sort_unstable();
        assert_eq!(got, expected);
        let told = unused.iter().map(ToString::to_string).collect::<String>();
        assert!(
            told.contains(why) && told.is_empty() == why.is_empty(),
            "{told}"
        );
    };
    check(&[], &[], "");
    check(
        &[("cluster.local", one.as_ref())],
        &[("cluster.local", 1)],
        "",
    );
    let both: [(&str, &[u8]); 2] = [("spiffe://a.example", &two), ("spiffe://b.example", &one)];
    check(&both, &[("a.example", 2), ("b.example", 1)], "");
    // One that cannot be read leaves the others.
    let bad: [(&str, &[u8]); 2] = [("a.example", &one), ("b.example", &[1, 2])];
    check(&bad, &[("a.example", 1)], "no bundle of `b.example`");
    for key in ["spiffe://a.example/ns/x", "http://a.example", "", "a b"] {
        check(&[(key, one.as_ref())], &[], "no bundle of");
    }
    let twice: [(&str, &[u8]); 2] = [("a.example", &one), ("spiffe://a.example", &two)];
    check(
        &twice,
        &[("a.example", 1)],
        "trust domain a.example is there twice",
    );
}

static SENT: LazyLock<X509svidWithKey> = LazyLock::new(|| sent(&TestCa::new(), WEB, WEB));

proptest! {
    /// Whatever comes, it is used or told.
    #[test]
    fn damaged_svids_are_used_or_told(
        in_chain in vec((any::<Index>(), any::<u8>()), 0..4),
        in_key in vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let mut sent = SENT.clone();
        let damage = |bytes: &[u8], at: &[(Index, u8)]| {
            let mut bytes = bytes.to_vec();
            for (index, byte) in at {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            bytes
        };
        sent.x509_svid_key = damage(&sent.x509_svid_key, &in_key).into();
        let chain = &mut sent.x509_svid.as_mut().unwrap().cert_chain;
        chain[0] = damage(&chain[0], &in_chain).into();
        let (usable, unused) = svids(&pod(), &response(vec![sent]));
        prop_assert_eq!(usable.len() + unused.len(), 1);
    }
}
