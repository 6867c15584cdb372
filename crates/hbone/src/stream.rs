//! One tunnelled connection, as the two halves that bytes are copied between.
//!
//! Back-pressure in both directions: received data is credited to the peer only after the next `read`, that is when
//! it was handed on; `write` waits until the stream has room in the peer's window and in our send buffer.

mod byte_stream;

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use leyline_net::copy::{Reader, Writer};
use leyline_runtime::Beside;

pub use byte_stream::HboneIo;

use crate::{error::stream_error, queued::Queued, usage::StreamGuard};

/// An open stream. Dropping it, or both halves, before both directions have ended resets it.
#[derive(Debug)]
pub struct HboneStream {
    reader: HboneReader,
    writer: HboneWriter,
    /// Of an outbound tunnel.
    beside: Option<Beside<Arc<StreamGuard>>>,
}

/// The task of a stream's tunnel, where its connection is carried at the least cost: a wake-up there is no business of the
/// scheduler, and what many connections have to say leaves in one write.
#[derive(Debug)]
pub struct TunnelTask {
    beside: Beside<Arc<StreamGuard>>,
    guard: Arc<StreamGuard>,
}

impl TunnelTask {
    /// Runs `future` there. Where the stream moves much data and is not alone, it goes on in a task of its own.
    ///
    /// # Errors
    /// The future itself, when the tunnel has ended.
    pub fn run<F: Future<Output = ()> + Send + 'static>(self, future: F) -> Result<(), F> {
        self.beside.push(future, self.guard)
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct HboneReader {
    stream: RecvStream,
    /// Bytes that the last read returned; the caller is done with them when it reads again.
    lent: usize,
    /// Bytes handed on and not yet credited to the peer.
    owed: usize,
    /// `owed` is paid when it reaches this.
    batch: usize,
    /// Whether it is one of the tunnel's [`crate::credits::Credits`].
    is_credited: bool,
    /// Keeps the stream counted.
    guard: Arc<StreamGuard>,
}

/// The sending half.
#[derive(Debug)]
pub struct HboneWriter {
    stream: SendStream<Bytes>,
    state: WriterState,
    /// Only if less than the send buffer of the tunnel may wait.
    queued: Option<Queued>,
    /// Keeps the stream counted.
    guard: Arc<StreamGuard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriterState {
    Open,
    Finished,
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndStream {
    Yes,
    No,
}

impl HboneStream {
    pub(crate) fn new(
        receive: RecvStream,
        send: SendStream<Bytes>,
        batch: usize,
        guard: Arc<StreamGuard>,
    ) -> Self {
        Self {
            reader: HboneReader {
                stream: receive,
                lent: 0,
                owed: 0,
                batch,
                is_credited: false,
                guard: guard.clone(),
            },
            writer: HboneWriter {
                stream: send,
                state: WriterState::Open,
                queued: None,
                guard,
            },
            beside: None,
        }
    }

    pub(crate) fn beside(self, beside: Beside<Arc<StreamGuard>>) -> Self {
        Self {
            beside: Some(beside),
            ..self
        }
    }

    /// Where to carry it; none if that is the caller's own task, as of a stream that was accepted.
    pub fn task(&self) -> Option<TunnelTask> {
        let beside = self.beside.clone()?;
        let guard = self.reader.guard.clone();
        Some(TunnelTask { beside, guard })
    }

    /// Lets at most `most` bytes wait for the socket, where a process has so many streams that the send buffers of all of
    /// them would be too much. It costs an allocation per write.
    pub fn limit_send(&mut self, most: usize) {
        self.writer.queued = Some(Queued::new(most.max(1)));
    }

    /// The two halves, for `leyline_net::copy`.
    pub fn into_split(self) -> (HboneReader, HboneWriter) {
        (self.reader, self.writer)
    }
}

impl HboneReader {
    /// Credits what the caller has handed on, in batches: each one takes the lock of the tunnel.
    fn release(&mut self) -> io::Result<()> {
        self.owed += std::mem::take(&mut self.lent);
        if self.owed < self.batch {
            return Ok(());
        }
        let owed = std::mem::take(&mut self.owed);
        if !self.is_credited {
            // Not sooner: what is less than a batch is not missed in any window, and most connections have no more.
            self.is_credited = true;
            self.guard.credits().add(&mut self.stream);
        }
        self.stream
            .flow_control()
            .release_capacity(owed)
            .map_err(stream_error)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match ready!(self.stream.poll_data(cx)) {
                // Trailers are not part of HBONE; they end the stream like END_STREAM does.
                None => return Poll::Ready(Ok(None)),
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.lent = data.len();
                    self.guard.moved(self.lent);
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(error)) => return Poll::Ready(Err(stream_error(error))),
            }
        }
    }
}

impl Drop for HboneReader {
    fn drop(&mut self) {
        if self.is_credited {
            self.guard.credits().remove(&self.stream);
        }
    }
}

impl Reader for HboneReader {
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        self.release()?;
        poll_fn(|cx| self.poll_read(cx)).await
    }
}

impl HboneWriter {
    /// Room for part of `wanted`, which is reserved.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let room = self.stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(self.stream.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room.min(wanted))),
            Some(Err(error)) => Poll::Ready(Err(stream_error(error))),
            None => Poll::Ready(Err(self.broken(cx).1)),
        }
    }

    /// Why the stream takes no more data.
    fn broken(&mut self, cx: &mut Context<'_>) -> (Option<Reason>, io::Error) {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => (Some(reason), stream_error(h2::Error::from(reason))),
            Poll::Ready(Err(error)) => (None, stream_error(error)),
            Poll::Pending => (None, io::ErrorKind::BrokenPipe.into()),
        }
    }

    async fn send(
        &mut self,
        data: Bytes,
        end: EndStream,
    ) -> Result<(), (Option<Reason>, io::Error)> {
        match self.stream.send_data(data, end == EndStream::Yes) {
            Ok(()) => Ok(()),
            // h2 only says that the stream is not open.
            Err(_) => Err(poll_fn(|cx| Poll::Ready(self.broken(cx))).await),
        }
    }

    fn open(&self) -> io::Result<()> {
        match self.state {
            WriterState::Open => Ok(()),
            WriterState::Finished => Err(io::ErrorKind::BrokenPipe.into()),
            WriterState::Aborted => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Writer for HboneWriter {
    /// Not cancel safe: a dropped call may have sent a part of `data`.
    async fn write(&mut self, mut data: Bytes) -> io::Result<()> {
        self.open()?;
        self.guard.moved(data.len());
        while !data.is_empty() {
            let mut wanted = data.len();
            if let Some(queued) = &self.queued {
                wanted = wanted.min(poll_fn(|cx| queued.poll_room(cx)).await);
            }
            self.stream.reserve_capacity(wanted);
            let room = poll_fn(|cx| self.poll_room(cx, wanted)).await?;
            let mut part = data.split_to(room);
            if let Some(queued) = &self.queued {
                part = queued.count(part);
            }
            self.send(part, EndStream::No)
                .await
                .map_err(|(_, error)| error)?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        if self.state == WriterState::Finished {
            return Ok(());
        }
        self.open()?;
        self.state = WriterState::Finished;
        match self.send(Bytes::new(), EndStream::Yes).await {
            // The peer has answered in full and wants no more, which is how we end anyway (RFC 9113, 8.1).
            Ok(()) | Err((Some(Reason::NO_ERROR), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn abort(&mut self) {
        if self.state != WriterState::Aborted {
            self.state = WriterState::Aborted;
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
