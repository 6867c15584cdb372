//! How much of one stream waits in HTTP/2 for the socket, for streams that were told to keep it small.
//!
//! HTTP/2 bounds it per stream only, by one number for all tunnels, and a peer may have many streams and read none. Exact,
//! because the bytes themselves tell when they are gone: sent, or thrown away with their stream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::task::AtomicWaker;

/// A limit and what counts towards it.
#[derive(Debug)]
pub(crate) struct Queued {
    most: usize,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    bytes: AtomicUsize,
    /// The one writer of the stream.
    writer: AtomicWaker,
}

struct Counted {
    data: Bytes,
    count: Arc<Count>,
}

impl Queued {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            count: Arc::default(),
        }
    }

    /// How much more may wait; at least one byte.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        // Registered before the look, so that no byte leaves unnoticed in between.
        self.count.writer.register(cx.waker());
        match self
            .most
            .saturating_sub(self.count.bytes.load(Ordering::Acquire))
        {
            0 => Poll::Pending,
            room => Poll::Ready(room),
        }
    }

    /// The same bytes, counted until they are dropped.
    pub(crate) fn count(&self, data: Bytes) -> Bytes {
        self.count.bytes.fetch_add(data.len(), Ordering::AcqRel);
        Bytes::from_owner(Counted {
            data,
            count: self.count.clone(),
        })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count
            .bytes
            .fetch_sub(self.data.len(), Ordering::AcqRel);
        self.count.writer.wake();
    }
}
