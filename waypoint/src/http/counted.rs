//! Bodies that count what passes: bytes, and the messages of gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use super::{
    body::Body,
    passing::{Polled, Watch},
};

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What has passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) bytes: AtomicU64,
    pub(crate) messages: AtomicU64,
}

/// Finds where messages begin in a stream of bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Messages {
    prefix: [u8; PREFIX],
    filled: usize,
    /// Bytes of the message that are still to come.
    left: u64,
}

impl Messages {
    /// How many messages begin and have their whole prefix in these bytes.
    pub(crate) fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX);
                let skipped = skipped.min(bytes.len());
                bytes = bytes.get(skipped..).unwrap_or_default();
                self.left -= skipped as u64;
                continue;
            }
            for (place, byte) in self.prefix.iter_mut().skip(self.filled).zip(bytes) {
                *place = *byte;
            }
            let taken = (PREFIX - self.filled).min(bytes.len());
            self.filled += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.filled == PREFIX {
                let [_compressed, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length).into();
                self.filled = 0;
                found += 1;
            }
        }
        found
    }
}

/// Counts the bytes of a request's body.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) passed: Arc<Passed>,
    pub(crate) messages: Option<Messages>,
}

impl Watch for Counted {
    fn seen(&mut self, _body: &Body, polled: Polled, _cx: &mut Context<'_>) -> Polled {
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            self.passed.bytes.fetch_add(bytes, Ordering::Relaxed);
            if let Some(messages) = &mut self.messages {
                let count = messages.count(data);
                self.passed.messages.fetch_add(count, Ordering::Relaxed);
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut stream = Vec::new();
        for length in [0u32, 3, 300] {
            stream.push(0);
            stream.extend(length.to_be_bytes());
            stream.extend(vec![9; length as usize]);
        }
        for size in [1, 2, 4, 5, 7, 1000] {
            let mut messages = Messages::default();
            let count: u64 = stream.chunks(size).map(|part| messages.count(part)).sum();
            assert_eq!(count, 3, "{size}");
        }
    }
}
