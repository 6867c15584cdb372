//! Outbound tunnels, shared by the connections that go from one identity to one workload.
//!
//! [`Pool::open`] finds room in a tunnel or makes one. However many callers want the same key, one dial at a time is
//! made for it, in a task of its own: a caller that goes away breaks nothing for the others, and different keys never
//! wait for each other. A tunnel whose streams have ended is used again; one that has ended or is going away is not.

mod request;
mod slots;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
};

use leyline_runtime::{Drain, spawn};
use leyline_types::{Identity, WorkloadUid};
use metrics::counter;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::timeout,
};
use tracing::{Span, debug};

pub use request::ConnectRequest;
use slots::{Attempt, Progress, Slots, Wanted};

use crate::{
    client::{self, Lease, RequestError, Settled, Tunnel},
    config::HboneConfig,
    error::{DialError, HboneError},
    stream::HboneStream,
};

/// What connections must have in common to share a tunnel; compared in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Who calls.
    pub source: Identity,
    /// Who may answer, sorted.
    pub destinations: Vec<Identity>,
    /// Where.
    pub target: SocketAddr,
    /// From which address.
    pub source_ip: IpAddr,
    /// Which workload is there now. An address that another one has taken over gets tunnels of its own, whatever became of
    /// those to the one before.
    pub workload: WorkloadUid,
}

/// Whether a stream had to wait for a new tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelUse {
    /// This call dialled.
    New,
    /// The tunnel was there, or another call dialled it.
    Reused,
}

/// An accepted stream.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: HboneStream,
    /// What the destination says of itself; [`crate::Baggage::parse`] reads it.
    pub baggage: Option<String>,
    /// How the tunnel was had.
    pub tunnel: TunnelUse,
}

/// What happens to the streams of tunnels that are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// They go on; no new ones are opened.
    Graceful,
    /// They are cut.
    Now,
}

/// Numbers of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Keys that have a tunnel or a dial.
    pub keys: usize,
    /// Tunnels that take streams.
    pub tunnels: usize,
    /// Streams in them.
    pub streams: usize,
}

/// The tunnels of one node, or one pod. Clones are the same pool; when the last is dropped, tunnels close after their
/// last stream.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    cfg: HboneConfig,
    drain: Drain,
    /// Held for a look-up or a change, never while waiting.
    slots: Mutex<Slots>,
}

impl Pool {
    /// An empty pool; its tasks run on `drain`.
    pub fn new(cfg: HboneConfig, drain: Drain) -> Self {
        let slots = Mutex::new(Slots::new(
            cfg.keys,
            cfg.tunnels_per_key,
            cfg.parallel_tunnels,
        ));
        Self {
            inner: Arc::new(Inner { cfg, drain, slots }),
        }
    }

    /// Opens a stream, over a tunnel that there is or one that `dial` makes. Cancel safe.
    ///
    /// # Errors
    /// When the dial of this call, or the one that it waited for, failed, or the peer refused the request. A request
    /// that the peer did not look at because the tunnel was going away is repeated once in another one.
    pub async fn open<IO, D, F>(
        &self,
        key: &PoolKey,
        request: ConnectRequest,
        dial: D,
    ) -> Result<Opened, HboneError>
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<IO, DialError>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = request.into_http()?;
        let mut dial = Some(dial);
        let mut repeated = false;
        loop {
            let (lease, tunnel) = self.lease(key, &mut dial).await?;
            let used = lease.tunnel.clone();
            match lease
                .request(request.clone(), self.inner.cfg.response_deadline)
                .await
            {
                Ok((stream, baggage)) => {
                    return Ok(Opened {
                        stream,
                        baggage: baggage.and_then(|value| value.to_str().ok().map(str::to_owned)),
                        tunnel,
                    });
                }
                Err(RequestError::Unprocessed(error)) => {
                    self.inner.slots.lock().remove(key, &used);
                    if repeated || dial.is_none() {
                        return Err(error);
                    }
                    debug!(%error, "request is repeated in another tunnel");
                    repeated = true;
                    counter!("leyline_hbone_retries_total").increment(1);
                }
                Err(RequestError::Failed(error)) => return Err(error),
            }
        }
    }

    /// Closes the tunnels, and gives up the dials, of the keys that `predicate` selects. Returns how many tunnels.
    pub fn close_where(&self, mode: CloseMode, predicate: impl FnMut(&PoolKey) -> bool) -> usize {
        let closed = self.inner.slots.lock().take_where(predicate);
        if mode == CloseMode::Now {
            closed.iter().for_each(|tunnel| tunnel.cut());
        }
        closed.len()
    }

    /// Has the next streams of the keys that `predicate` selects opened in new tunnels: those that there are go on to
    /// their last stream. Dials go on too. Returns how many tunnels.
    pub fn renew_where(&self, predicate: impl FnMut(&PoolKey) -> bool) -> usize {
        self.inner.slots.lock().renew_where(predicate).len()
    }

    /// The numbers now.
    pub fn stats(&self) -> PoolStats {
        let (keys, tunnels, streams) = self.inner.slots.lock().count();
        PoolStats {
            keys,
            tunnels,
            streams,
        }
    }

    /// A place in a tunnel. Takes `dial` out if it has to be used.
    async fn lease<IO, D, F>(
        &self,
        key: &PoolKey,
        dial: &mut Option<D>,
    ) -> Result<(Lease, TunnelUse), HboneError>
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<IO, DialError>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        loop {
            let wanted = self.inner.slots.lock().want(key)?;
            let mut progress = match wanted {
                Wanted::Lease(lease) => return Ok((lease, TunnelUse::Reused)),
                Wanted::LeaseAndDial(lease, attempt) => {
                    drop(self.start(attempt, dial.take()));
                    return Ok((lease, TunnelUse::Reused));
                }
                Wanted::Dial(attempt) => {
                    let own = self.start(attempt, dial.take());
                    let lease = own.await.unwrap_or(Err(HboneError::Closed))?;
                    return Ok((lease, TunnelUse::New));
                }
                Wanted::Wait(progress) => progress,
            };
            // Without news, the task of the dial was cut.
            if progress.changed().await.is_err() {
                return Err(HboneError::Closed);
            }
            if let Progress::Failed(error) = &*progress.borrow() {
                return Err(error.clone());
            }
        }
    }

    /// Dials, in a task of its own because others may wait for the dial too. The caller is the first in the tunnel.
    fn start<IO, D, F>(
        &self,
        attempt: Attempt,
        dial: Option<D>,
    ) -> oneshot::Receiver<Result<Lease, HboneError>>
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<IO, DialError>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (first, leased) = oneshot::channel();
        let dialling = Dialling {
            inner: self.inner.clone(),
            attempt,
        };
        let Some(dial) = dial else {
            return leased;
        };
        let task = async move { dialling.run(first, dial).await };
        drop(spawn(
            "hbone dial",
            Span::current(),
            &self.inner.drain,
            task,
        ));
        leased
    }
}

/// A dial under way; when it is dropped, by whatever end, the next caller may dial.
struct Dialling {
    inner: Arc<Inner>,
    attempt: Attempt,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.inner.slots.lock().finish(&self.attempt);
    }
}

impl Dialling {
    async fn run<IO, D, F>(self, first: oneshot::Sender<Result<Lease, HboneError>>, dial: D)
    where
        D: FnOnce() -> F,
        F: Future<Output = Result<IO, DialError>>,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let result = match self.connect(dial).await {
            Ok((tunnel, settled)) => {
                // The first place is the caller's, whoever else waits. If it went away, the place is free again.
                let lease = tunnel.lease().ok_or(HboneError::Closed);
                let published = self.inner.slots.lock().publish(&self.attempt, &tunnel);
                if published {
                    drop(first.send(lease));
                    self.settle(&tunnel, settled).await
                } else {
                    tunnel.cut();
                    drop(first.send(Err(HboneError::Closed)));
                    Err(HboneError::Closed)
                }
            }
            Err(error) => {
                drop(first.send(Err(error.clone())));
                Err(error)
            }
        };
        let outcome = result.as_ref().map_or_else(HboneError::reason, |()| "ok");
        counter!("leyline_hbone_dials_total", "result" => outcome).increment(1);
        let news = match result {
            Ok(()) => Progress::Ready,
            Err(error) => Progress::Failed(error),
        };
        self.inner.slots.lock().finish(&self.attempt);
        self.attempt.progress.send_replace(news);
    }

    /// The transport, the handshake, and the task that drives the tunnel.
    async fn connect<IO, D, F>(&self, dial: D) -> Result<(Arc<Tunnel>, Settled), HboneError>
    where
        D: FnOnce() -> F,
        F: Future<Output = Result<IO, DialError>>,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Inner { cfg, drain, .. } = &*self.inner;
        let io = timeout(cfg.dial_deadline, dial())
            .await
            .map_err(|_elapsed| HboneError::DialDeadline)?
            .map_err(HboneError::Dial)?;
        let (tunnel, driver, settled) = client::handshake(io, cfg, drain).await?;
        let tunnel = Arc::new(tunnel);
        let member = Member {
            inner: Arc::downgrade(&self.inner),
            key: self.attempt.key.clone(),
            tunnel: Arc::downgrade(&tunnel),
        };
        // Lives as long as the tunnel, which is no caller's.
        let task = async move { driver.run(|| member.retire()).await };
        drop(spawn("hbone tunnel", Span::none(), drain, task));
        Ok((tunnel, settled))
    }

    /// Waits until the peer has said how many streams it allows.
    async fn settle(&self, tunnel: &Arc<Tunnel>, settled: Settled) -> Result<(), HboneError> {
        let result = match timeout(self.inner.cfg.handshake_deadline, settled).await {
            Ok(Ok(result)) => result,
            Ok(Err(_cut)) => Err(HboneError::Closed),
            Err(_elapsed) => Err(HboneError::HandshakeDeadline),
        };
        match &result {
            Ok(()) => tunnel.settle(),
            Err(_) => {
                self.inner.slots.lock().remove(&self.attempt.key, tunnel);
                tunnel.cut();
            }
        }
        result
    }
}

/// A tunnel's place in the pool, kept by its task; it holds neither of the two. Given up when the task ends.
struct Member {
    inner: Weak<Inner>,
    key: PoolKey,
    tunnel: Weak<Tunnel>,
}

impl Member {
    /// Leaves the pool if the tunnel has no stream. Says whether it has left.
    fn retire(&self) -> bool {
        match (self.inner.upgrade(), self.tunnel.upgrade()) {
            (Some(inner), Some(tunnel)) => inner.slots.lock().retire(&self.key, &tunnel),
            (None | Some(_), None) | (None, Some(_)) => true,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let (Some(inner), Some(tunnel)) = (self.inner.upgrade(), self.tunnel.upgrade()) {
            inner.slots.lock().remove(&self.key, &tunnel);
        }
    }
}
