//! The form of profiles: `perftools.profiles.Profile`, of which pprof and its likes read the part that is here. Functions are
//! named, so that nobody needs the program to read it.

use std::{collections::HashMap, io::Write, time::Duration};

use flate2::{Compression, write::GzEncoder};
use prost::Message;

use super::{Counts, heap::Held};

/// A profile of time as bytes. `names` are of functions by address; `period` is the time between two samples in nanoseconds.
pub(super) fn encode(
    counts: &Counts,
    duration: Duration,
    period: u64,
    names: &HashMap<u64, String>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(names);
    encoder.write_cpu(counts, duration, period);
    encoder.finish()
}

/// A profile of memory in use as bytes. `interval` is the number of bytes between two samples.
pub(super) fn encode_heap(held: &[Held], interval: u64, names: &HashMap<u64, String>) -> Vec<u8> {
    let mut encoder = Encoder::new(names);
    encoder.write_heap(held, interval);
    encoder.finish()
}

/// Texts, functions and locations, each once.
struct Encoder<'a> {
    names: &'a HashMap<u64, String>,
    profile: Profile,
    texts: HashMap<String, i64>,
    functions: HashMap<i64, u64>,
    locations: HashMap<u64, u64>,
}

impl<'a> Encoder<'a> {
    fn new(names: &'a HashMap<u64, String>) -> Self {
        let mut encoder = Self {
            names,
            profile: Profile::default(),
            texts: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        // The first text is empty by definition.
        encoder.text("");
        encoder
    }

    /// In the form of files: compressed.
    fn finish(self) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail.
        gzip.write_all(&self.profile.encode_to_vec())
            .and_then(|()| gzip.finish())
            .unwrap_or_default()
    }

    fn write_heap(&mut self, held: &[Held], interval: u64) {
        let objects = self.value_type("inuse_objects", "count");
        let bytes = self.value_type("inuse_space", "bytes");
        self.profile.sample_type = vec![objects, bytes];
        for one in held {
            let location_id = self.locations(&one.stack);
            self.profile.sample.push(Sample {
                location_id,
                value: vec![one.objects, one.bytes],
                label: Vec::new(),
            });
        }
        self.profile.period_type = Some(self.value_type("space", "bytes"));
        self.profile.period = i64::try_from(interval).unwrap_or(i64::MAX);
    }

    fn write_cpu(&mut self, counts: &Counts, duration: Duration, period: u64) {
        let period = i64::try_from(period).unwrap_or(i64::MAX);
        let samples = self.value_type("samples", "count");
        let cpu = self.value_type("cpu", "nanoseconds");
        self.profile.sample_type = vec![samples, cpu];
        let thread = self.text("thread");
        for ((id, stack), count) in &counts.stacks {
            let location_id = self.locations(stack);
            let name = counts.threads.get(id).map_or("", String::as_str);
            let label = Label {
                key: thread,
                str: self.text(name),
            };
            self.profile.sample.push(Sample {
                location_id,
                value: vec![*count, count.saturating_mul(period)],
                label: vec![label],
            });
        }
        if counts.lost > 0 {
            let comment = format!("{} samples were lost", counts.lost);
            self.profile.comment = vec![self.text(&comment)];
        }
        self.profile.duration_nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        self.profile.period_type = Some(cpu);
        self.profile.period = period;
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            kind: self.text(kind),
            unit: self.text(unit),
        }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.texts.get(text) {
            return *index;
        }
        let index = i64::try_from(self.profile.string_table.len()).unwrap_or(0);
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), index);
        index
    }

    fn locations(&mut self, stack: &[u64]) -> Vec<u64> {
        stack
            .iter()
            .map(|address| self.location(*address))
            .collect()
    }

    fn location(&mut self, address: u64) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let id = self.profile.location.len() as u64 + 1;
        let name = self.names.get(&address).cloned();
        let name = name.unwrap_or_else(|| format!("{address:#x}"));
        let line = vec![Line {
            function_id: self.function(&name),
        }];
        self.profile.location.push(Location { id, address, line });
        self.locations.insert(address, id);
        id
    }

    fn function(&mut self, name: &str) -> u64 {
        let name = self.text(name);
        if let Some(id) = self.functions.get(&name) {
            return *id;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(Function { id, name });
        self.functions.insert(name, id);
        id
    }
}

/// Numbers of texts are places in `string_table`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub(super) comment: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    pub(super) kind: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

/// One stack, the innermost location first.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Label {
    #[prost(int64, tag = "1")]
    pub(super) key: i64,
    #[prost(int64, tag = "2")]
    pub(super) str: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) address: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
}
