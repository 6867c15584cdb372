//! Credit that readers have given and h2 has not yet told.
//!
//! h2 tells the peer of credit when it is half of what the peer may still send. After the windows have shrunk, see
//! [`crate::windows`], what it keeps back can be more than the whole window of a stream: the peer may send nothing, so
//! nothing is read, and nothing more is credited that would make h2 look again. So once the peer has taken notice of new
//! windows, h2 is made to look at every stream.

use std::collections::HashMap;

use h2::{FlowControl, RecvStream};
use parking_lot::Mutex;

/// Streams of one tunnel that are being read.
#[derive(Debug, Default)]
pub(crate) struct Credits {
    /// By stream. Locked once when a stream opens, once when it ends, and to look.
    readers: Mutex<HashMap<u32, FlowControl>>,
}

impl Credits {
    /// To be followed by [`Self::remove`] before `stream` is dropped, since h2 resets what nobody holds any more.
    pub(crate) fn add(&self, stream: &mut RecvStream) {
        let id = stream.stream_id().as_u32();
        let window = stream.flow_control().clone();
        self.readers.lock().insert(id, window);
    }

    pub(crate) fn remove(&self, stream: &RecvStream) {
        // Dropped after the lock.
        let _window = self.readers.lock().remove(&stream.stream_id().as_u32());
    }

    /// Has h2 tell what it keeps back. Says whether it may have something to send for it.
    pub(crate) fn tell(&self) -> bool {
        let mut readers = self.readers.lock();
        for window in readers.values_mut() {
            // Nothing more is given, which cannot be too much.
            let _never: Result<(), h2::Error> = window.release_capacity(0);
        }
        !readers.is_empty()
    }
}
