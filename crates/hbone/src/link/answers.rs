//! Which requests of a server's tunnel wait for our answer. A head that is sent and that none of them waited for is h2's
//! own: 431, for a request whose header list is larger than allowed. h2 shows such a request to nobody.

use std::collections::HashSet;

use super::frames::Seen;

/// Requests that wait are open streams, which are bounded.
#[derive(Debug, Default)]
pub(super) struct Answers {
    awaited: HashSet<u32>,
    too_large: usize,
}

impl Answers {
    /// A request was handed out.
    pub(super) fn await_for(&mut self, stream: u32) {
        self.awaited.insert(stream);
    }

    pub(super) fn sent(&mut self, seen: Seen) {
        match seen {
            Seen::Head { stream } => {
                if !self.awaited.remove(&stream) {
                    self.too_large += 1;
                }
            }
            Seen::Reset { stream, .. } => {
                self.awaited.remove(&stream);
            }
            Seen::GoAway { .. } | Seen::SettingsAck => {}
        }
    }

    pub(super) fn received(&mut self, seen: Seen) {
        // The peer has given it up; h2 sends nothing more for it.
        if let Seen::Reset { stream, .. } = seen {
            self.awaited.remove(&stream);
        }
    }

    /// Takes one of the requests that h2 has answered.
    pub(super) fn take_too_large(&mut self) -> bool {
        let any = self.too_large > 0;
        self.too_large -= usize::from(any);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_nobody_waits_for_are_told() {
        let mut answers = Answers::default();
        answers.await_for(1);
        answers.await_for(5);
        answers.sent(Seen::Head { stream: 3 });
        answers.sent(Seen::Head { stream: 1 });
        answers.received(Seen::Reset { stream: 5, code: 8 });
        assert!(answers.take_too_large());
        assert!(!answers.take_too_large());
        assert!(answers.awaited.is_empty());
    }
}
