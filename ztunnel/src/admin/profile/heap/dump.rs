//! The text in which jemalloc tells its samples: `heap_v2`, see "HEAP PROFILE FORMAT" of jemalloc(3). Numbers are already those of
//! the whole heap, as far as samples can say.

/// All of it that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dump {
    /// Bytes between two samples, on average.
    pub(super) interval: u64,
    pub(super) held: Vec<Held>,
}

/// What one stack holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::admin::profile) struct Held {
    /// Addresses, the innermost first, each within the instruction that was calling.
    pub(in crate::admin::profile) stack: Vec<u64>,
    pub(in crate::admin::profile) objects: i64,
    pub(in crate::admin::profile) bytes: i64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DumpError {
    #[error("it does not begin with heap_v2")]
    Version,
    #[error("line {0} is malformed")]
    Line(usize),
    #[error("it ends in the middle of a stack")]
    Incomplete,
}

impl Dump {
    pub(super) fn parse(text: &str) -> Result<Self, DumpError> {
        let mut lines = text.lines().enumerate();
        let first = lines.next().and_then(|(_, line)| {
            let interval = line.strip_prefix("heap_v2/")?;
            interval.parse().ok()
        });
        let mut dump = Self {
            interval: first.ok_or(DumpError::Version)?,
            held: Vec::new(),
        };
        // Whatever is not of a stack is of threads.
        while let Some((number, line)) = lines.next() {
            if line == "MAPPED_LIBRARIES:" {
                break;
            }
            let Some(stack) = line.strip_prefix('@') else {
                continue;
            };
            let stack = addresses(stack).ok_or(DumpError::Line(number + 1))?;
            let (number, total) = lines.next().ok_or(DumpError::Incomplete)?;
            let (objects, bytes) = in_use(total).ok_or(DumpError::Line(number + 1))?;
            dump.held.push(Held {
                stack,
                objects,
                bytes,
            });
        }
        Ok(dump)
    }
}

fn addresses(text: &str) -> Option<Vec<u64>> {
    let words = text.split_ascii_whitespace();
    // What is told is where each call returns to, which may be another function already.
    let address = |word: &str| {
        let address = u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()?;
        address.checked_sub(1)
    };
    words.map(address).collect()
}

/// `  t*: OBJECTS: BYTES [...]`
fn in_use(line: &str) -> Option<(i64, i64)> {
    let mut words = line.trim_start().strip_prefix("t*:")?.split(':');
    let objects = words.next()?.trim().parse().ok()?;
    let bytes = words.next()?.split_ascii_whitespace().next()?.parse();
    Some((objects, bytes.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "heap_v2/524288
  t*: 3: 1536 [0: 0]
  t0: 3: 1536 [0: 0] main
@ 0x5f86da8 0x10
  t*: 2: 1024 [0: 0]
  t0: 2: 1024 [0: 0]
@ 0x1
  t*: 1: 512 [7: 4096]
  t0: 1: 512 [0: 0]

MAPPED_LIBRARIES:
@ this is of another file
";

    #[test]
    fn stacks_and_what_they_hold() {
        let held = |stack: &[u64], objects, bytes| Held {
            stack: stack.to_vec(),
            objects,
            bytes,
        };
        let dump = Dump::parse(TEXT).unwrap();
        assert_eq!(dump.interval, 524_288);
        let want = [held(&[0x5f8_6da7, 0xf], 2, 1024), held(&[0], 1, 512)];
        assert_eq!(dump.held, want);
    }

    #[test]
    fn what_is_of_another_form_is_refused() {
        for (text, want) in [
            ("", DumpError::Version),
            ("heap_v3/524288\n", DumpError::Version),
            ("heap_v2/x\n", DumpError::Version),
            ("heap_v2/1\n@ 0x1\n", DumpError::Incomplete),
            ("heap_v2/1\n@ 1\n t*: 1: 1 [0: 0]\n", DumpError::Line(2)),
            ("heap_v2/1\n@ 0x0\n t*: 1: 1 [0: 0]\n", DumpError::Line(2)),
            ("heap_v2/1\n@ 0x1\n t1: 1: 1 [0: 0]\n", DumpError::Line(3)),
            ("heap_v2/1\n@ 0x1\n t*: 1\n", DumpError::Line(3)),
        ] {
            assert_eq!(Dump::parse(text), Err(want), "{text:?}");
        }
        assert_eq!(Dump::parse("heap_v2/1\n").unwrap().held, []);
    }
}
