//! Searches a proxy's access log, and says what came nearest when nothing fits.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};

use crate::{eventually::eventually, process::Log};

/// Target of access-log lines.
const TARGET: &str = "access";
/// Lines that an error shows.
const SHOWN_LINES: usize = 5;

/// One line, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    fields: BTreeMap<String, String>,
    line: String,
}

impl Entry {
    /// A line of the plain format: time, level, target, message and fields, separated by tabs. `None` if it is of another
    /// target.
    fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('\t');
        let target = columns.nth(2)?;
        if target.split([':', '{']).next() != Some(TARGET) {
            return None;
        }
        let _message = columns.next()?;
        let fields = columns.flat_map(fields).collect();
        Some(Self {
            fields,
            line: line.to_owned(),
        })
    }

    /// A field, without quotes.
    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }

    fn matching(&self, wanted: &[(&str, &str)]) -> usize {
        wanted
            .iter()
            .filter(|(key, value)| self.field(key).is_some_and(|v| v == *value))
            .count()
    }
}

/// Waits for a line that has all the wanted fields.
///
/// # Errors
/// At the deadline, with the lines that have most of them.
pub async fn find(log: &Log, wanted: &[(&str, &str)], deadline: Duration) -> Result<Entry> {
    let what = format!(
        "an access-log line with {wanted:?} in {}",
        log.path().display()
    );
    let found = eventually(what, deadline, || {
        let entries = entries(log);
        async move {
            let mut entries = entries?;
            entries.sort_by_key(|entry| entry.matching(wanted));
            match entries.last() {
                Some(best) if best.matching(wanted) == wanted.len() => Ok(best.clone()),
                _ => bail!(
                    "the closest of {} lines:\n{}",
                    entries.len(),
                    closest(&entries)
                ),
            }
        }
    });
    Ok(found.await?.0)
}

/// All access-log lines.
pub fn entries(log: &Log) -> Result<Vec<Entry>> {
    Ok(log
        .lines()?
        .iter()
        .filter_map(|line| Entry::parse(line))
        .collect())
}

fn closest(sorted: &[Entry]) -> String {
    let lines: Vec<&str> = sorted
        .iter()
        .rev()
        .take(SHOWN_LINES)
        .map(|entry| entry.line.as_str())
        .collect();
    lines.join("\n")
}

/// `key=value` pairs separated by blanks, where a value may be quoted.
fn fields(column: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = column.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => match after.split_once(' ') {
                Some((value, after)) => (value.to_owned(), after),
                None => (after.to_owned(), ""),
            },
        };
        pairs.push((key.trim().to_owned(), value));
        rest = after.trim_start();
    }
    pairs
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_with_and_without_quotes() {
        let line = "2026-08-01T10:00:00.000000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:5 \
                    src.identity=\"spiffe://a/ns/b/sa/c\" direction=\"inbound\" duration=\"3ms\" error=\"a \\\"b\\\" c=d\"";
        let entry = Entry::parse(line).unwrap();
        assert_eq!(entry.field("src.addr"), Some("10.0.0.1:5"));
        assert_eq!(entry.field("src.identity"), Some("spiffe://a/ns/b/sa/c"));
        assert_eq!(entry.field("error"), Some("a \"b\" c=d"));
        assert_eq!(
            entry.matching(&[("direction", "inbound"), ("duration", "4ms")]),
            1
        );
        assert_eq!(Entry::parse("t\tinfo\tzone::access\tm\ta=b"), None);
        assert_eq!(Entry::parse("no tabs"), None);
    }
}
