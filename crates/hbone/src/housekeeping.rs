//! What the task of a tunnel waits for besides the tunnel itself: keepalive, idleness, drain. Common to both ends.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use h2::{Ping, PingPong};
use leyline_runtime::Drain;
use tokio::time::timeout;

use crate::{config::HboneConfig, link::Traffic};

/// Something that the task has to act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// No pong and no data in time.
    Dead,
    /// No stream for long.
    Unused,
    /// A younger tunnel is better.
    Leaving,
    /// Graceful shutdown was asked for.
    DrainStarted,
    /// Its deadline passed, or the tunnel is to be closed at once.
    Cut,
}

/// Waits for several events. They are polled only when they were woken, not each time that data moves: most of them
/// take a lock or look at a timer.
pub(crate) struct Events {
    waiting: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            waiting: FuturesUnordered::new(),
        }
    }

    pub(crate) fn add(&self, event: impl Future<Output = Event> + Send + 'static) {
        self.waiting.push(Box::pin(event));
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.waiting.poll_next_unpin(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

pub(crate) async fn drain_started(drain: Drain) -> Event {
    drain.started().await;
    Event::DrainStarted
}

/// In how many parts a deadline is watched: bytes received in any part are a sign of life.
const DEADLINE_PARTS: u32 = 4;

/// Sends PINGs; ends when the peer is dead. A pong may be late as long as other bytes arrive, because it waits
/// behind them.
pub(crate) fn keepalive(
    mut pings: PingPong,
    traffic: Arc<Traffic>,
    cfg: &HboneConfig,
) -> impl Future<Output = Event> + use<> {
    let (interval, deadline) = (cfg.ping_interval, cfg.ping_deadline);
    async move {
        loop {
            tokio::time::sleep(interval).await;
            if pings.send_ping(Ping::opaque()).is_err() {
                return closing().await;
            }
            let mut silent_parts = 0;
            let mut seen = traffic.received();
            loop {
                let pong = std::future::poll_fn(|cx| pings.poll_pong(cx));
                match timeout(deadline / DEADLINE_PARTS, pong).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(_)) => return closing().await,
                    Err(_) if traffic.received() != seen => {
                        seen = traffic.received();
                        silent_parts = 0;
                    }
                    Err(_) => silent_parts += 1,
                }
                if silent_parts == DEADLINE_PARTS {
                    return Event::Dead;
                }
            }
        }
    }
}

/// The connection has ended, which its own future tells better.
async fn closing() -> Event {
    std::future::pending().await
}
