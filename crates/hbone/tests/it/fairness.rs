//! Streams of one tunnel do not stop each other: not by standing still, not by moving much.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use leyline_hbone::{DialError, HboneConfig, HboneStream, HboneWriter, Pool, server::Request};
use leyline_net::copy::{Reader, Writer};
use proptest::prelude::*;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    streams::pattern,
    support::{Far, expect, key, pool, read_all, request},
};

/// Opens streams of one tunnel, near end and far end of each.
struct Opener {
    far: Far,
    pool: Pool,
    far_end: mpsc::Sender<HboneStream>,
    far_ends: mpsc::Receiver<HboneStream>,
}

impl Opener {
    fn new(cfg: &HboneConfig) -> Self {
        let (far_end, far_ends) = mpsc::channel(8);
        Self {
            far: Far::new(cfg),
            pool: pool(cfg),
            far_end,
            far_ends,
        }
    }

    async fn open(&mut self) -> (HboneStream, HboneStream) {
        let (far, far_end) = (self.far.clone(), self.far_end.clone());
        let dial = move || async move {
            Ok::<_, DialError>(far.connect(move |request: Request| {
                let far_end = far_end.clone();
                async move { far_end.send(request.accept(None).unwrap()).await.unwrap() }
            }))
        };
        let opened = self.pool.open(&key(1), request(), dial).await.unwrap();
        (opened.stream, self.far_ends.recv().await.unwrap())
    }
}

/// Whose writer waits for whom.
#[derive(Clone, Copy, Debug)]
enum Writes {
    Near,
    Far,
}

impl Writes {
    fn order(self, (near, far): (HboneStream, HboneStream)) -> (HboneStream, HboneStream) {
        match self {
            Self::Near => (near, far),
            Self::Far => (far, near),
        }
    }
}

/// Each stream that is not read fills the window that it finds before the next one comes.
#[tokio::test]
async fn however_many_streams_are_not_read_the_next_one_is_served() {
    const STUCK: usize = 60;
    let cfg = HboneConfig {
        connection_window: 1 << 20,
        send_buffer: 16 << 10,
        ..HboneConfig::default()
    };
    for writes in [Writes::Near, Writes::Far] {
        let mut opener = Opener::new(&cfg);
        let mut stuck = Vec::new();
        for number in 0..STUCK {
            let (from, to) = writes.order(opener.open().await);
            let (unread, mut writer) = from.into_split();
            let full = writer.write(Bytes::from(vec![0; 2 << 20]));
            let full = tokio::time::timeout(Duration::from_millis(20), full).await;
            assert!(full.is_err(), "{writes:?}: stream {number} was taken whole");
            stuck.push((unread, writer, to));
        }
        let (from, to) = writes.order(opener.open().await);
        let (_from_in, mut writer) = from.into_split();
        let (mut reader, _to_out) = to.into_split();
        let data: Vec<u8> = (0..4 << 20).map(pattern).collect();
        let send = async {
            writer.write(data.clone().into()).await?;
            writer.finish().await
        };
        let both = async { tokio::join!(send, read_all(&mut reader)) };
        let both = tokio::time::timeout(Duration::from_secs(20), both).await;
        let (sent, got) = both.unwrap_or_else(|_| panic!("{writes:?}: nothing moves"));
        sent.unwrap();
        assert!(got.unwrap() == data);
    }
}

/// A large transfer leaves room for small ones: what passes before an answer does is bounded.
#[tokio::test]
async fn a_stream_that_moves_much_does_not_starve_one_that_moves_little() {
    const ROUNDS: usize = 50;
    /// What waits before it in the sender's buffer and in the pipe, and one more of its frames.
    const AHEAD: usize = 2 << 20;
    let cfg = HboneConfig::default();
    let mut opener = Opener::new(&cfg);
    let (small_near, small_far) = opener.open().await;
    let (large_near, large_far) = opener.open().await;
    let moved = Arc::new(AtomicUsize::new(0));
    let count = moved.clone();
    let large = async move {
        let (_large_in, mut writer) = large_near.into_split();
        let (mut reader, _large_out) = large_far.into_split();
        let chunk = Bytes::from(vec![7; 256 << 10]);
        let send = async { while writer.write(chunk.clone()).await.is_ok() {} };
        let receive = async {
            while let Ok(Some(data)) = reader.read().await {
                count.fetch_add(data.len(), Ordering::Relaxed);
            }
        };
        tokio::join!(send, receive)
    };
    let small = async {
        let (mut near_in, mut near_out) = small_near.into_split();
        let (mut far_in, mut far_out) = small_far.into_split();
        let answer = async {
            while let Ok(Some(data)) = far_in.read().await {
                far_out.write(data).await.unwrap();
            }
        };
        let ask = async {
            let mut most = 0;
            for _ in 0..ROUNDS {
                let before = moved.load(Ordering::Relaxed);
                near_out.write(Bytes::from_static(b"ping")).await.unwrap();
                expect(&mut near_in, b"ping").await;
                most = most.max(moved.load(Ordering::Relaxed) - before);
            }
            most
        };
        tokio::select! {
            most = ask => most,
            () = answer => unreachable!(),
        }
    };
    let most = tokio::select! {
        most = small => most,
        _ = large => unreachable!(),
    };
    assert!(moved.load(Ordering::Relaxed) > 0, "nothing large was moved");
    assert!(most <= AHEAD, "{most} bytes passed before a small answer");
}

/// What it has read and not yet credited may be more than its window is when there are many.
#[tokio::test]
async fn a_stream_that_others_join_goes_on() {
    let cfg = HboneConfig::default();
    let before = Bytes::from(vec![1; 1200 << 10]);
    let after = Bytes::from(vec![2; 300 << 10]);
    for writes in [Writes::Near, Writes::Far] {
        let mut opener = Opener::new(&cfg);
        let (from, to) = writes.order(opener.open().await);
        let (_from_in, mut writer) = from.into_split();
        let (mut reader, _to_out) = to.into_split();
        let (sent, ()) = tokio::join!(writer.write(before.clone()), expect(&mut reader, &before));
        sent.unwrap();
        // Everything is read, and the reader waits, when the others come.
        let read = expect(&mut reader, &after);
        let write = async {
            let mut others = Vec::new();
            for _ in 0..40 {
                others.push(opener.open().await);
            }
            writer.write(after.clone()).await.unwrap();
        };
        let both = Box::pin(async { tokio::join!(read, write) });
        let both = tokio::time::timeout(Duration::from_secs(10), both).await;
        assert!(both.is_ok(), "{writes:?}: nothing moves");
    }
}

/// What happens in a tunnel.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open(usize),
    /// On one of the streams, in the order in which they came.
    Send(usize, usize),
    /// The youngest.
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..60_usize).prop_map(Step::Open),
        (0..60_usize, 1..1_500_000_usize).prop_map(|(stream, bytes)| Step::Send(stream, bytes)),
        (1..60_usize).prop_map(Step::Close),
    ]
}

/// A stream from one end to the other, with a reader that always waits.
struct Flow {
    writer: HboneWriter,
    arrived: mpsc::Receiver<usize>,
    _reading: JoinSet<()>,
}

impl Flow {
    fn new((from, to): (HboneStream, HboneStream)) -> Self {
        let (unread, writer) = from.into_split();
        let (mut reader, unwritten) = to.into_split();
        let (told, arrived) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let _other_direction = (unread, unwritten);
            while let Ok(Some(data)) = reader.read().await {
                let _gone = told.send(data.len()).await;
            }
        });
        Self {
            writer,
            arrived,
            _reading: reading,
        }
    }

    async fn send(&mut self, bytes: usize) {
        let write = self.writer.write(Bytes::from(vec![3; bytes]));
        let arrive = async {
            let mut left = bytes;
            while left > 0 {
                left -= self.arrived.recv().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(write, arrive);
        written.unwrap();
    }
}

proptest! {
    // A case that fails takes its whole deadline.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 8, ..ProptestConfig::default() })]
    #[test]
    fn whatever_streams_come_and_go_each_one_moves(steps in prop::collection::vec(step(), 1..12)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let moved = runtime.block_on(async {
            let mut opener = Opener::new(&HboneConfig::default());
            let mut flows = vec![Flow::new(opener.open().await)];
            let all = async {
                for step in steps {
                    match step {
                        // No more than one tunnel takes.
                        Step::Open(more) => for _ in 0..more.min(90 - flows.len()) {
                            flows.push(Flow::new(opener.open().await));
                        },
                        Step::Send(stream, bytes) => {
                            let index = stream % flows.len();
                            flows[index].send(bytes).await;
                        }
                        Step::Close(fewer) => flows.truncate(flows.len().saturating_sub(fewer).max(1)),
                    }
                }
                for flow in &mut flows {
                    flow.send(1000).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), all).await
        });
        prop_assert!(moved.is_ok(), "something stands still");
    }
}
