//! What changes while an endpoint is used: its load and its connections. Kept over updates of the configuration for as
//! long as the endpoint stays.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::http::body::Body;

/// Idle HTTP/1 connections that one endpoint may keep. More are closed: they cost a stream of a tunnel each.
const MAX_IDLE: usize = 128;

/// State of one endpoint of one cluster.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// When it came.
    since: Instant,
    /// Requests and TCP connections under way.
    active: AtomicUsize,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    /// The one used last at the end.
    http1: Vec<Idle>,
    http2: Option<http2::SendRequest<Body>>,
}

/// An HTTP/1 connection that waits for a request.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Body>,
    /// When it is too old to be used.
    until: Instant,
}

/// Counts a request or connection for as long as it is there.
#[derive(Debug)]
pub(crate) struct Active(Arc<EndpointState>);

impl Default for EndpointState {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            active: AtomicUsize::default(),
            connections: Mutex::default(),
        }
    }
}

impl EndpointState {
    /// When the endpoint came.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Requests and connections under way.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// When it comes back, if it is ejected.
    pub(crate) fn back_at(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        None
    }

    /// Counts one more.
    pub(crate) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    /// An HTTP/1 connection that was used before and is open as far as is known.
    pub(crate) fn take_http1(&self) -> Option<http1::SendRequest<Body>> {
        let now = Instant::now();
        let mut connections = self.connections.lock();
        while let Some(idle) = connections.http1.pop() {
            if idle.until > now && !idle.sender.is_closed() {
                return Some(idle.sender);
            }
        }
        None
    }

    /// Gives an HTTP/1 connection back after a whole exchange.
    pub(crate) fn put_http1(&self, sender: http1::SendRequest<Body>, until: Instant) {
        if sender.is_closed() {
            return;
        }
        let mut connections = self.connections.lock();
        if connections.http1.len() < MAX_IDLE {
            connections.http1.push(Idle { sender, until });
        }
    }

    /// The HTTP/2 connection, if there is one.
    pub(crate) fn http2(&self) -> Option<http2::SendRequest<Body>> {
        let mut connections = self.connections.lock();
        connections.http2.take_if(|sender| sender.is_closed());
        connections.http2.clone()
    }

    /// Lets others use an HTTP/2 connection too.
    pub(crate) fn share_http2(&self, sender: http2::SendRequest<Body>) {
        self.connections.lock().http2 = Some(sender);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
