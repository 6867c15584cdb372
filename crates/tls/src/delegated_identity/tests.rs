use leyline_types::WorkloadName;
use tokio::net::UnixListener;

use super::*;
use crate::store::{CertificateConfig, CertificateSource};

fn pod(name: &str) -> DelegatedPod {
    DelegatedPod {
        name: WorkloadName {
            name: name.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        },
        uid: None,
    }
}

#[test]
fn the_address_is_a_unix_sockets() {
    for (address, expected) in [
        ("unix:///run/spire/admin.sock", ""),
        ("tcp://127.0.0.1:8081", "it is not a Unix socket"),
        ("/run/spire/admin.sock", "use unix:///path/of/socket"),
    ] {
        let told = DelegatedIdentity::at(address, "").err();
        let told = told.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            told.contains(expected) && told.is_empty() == expected.is_empty(),
            "{told}"
        );
    }
}

#[test]
fn pods_beyond_the_limit_do_not_push_out_others() {
    let pods = |prefix: &str, count: usize| -> BTreeSet<DelegatedPod> {
        (0..count)
            .map(|at| pod(&format!("{prefix}-{at}")))
            .collect()
    };
    let before = pods("m", 3);
    let mut all = pods("a", MAX_PODS);
    all.extend(before.clone());
    let kept = bounded(&before, &all);
    assert_eq!(kept.len(), MAX_PODS);
    assert!(kept.is_superset(&before));
    assert_eq!(bounded(&all, &before), before);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_nothing_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    // Nobody accepts.
    let _listener = UnixListener::bind(&socket).unwrap();
    let address = format!("unix://{}", socket.display());
    let agent = DelegatedIdentity::at(&address, "").unwrap();
    let source = CertificateSource::DelegatedIdentity(agent.clone());
    let (certificates, worker) = CertificateStore::new(source, CertificateConfig::default());
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let told = async {
        let nobody = certificates.get(&identity).await.unwrap_err().to_string();
        assert!(nobody.contains("no pod of this identity"), "{nobody}");
        certificates.forget(&identity);
        certificates.carry(&[pod("web-0")].into());
        certificates.get(&identity).await.unwrap_err().to_string()
    };
    let told = tokio::select! {
        told = told => told,
        () = worker.run() => panic!("the worker has ended"),
        () = agent.run(certificates.clone()) => panic!("the agent is followed no more"),
    };
    assert!(told.contains("no answer within 5s"), "{told}");
}
