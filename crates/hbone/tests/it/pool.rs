//! How streams share tunnels.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use leyline_hbone::{
    CloseMode, DialError, HboneConfig, HboneError, Pool, PoolKey, TunnelUse, server::Request,
};
use leyline_net::copy::Reader;
use leyline_runtime::Drain;
use leyline_types::WorkloadUid;
use tokio::{io::DuplexStream, sync::Notify};

use crate::support::{Far, echo, key, ping_pong, pool, request, until, works};

#[tokio::test]
async fn simultaneous_opens_make_one_dial() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let at = key(1);
    let opened = join_all((0..60).map(|_| far.open(&pool, &at))).await;
    let mut new = 0;
    let mut streams = Vec::new();
    for opened in opened {
        let opened = opened.unwrap();
        new += usize::from(opened.tunnel == TunnelUse::New);
        streams.push(works(opened.stream).await);
    }
    assert_eq!((far.dials(), new), (1, 1));
    let stats = pool.stats();
    assert_eq!((stats.keys, stats.tunnels, stats.streams), (1, 1, 60));
    drop(streams);
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test]
async fn full_tunnels_are_joined_by_others_and_used_again() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let at = key(1);
    let mut streams = Vec::new();
    for opened in join_all((0..250).map(|_| far.open(&pool, &at))).await {
        streams.push(works(opened.unwrap().stream).await);
    }
    assert_eq!((far.dials(), pool.stats().tunnels), (3, 3));
    drop(streams);
    let again = join_all((0..250).map(|_| far.open(&pool, &at))).await;
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(far.dials(), 3);
}

#[tokio::test]
async fn busy_tunnels_are_joined_by_another_before_they_are_full() {
    let cfg = HboneConfig {
        parallel_tunnels: 2,
        busy_bytes_per_second: 1000,
        ..HboneConfig::default()
    };
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let (mut reader, mut writer) = works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        for _ in 0..20 {
            ping_pong(&mut reader, &mut writer).await;
        }
        // Nobody waits for the other tunnel.
        let opened = far.open(&pool, &key(1)).await.unwrap();
        assert_eq!(opened.tunnel, TunnelUse::Reused);
        streams.push(works(opened.stream).await);
        until("it is there", || pool.stats().tunnels == 2).await;
    }
    assert_eq!(far.dials(), 2);
}

#[tokio::test]
async fn another_workload_at_the_same_address_gets_a_tunnel_of_its_own() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let before = key(1);
    let after = PoolKey {
        workload: WorkloadUid::new("cluster//Pod/a/other"),
        ..before.clone()
    };
    for (key, tunnel) in [
        (&before, TunnelUse::New),
        (&before, TunnelUse::Reused),
        (&after, TunnelUse::New),
        (&after, TunnelUse::Reused),
    ] {
        assert_eq!(far.open(&pool, key).await.unwrap().tunnel, tunnel);
    }
}

#[tokio::test]
async fn keys_do_not_wait_for_each_other() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let stuck_key = key(1);
    let stuck = pool.open(&stuck_key, request(), || {
        std::future::pending::<Result<DuplexStream, DialError>>()
    });
    let free_key = key(2);
    tokio::select! {
        _ = stuck => panic!("cannot be opened"),
        opened = far.open(&pool, &free_key) => drop(opened.unwrap()),
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_breaks_nothing_for_those_who_wait_for_its_dial() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let (go, at) = (Arc::new(Notify::new()), key(1));
    let (dialler, gate) = (far.clone(), go.clone());
    let first = pool.open(&at, request(), move || async move {
        gate.notified().await;
        Ok::<_, DialError>(dialler.connect(echo))
    });
    let mut first = Box::pin(first);
    assert!(futures::poll!(first.as_mut()).is_pending());
    let second = far.open(&pool, &at);
    let mut second = Box::pin(second);
    assert!(futures::poll!(second.as_mut()).is_pending());
    drop(first);
    go.notify_one();
    let opened = second.await.unwrap();
    assert_eq!(opened.tunnel, TunnelUse::Reused);
    works(opened.stream).await;
    assert_eq!(far.dials(), 1);
}

#[tokio::test]
async fn a_failed_dial_fails_those_who_waited_and_no_later_ones() {
    #[derive(Debug, thiserror::Error)]
    #[error("no route")]
    struct NoRoute;

    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let at = key(1);
    let dials = Arc::new(AtomicUsize::new(0));
    let failing = || {
        let dials = dials.clone();
        pool.open(&at, request(), move || async move {
            dials.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Err::<DuplexStream, _>(DialError::new(NoRoute))
        })
    };
    for result in join_all((0..5).map(|_| failing())).await {
        let Err(HboneError::Dial(error)) = result else {
            panic!("{result:?}");
        };
        assert!(error.get_ref().is::<NoRoute>());
        assert_eq!(error.to_string(), "no route");
    }
    assert_eq!((dials.load(Ordering::Relaxed), pool.stats().keys), (1, 0));
    works(far.open(&pool, &at).await.unwrap().stream).await;
}

#[tokio::test]
async fn the_number_of_tunnels_and_keys_is_bounded() {
    let cfg = HboneConfig {
        outbound_streams: 1,
        tunnels_per_key: 2,
        keys: 2,
        ..HboneConfig::default()
    };
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(far.open(&pool, &key(1)).await.unwrap());
    }
    let full = far.open(&pool, &key(1)).await.unwrap_err();
    assert_eq!(full.reason(), "full");
    // A key in use stays, an idle one makes room.
    drop(far.open(&pool, &key(2)).await.unwrap());
    held.push(far.open(&pool, &key(3)).await.unwrap());
    let too_many = far.open(&pool, &key(4)).await.unwrap_err();
    assert_eq!(too_many.reason(), "too_many_keys");
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let opened = far.open(&pool, &key(1)).await.unwrap();
    tokio::time::sleep(cfg.idle * 2).await;
    let (mut reader, mut writer) = works(opened.stream).await;
    assert_eq!(pool.stats().tunnels, 1);
    drop((reader, writer));
    tokio::time::sleep(cfg.idle / 2).await;
    (reader, writer) = works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    assert_eq!(far.dials(), 1);
    drop((reader, writer));
    tokio::time::sleep(cfg.idle + Duration::from_secs(1)).await;
    assert_eq!(pool.stats().keys, 0);
    let results = far.results.lock();
    assert!(matches!(results[..], [Ok(())]), "{results:?}");
}

#[tokio::test]
async fn tunnels_can_be_closed_by_key() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let (mut kept_in, mut kept_out) = works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    let (mut cut_in, _cut_out) = works(far.open(&pool, &key(2)).await.unwrap().stream).await;

    assert_eq!(
        pool.close_where(CloseMode::Graceful, |key| key.target.port() == 1),
        0
    );
    let first = key(1).target;
    assert_eq!(
        pool.close_where(CloseMode::Graceful, |key| key.target == first),
        1
    );
    let second = key(2).target;
    assert_eq!(
        pool.close_where(CloseMode::Now, |key| key.target == second),
        1
    );

    assert!(cut_in.read().await.is_err());
    ping_pong(&mut kept_in, &mut kept_out).await;
    assert_eq!(pool.stats().keys, 0);
    works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    assert_eq!(far.dials(), 3);
    // The tunnel that was let go ends with its last stream.
    drop((kept_in, kept_out));
    until("both are over", || far.results.lock().len() == 2).await;
}

#[tokio::test]
async fn a_dial_that_was_given_up_leaves_no_tunnel() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let (go, at) = (Arc::new(Notify::new()), key(1));
    let (dialler, gate) = (far.clone(), go.clone());
    let mut open = Box::pin(pool.open(&at, request(), move || async move {
        gate.notified().await;
        Ok::<_, DialError>(dialler.connect(echo))
    }));
    assert!(futures::poll!(open.as_mut()).is_pending());
    assert_eq!(pool.close_where(CloseMode::Now, |_| true), 0);
    go.notify_one();
    let result = open.await;
    assert!(matches!(result, Err(HboneError::Closed)), "{result:?}");
    assert_eq!(pool.stats().keys, 0);
}

#[tokio::test]
async fn a_refusal_carries_its_status() {
    let cfg = HboneConfig::default();
    let (far, pool) = (Far::new(&cfg), pool(&cfg));
    let refused = pool
        .open(&key(1), request(), move || async move {
            Ok::<_, DialError>(far.connect(|request: Request| async move {
                request.refuse(http::StatusCode::UNAUTHORIZED);
            }))
        })
        .await
        .unwrap_err();
    assert_eq!(refused.to_string(), "http status: 401 Unauthorized");
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_closes_unused_tunnels_and_lets_streams_end() {
    let cfg = HboneConfig::default();
    let far = Far::new(&cfg);
    let drain = Drain::new();
    let pool = Pool::new(cfg.clone(), drain.clone());
    let (mut reader, mut writer) = works(far.open(&pool, &key(1)).await.unwrap().stream).await;
    drop(far.open(&pool, &key(2)).await.unwrap());
    let draining = drain.run(Duration::from_secs(60));
    let (outcome, ()) = tokio::join!(draining, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(pool.stats().tunnels, 1);
        ping_pong(&mut reader, &mut writer).await;
        drop((reader, writer));
    });
    assert_eq!(outcome, leyline_runtime::DrainOutcome::Finished);
}
