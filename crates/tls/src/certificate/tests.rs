use rcgen::ExtendedKeyUsagePurpose;

use super::*;
use crate::{
    csr,
    revocation::Revocation,
    testing::{Leaf, TestCa},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// What a CA answers to a request for `web`, judged.
fn answer(
    change: impl FnOnce(&TestCa, &str) -> Vec<String>,
) -> Result<WorkloadCertificate, String> {
    let identity: Identity = WEB.parse().unwrap();
    let request = csr::generate(&identity).unwrap();
    let chain = change(&TestCa::new(), &request.pem);
    WorkloadCertificate::from_pem(&identity, &chain, request.key, &Revocation::off())
        .map_err(|e| e.to_string())
}

#[track_caller]
fn refused(text: &str, change: impl FnOnce(&TestCa, &str) -> Vec<String>) {
    let error = answer(change).unwrap_err();
    assert!(error.contains(text), "`{text}` not in `{error}`");
}

#[test]
fn takes_a_good_answer() {
    let certificate = answer(|ca, csr| ca.sign(csr, &Leaf::workload(WEB))).unwrap();
    assert_eq!(certificate.identity().to_string(), WEB);
    assert_eq!(certificate.chain().len(), 1);
    assert_eq!(certificate.roots().len(), 1);
    let left = certificate
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!((3590..=3600).contains(&left.as_secs()), "{left:?}");
    assert!(certificate.serial().parse::<u128>().is_ok() || certificate.serial().len() > 30);
}

#[test]
fn takes_intermediates_and_several_roots() {
    let certificate = answer(|ca, csr| {
        let mut chain = ca
            .intermediate()
            .intermediate()
            .sign(csr, &Leaf::workload(WEB));
        let roots = TestCa::new().root_pem() + &chain.pop().unwrap();
        chain.push(roots);
        chain
    })
    .unwrap();
    assert_eq!(certificate.chain().len(), 3);
    assert_eq!(certificate.roots().len(), 2);
}

#[test]
fn refuses_what_is_not_for_us() {
    refused(
        "the leaf is for spiffe://cluster.local/ns/shop/sa/db, asked for",
        |ca, csr| ca.sign(csr, &Leaf::workload("spiffe://cluster.local/ns/shop/sa/db")),
    );
    refused("names no workload: it has no URI name", |ca, csr| {
        ca.sign(csr, &Leaf::server("web"))
    });
    refused("it has 2 URI names", |ca, csr| {
        let uris = vec![WEB.to_owned(), WEB.to_owned()];
        ca.sign(
            csr,
            &Leaf {
                uris,
                ..Leaf::workload(WEB)
            },
        )
    });
    refused("does not certify the key", |ca, _| {
        let other = csr::generate(&WEB.parse().unwrap()).unwrap();
        ca.sign(&other.pem, &Leaf::workload(WEB))
    });
}

#[test]
fn refuses_what_peers_would_refuse() {
    let hour = Duration::from_secs(3600);
    refused("not signed by the roots", |ca, csr| {
        let mut chain = ca.sign(csr, &Leaf::workload(WEB));
        chain[1] = TestCa::new().root_pem();
        chain
    });
    refused("not signed by the roots", |ca, csr| {
        let mut chain = ca.intermediate().sign(csr, &Leaf::workload(WEB));
        chain.remove(1);
        chain
    });
    refused("not valid now", |ca, csr| {
        let leaf = Leaf::workload(WEB);
        let not_after = SystemTime::now() - Duration::from_secs(1);
        ca.sign(
            csr,
            &Leaf {
                not_after,
                not_before: not_after - hour,
                ..leaf
            },
        )
    });
    refused("not valid now", |ca, csr| {
        let not_before = SystemTime::now() + hour;
        ca.sign(
            csr,
            &Leaf {
                not_before,
                not_after: not_before + hour,
                ..Leaf::workload(WEB)
            },
        )
    });
    for usage in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ] {
        refused("unusable", |ca, csr| {
            ca.sign(
                csr,
                &Leaf {
                    usages: vec![usage],
                    ..Leaf::workload(WEB)
                },
            )
        });
    }
}

#[test]
fn takes_a_leaf_without_extended_key_usage() {
    let usages = vec![];
    answer(|ca, csr| {
        ca.sign(
            csr,
            &Leaf {
                usages,
                ..Leaf::workload(WEB)
            },
        )
    })
    .unwrap();
}

#[test]
fn refuses_malformed_answers() {
    refused("0 chain elements", |_, _| vec![]);
    refused("1 chain elements", |ca, csr| {
        ca.sign(csr, &Leaf::workload(WEB)).split_off(1)
    });
    refused("no usable root", |ca, csr| {
        let mut chain = ca.sign(csr, &Leaf::workload(WEB));
        chain[1] = "nothing".to_owned();
        chain
    });
    refused("element 0 is not a PEM certificate", |ca, csr| {
        let mut chain = ca.sign(csr, &Leaf::workload(WEB));
        chain[0] = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".to_owned();
        chain
    });
    refused("not an X.509 certificate", |ca, csr| {
        let mut chain = ca.sign(csr, &Leaf::workload(WEB));
        chain[0] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
        chain
    });
}
