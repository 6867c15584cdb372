use std::{cell::Cell, time::Duration};

use rustls::CertificateError;

use super::*;
use crate::testing::{Leaf, TestCa};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn roots(cas: &[&TestCa]) -> RootsDigest {
    let mut store = RootCertStore::empty();
    for ca in cas {
        store.add(ca.root()).unwrap();
    }
    RootsDigest::of(&store)
}

fn at(second: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(second))
}

/// Whether a chain that verification takes has to be verified.
fn is_computed(chains: &VerifiedChains, question: &Question<'_>) -> bool {
    let computed = Cell::new(false);
    let verify = || {
        computed.set(true);
        Ok(())
    };
    chains.check(question, verify).unwrap();
    computed.get()
}

#[test]
fn only_the_same_question_is_not_asked_twice() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let (chain, _key) = ca.intermediate().intermediate().issue(&Leaf::workload(WEB));
    let [leaf, upper, lower] = &chain[..] else {
        panic!("{} certificates", chain.len());
    };
    let (one, both) = (roots(&[&ca]), roots(&[&ca, &other]));
    let turned = [lower.clone(), upper.clone()];
    let ask = Question {
        roots: &one,
        reporter: Reporter::Destination,
        leaf,
        intermediates: &chain[1..],
        now: UnixTime::now(),
    };
    let chains = VerifiedChains::new(16);
    assert!(is_computed(&chains, &ask));
    for (name, question) in [
        (
            "other roots",
            Question {
                roots: &both,
                ..ask
            },
        ),
        (
            "another purpose",
            Question {
                reporter: Reporter::Source,
                ..ask
            },
        ),
        ("another leaf", Question { leaf: upper, ..ask }),
        (
            "fewer certificates",
            Question {
                intermediates: &chain[1..2],
                ..ask
            },
        ),
        (
            "another order",
            Question {
                intermediates: &turned,
                ..ask
            },
        ),
    ] {
        assert!(is_computed(&chains, &question), "{name}");
        assert!(!is_computed(&chains, &question), "{name}");
    }
    assert!(!is_computed(&chains, &ask));
}

#[test]
fn what_is_remembered_counts_while_every_certificate_is_valid() {
    let ca = TestCa::new();
    let start = UnixTime::now().as_secs() - 1000;
    let time = |second| std::time::UNIX_EPOCH + Duration::from_secs(start + second);
    let leaf = |from, to| Leaf {
        not_before: time(from),
        not_after: time(to),
        ..Leaf::workload(WEB)
    };
    for (leaf, intermediate_to, from, to) in [
        (leaf(100, 5000), 9000, 100, 5000),
        (leaf(100, 5000), 4000, 100, 4000),
        (leaf(100, 100), 4000, 100, 100),
    ] {
        let (chain, _key) = ca.intermediate_until(time(intermediate_to)).issue(&leaf);
        let roots = roots(&[&ca]);
        let ask = |second| Question {
            roots: &roots,
            reporter: Reporter::Source,
            leaf: &chain[0],
            intermediates: &chain[1..],
            now: at(start + second),
        };
        let chains = VerifiedChains::new(16);
        assert!(is_computed(&chains, &ask(from)));
        for second in [from, to] {
            assert!(!is_computed(&chains, &ask(second)), "{second}");
        }
        for second in [from - 1, to + 1] {
            assert!(is_computed(&chains, &ask(second)), "{second}");
            // What some verifier took out of its time does not widen it.
            assert!(is_computed(&chains, &ask(second)), "{second}");
        }
    }
}

#[test]
fn refusals_are_not_remembered() {
    let ca = TestCa::new();
    let (chain, _key) = ca.issue(&Leaf::workload(WEB));
    let roots = roots(&[&ca]);
    let question = Question {
        roots: &roots,
        reporter: Reporter::Source,
        leaf: &chain[0],
        intermediates: &[],
        now: UnixTime::now(),
    };
    let chains = VerifiedChains::new(16);
    let refuse = || Err(CertificateError::UnknownIssuer.into());
    for _ in 0..2 {
        assert!(chains.check(&question, refuse).is_err());
    }
    assert!(is_computed(&chains, &question));
    assert!(chains.check(&question, refuse).is_ok());
}

#[test]
fn the_number_of_chains_is_bounded_and_those_in_use_stay() {
    let validity = Validity { from: 0, to: 10 };
    let key = |number: u64| {
        let mut digest = Sha256::new();
        digest.add(&number.to_be_bytes());
        Key(digest.finish())
    };
    let mut entries = Entries::default();
    for number in 0..100 {
        entries.insert(key(number), validity, 4);
        assert!(entries.young.len() <= 4 && entries.old.len() <= 4);
        assert!(entries.get(&key(0), 4).is_some(), "{number}");
    }
    assert!(entries.get(&key(99), 4).is_some());
    assert!(entries.get(&key(50), 4).is_none());
}

#[test]
fn roots_are_told_apart_by_all_that_counts() {
    let (one, other) = (TestCa::new(), TestCa::new());
    assert_eq!(roots(&[&one]), roots(&[&one]));
    assert_ne!(roots(&[&one]), roots(&[&other]));
    assert_ne!(roots(&[&one]), roots(&[&one, &other]));
    let mut store = RootCertStore::empty();
    store.add(one.root()).unwrap();
    store.roots[0].name_constraints = Some(Vec::new().into());
    assert_ne!(roots(&[&one]), RootsDigest::of(&store));
    assert_ne!(roots(&[]), roots(&[&one]));
}
