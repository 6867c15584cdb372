//! What a pod's resolvers have answered, as long as they said that it holds.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    query::Query,
    wire::{self, HEADER, Lifetime},
};

/// Responses of one pod; with the size below at most 2 MiB.
const MAX_ENTRIES: usize = 1024;
/// Larger responses are rare and not remembered.
const MAX_SIZE: usize = 2048;

/// A question to one resolver. Pods do not share: a resolver may answer by who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    server: SocketAddr,
    /// Name in lower case, type and class.
    question: Vec<u8>,
    /// What else changes the answer.
    flags: u8,
}

#[derive(Debug)]
struct Entry {
    response: Vec<u8>,
    lifetime: Lifetime,
    since: Instant,
}

/// One pod's.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Cache {
    /// The response to a query, with the query's identifier and spelling, and what is left of the records' lives.
    pub(super) fn get(&self, server: SocketAddr, query: &Query) -> Option<Vec<u8>> {
        let key = key(server, query)?;
        let entries = self.entries.lock();
        let entry = entries.get(&key)?;
        let age = entry.since.elapsed().as_secs();
        let age = u32::try_from(age)
            .ok()
            .filter(|age| *age < entry.lifetime.ttl)?;
        let mut response = entry.response.clone();
        entry.lifetime.age(&mut response, age);
        wire::set_id(&mut response, query.id());
        let question = query.question();
        response
            .get_mut(HEADER..HEADER + question.len())?
            .copy_from_slice(question);
        Some(response)
    }

    /// Remembers a response if it may be.
    pub(super) fn put(&self, server: SocketAddr, query: &Query, response: &[u8]) {
        let Some(lifetime) = Lifetime::of(response).filter(|_| response.len() <= MAX_SIZE) else {
            return;
        };
        let Some(key) = key(server, query) else {
            return;
        };
        let mut entries = self.entries.lock();
        if entries.len() >= MAX_ENTRIES && !entries.contains_key(&key) {
            let holds = |entry: &Entry| {
                entry.since.elapsed() < Duration::from_secs(entry.lifetime.ttl.into())
            };
            entries.retain(|_, entry| holds(entry));
            // All of them hold: the one that happens to come first in a random order goes.
            if entries.len() >= MAX_ENTRIES
                && let Some(any) = entries.keys().next().cloned()
            {
                entries.remove(&any);
            }
        }
        let entry = Entry {
            response: response.to_vec(),
            lifetime,
            since: Instant::now(),
        };
        entries.insert(key, entry);
    }
}

/// `None` for queries whose options may change the answer.
fn key(server: SocketAddr, query: &Query) -> Option<Key> {
    Some(Key {
        server,
        question: query.question().to_ascii_lowercase(),
        flags: query.cache_flags()?,
    })
}
