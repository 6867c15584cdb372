use std::{collections::VecDeque, future::Future};

use tokio::{io::AsyncReadExt, task::yield_now, time::advance};

use super::*;
use crate::{
    accept,
    ca::BoxFuture,
    connect, is_revocation,
    testing::{Leaf, TestCa, sockets},
};

const HOUR: Duration = Duration::from_secs(3600);

/// What the fake CA does with one request.
#[derive(Clone, Copy)]
enum Answer {
    Sign,
    SignAfter(Duration),
    SignForSomebodyElse,
    Refuse,
    Hang,
}

/// A CA in this process, which is the boundary that the store has.
struct FakeCa {
    /// Replaced where the root changes.
    ca: Mutex<TestCa>,
    life: Duration,
    /// Used up one by one; after the last one everything is signed.
    script: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<String>>,
    running: Mutex<(usize, usize)>,
}

impl FakeCa {
    fn new(script: &[Answer]) -> Arc<Self> {
        Arc::new(Self {
            ca: Mutex::new(TestCa::new()),
            life: HOUR,
            script: Mutex::new(script.iter().copied().collect()),
            calls: Mutex::new(vec![]),
            running: Mutex::new((0, 0)),
        })
    }

    fn calls(&self) -> usize {
        self.calls.lock().len()
    }

    fn started(&self) {
        let mut running = self.running.lock();
        running.0 += 1;
        running.1 = running.1.max(running.0);
    }

    async fn answer(&self, csr: String, identity: &Identity) -> Result<Vec<String>, CaError> {
        self.calls
            .lock()
            .push(identity.service_account().to_string());
        self.started();
        let next = self.script.lock().pop_front().unwrap_or(Answer::Sign);
        let mut leaf = Leaf::workload(&identity.to_string());
        leaf.not_after = SystemTime::now() + self.life;
        let result = match next {
            Answer::Sign => Ok(self.ca.lock().sign(&csr, &leaf)),
            Answer::SignAfter(delay) => {
                tokio::time::sleep(delay).await;
                Ok(self.ca.lock().sign(&csr, &leaf))
            }
            Answer::SignForSomebodyElse => {
                leaf.uris = vec![id("mallory").to_string()];
                Ok(self.ca.lock().sign(&csr, &leaf))
            }
            Answer::Refuse => Err(CaError::Refused {
                code: "Unauthenticated".to_owned(),
                message: "request impersonation authentication failure".to_owned(),
            }),
            Answer::Hang => std::future::pending().await,
        };
        self.running.lock().0 -= 1;
        result
    }
}

impl CertificateAuthority for FakeCa {
    fn sign<'a>(
        &'a self,
        csr_pem: String,
        identity: &'a Identity,
        _ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        Box::pin(self.answer(csr_pem, identity))
    }
}

fn id(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

/// Runs a test with the store's worker beside it.
async fn with_store<F: Future<Output = ()>>(
    ca: &Arc<FakeCa>,
    cfg: CertificateConfig,
    test: impl FnOnce(Arc<CertificateStore>) -> F,
) {
    let authority: Arc<dyn CertificateAuthority> = Arc::<FakeCa>::clone(ca);
    let (store, worker) = CertificateStore::new(CertificateSource::Ca(authority), cfg);
    // The worker ends when the test has dropped the store.
    tokio::join!(worker.run(), test(store));
}

/// Moves the clock, and lets the worker act on it.
async fn pass(time: Duration) {
    advance(time).await;
    for _ in 0..10 {
        yield_now().await;
    }
}

/// How many identities have a valid certificate.
fn available(store: &CertificateStore) -> usize {
    let dump = store.dump();
    dump.iter().filter(|one| one.state == "Available").count()
}

#[tokio::test(start_paused = true)]
async fn callers_share_one_fetch() {
    let ca = FakeCa::new(&[Answer::SignAfter(Duration::from_secs(2))]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let web = id("web");
        let (one, two, three) = tokio::join!(store.get(&web), store.get(&web), store.get(&web));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(Arc::ptr_eq(&one, &two) && Arc::ptr_eq(&one, &three.unwrap()));
        assert_eq!(one.identity(), &web);
        // From now on without waiting.
        let again = store.get(&web);
        assert!(Arc::ptr_eq(
            &one,
            &futures::FutureExt::now_or_never(again).unwrap().unwrap()
        ));
        assert_eq!(ca.calls(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn renews_all_at_once_when_told_to() {
    let ca = FakeCa::new(&[]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let (web, db) = (id("web"), id("db"));
        let first = [
            store.get(&web).await.unwrap(),
            store.get(&db).await.unwrap(),
        ];
        store.renew_all();
        pass(Duration::from_millis(1)).await;
        assert_eq!(ca.calls(), 4);
        let second = [
            store.get(&web).await.unwrap(),
            store.get(&db).await.unwrap(),
        ];
        for (first, second) in first.iter().zip(&second) {
            assert_ne!(first.serial(), second.serial());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life() {
    let ca = FakeCa::new(&[]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let first = store.get(&id("web")).await.unwrap();
        pass(HOUR * 48 / 100).await;
        assert_eq!(ca.calls(), 1);
        pass(HOUR * 4 / 100).await;
        assert_eq!(ca.calls(), 2);
        let second = store.get(&id("web")).await.unwrap();
        assert_ne!(first.serial(), second.serial());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn keeps_the_old_certificate_until_it_expires() {
    let mut script = vec![Answer::Sign];
    script.extend([Answer::Refuse; 40]);
    let ca = FakeCa::new(&script);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let web = id("web");
        let first = store.get(&web).await.unwrap();
        pass(HOUR * 55 / 100).await;
        assert!(ca.calls() >= 2);
        assert!(Arc::ptr_eq(&first, &store.get(&web).await.unwrap()));
        assert_eq!(store.dump()[0].state, "Available");

        pass(HOUR * 46 / 100).await;
        let error = store.get(&web).await.unwrap_err().to_string();
        assert!(
            error.contains("the CA refused (Unauthenticated)"),
            "{error}"
        );
        assert!(
            store.dump()[0]
                .state
                .starts_with("Unavailable: the CA refused")
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn fails_at_once_until_a_retry_works() {
    let ca = FakeCa::new(&[Answer::Refuse, Answer::SignForSomebodyElse]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let web = id("web");
        let error = store.get(&web).await.unwrap_err();
        assert!(
            matches!(error, IdentityError::Unavailable { .. }),
            "{error}"
        );
        assert!(store.get(&web).await.is_err());
        assert_eq!(ca.calls(), 1, "callers do not ask ahead of the retry");

        pass(Duration::from_millis(1300)).await;
        let error = store.get(&web).await.unwrap_err().to_string();
        assert!(
            error.contains("the leaf is for") && error.contains("mallory"),
            "{error}"
        );
        pass(Duration::from_millis(2500)).await;
        assert_eq!(store.get(&web).await.unwrap().identity(), &web);
        assert_eq!((ca.calls(), available(&store)), (3, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_ca_meets_both_deadlines() {
    let ca = FakeCa::new(&[Answer::Hang]);
    let cfg = CertificateConfig {
        wait_deadline: Duration::from_secs(3),
        ..CertificateConfig::default()
    };
    with_store(&ca, cfg, async |store| {
        let started = Instant::now();
        let error = store.get(&id("web")).await.unwrap_err();
        assert!(matches!(error, IdentityError::Deadline { .. }), "{error}");
        assert_eq!(started.elapsed().as_secs(), 3);
        assert_eq!(ca.running.lock().0, 1, "the fetch goes on");
        pass(Duration::from_secs(8)).await;
        let error = store.get(&id("web")).await.unwrap_err().to_string();
        assert!(error.contains("did not answer within 10s"), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connections_go_before_prefetches_and_few_run_at_once() {
    let ca = FakeCa::new(&[Answer::SignAfter(Duration::from_secs(1)); 20]);
    let cfg = CertificateConfig {
        max_fetches: 2,
        ..CertificateConfig::default()
    };
    with_store(&ca, cfg, async |store| {
        for name in ["a", "b", "c", "d", "e"] {
            store.prefetch(id(name));
        }
        pass(Duration::ZERO).await;
        assert_eq!((ca.calls(), store.dump().len()), (2, 5));
        // A new one and a queued one, both waited for.
        let (urgent, known) = (id("urgent"), id("e"));
        let (one, other) = tokio::join!(store.get(&urgent), store.get(&known));
        one.unwrap();
        other.unwrap();
        assert_eq!(ca.calls.lock()[..4], ["a", "b", "urgent", "e"]);
        pass(Duration::from_secs(1)).await;
        pass(Duration::from_secs(1)).await;
        assert_eq!(available(&store), 6);
        assert_eq!(ca.running.lock().1, 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn forgets() {
    let ca = FakeCa::new(&[Answer::Hang]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let web = id("web");
        let waiting = async {
            let error = store.get(&web).await.unwrap_err();
            assert!(matches!(error, IdentityError::Forgotten { .. }), "{error}");
        };
        let forgetting = async {
            pass(Duration::ZERO).await;
            assert_eq!(ca.running.lock().0, 1);
            store.forget(&web);
        };
        tokio::join!(waiting, forgetting);
        assert!(store.dump().is_empty());
        // Wanted again, it is fetched again, whatever becomes of the first fetch.
        store.get(&web).await.unwrap();
        pass(Duration::from_secs(11)).await;
        assert_eq!(available(&store), 1);

        store.get(&id("db")).await.unwrap();
        store.forget(&web);
        let left: Vec<Identity> = store.dump().into_iter().map(|dump| dump.identity).collect();
        assert_eq!(left, [id("db")]);
        pass(HOUR * 60 / 100).await;
        assert_eq!(ca.calls.lock().last().unwrap(), "db", "only db is renewed");
    })
    .await;
}

/// Whether it comes back before or after the root goes, and whether it comes back at all.
#[tokio::test]
async fn a_withdrawn_root_ends_the_tunnels_of_an_identity_that_has_left() {
    const DEADLINE: Duration = Duration::from_secs(20);
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Return {
        Never,
        Before,
        After,
    }
    for comes_back in [Return::Never, Return::Before, Return::After] {
        let ca = FakeCa::new(&[]);
        let cfg = CertificateConfig {
            withdrawal_grace: Duration::ZERO,
            ..CertificateConfig::default()
        };
        let test = with_store(&ca, cfg, async |store| {
            let (web, db) = (id("web"), id("db"));
            let own = store.get(&web).await.unwrap();
            let peer = ca.ca.lock().workload(&db.to_string());
            let (near, far) = sockets().await;
            let expected = [web.clone()];
            let (accepted, connected) = tokio::join!(
                Box::pin(accept(&own, far, &[], DEADLINE)),
                Box::pin(connect(&peer, near, &expected, DEADLINE))
            );
            let ((mut tunnel, _), _far) = (accepted.unwrap(), connected.unwrap());
            drop(own);
            store.forget(&web);
            if comes_back == Return::Before {
                store.get(&web).await.unwrap();
                store.forget(&web);
            }
            *ca.ca.lock() = TestCa::new();
            let new = if comes_back == Return::After { web } else { db };
            store.get(&new).await.unwrap();
            let read = timeout(DEADLINE, tunnel.read_u8()).await.unwrap();
            let error = read.unwrap_err();
            assert!(is_revocation(&error), "{comes_back:?}: {error}");
            drop(tunnel);
            // And then there is nothing left of it.
            store.forget(&id("other"));
            assert!(
                store
                    .shared
                    .table
                    .lock()
                    .departed
                    .come_back(&id("web"))
                    .is_none()
            );
        });
        Box::pin(test).await;
    }
}

#[tokio::test(start_paused = true)]
async fn refuses_identities_beyond_the_bound() {
    let ca = FakeCa::new(&[]);
    let cfg = CertificateConfig {
        max_identities: 1,
        ..CertificateConfig::default()
    };
    with_store(&ca, cfg, async |store| {
        store.get(&id("a")).await.unwrap();
        let error = store.get(&id("b")).await.unwrap_err();
        assert!(
            matches!(error, IdentityError::Full { limit: 1, .. }),
            "{error}"
        );
        store.prefetch(id("c"));
        assert_eq!(store.dump().len(), 1);
        store.forget(&id("a"));
        store.get(&id("b")).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_the_worker_only_what_is_there_is_given_out() {
    let ca = FakeCa::new(&[Answer::Sign, Answer::Hang]);
    let (store, worker) =
        CertificateStore::new(CertificateSource::Ca(ca), CertificateConfig::default());
    let (web, db) = (id("web"), id("db"));
    let waiting = async {
        store.get(&web).await.unwrap();
        store.get(&db).await.unwrap_err()
    };
    let draining = async {
        let stopped = tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            () = worker.run() => {}
            () = stopped => {}
        }
    };
    let (error, ()) = tokio::join!(waiting, draining);
    assert!(matches!(error, IdentityError::Stopped { .. }), "{error}");
    store.get(&web).await.unwrap();
    let error = store.get(&id("new")).await.unwrap_err();
    assert!(matches!(error, IdentityError::Stopped { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn dumps_as_istioctl_reads_it() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let ca = FakeCa::new(&[Answer::Sign, Answer::Refuse, Answer::Hang]);
    with_store(&ca, CertificateConfig::default(), async |store| {
        let web = store.get(&id("web")).await.unwrap();
        store.get(&id("a-refused")).await.unwrap_err();
        store.prefetch(id("waiting"));
        pass(Duration::ZERO).await;

        let dump = serde_json::to_value(store.dump()).unwrap();
        assert_eq!(
            dump[0]["state"],
            "Unavailable: the CA refused (Unauthenticated): request impersonation authentication failure"
        );
        assert_eq!(dump[1]["state"], "Initializing");
        assert_eq!(dump[1]["certChain"], serde_json::json!([]));
        assert_eq!(dump[2]["identity"], id("web").to_string());
        assert_eq!(dump[2]["state"], "Available");
        let leaf = &dump[2]["certChain"][0];
        assert_eq!(leaf["serialNumber"], web.serial());
        for key in ["validFrom", "expirationTime"] {
            let text = leaf[key].as_str().unwrap();
            assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
        }
        let pem = BASE64_STANDARD.decode(dump[2]["rootCerts"][0]["pem"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(pem).unwrap(), ca.ca.lock().root_pem());
    })
    .await;
}
