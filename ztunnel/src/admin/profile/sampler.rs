//! Samples of our threads by the kernel's `perf_event_open`: who was on a CPU, with its registers and the top of its stack.

use std::{borrow::Cow, collections::HashMap, fs, io};

use perf_event::{Builder, SampleFlag, events::Software};

/// Bytes of the stack that are copied: the deepest of ours, through tokio, hyper and rustls, fit in an optimised build. What is
/// deeper is cut at its outer end.
const STACK: u32 = 24 << 10;
/// Of each thread. A few dozen samples.
const BUFFER: usize = 1 << 20;
/// `PERF_RECORD_LOST` and `PERF_RECORD_SAMPLE`.
const LOST: u32 = 2;
const SAMPLE: u32 = 9;

/// Registers in the order of the kernel's numbers for them, which is that of the sample.
#[cfg(target_arch = "x86_64")]
mod registers {
    /// `PERF_REG_X86_BP`, `_SP`, `_IP`.
    pub(super) const MASK: u64 = 1 << 6 | 1 << 7 | 1 << 8;
    pub(super) const COUNT: usize = 3;

    pub(super) fn named([frame, stack, instruction]: [u64; COUNT]) -> super::Registers {
        super::Registers {
            instruction,
            stack,
            frame,
            link: 0,
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod registers {
    /// `PERF_REG_ARM64_X29`, `_LR`, `_SP`, `_PC`.
    pub(super) const MASK: u64 = 1 << 29 | 1 << 30 | 1 << 31 | 1 << 32;
    pub(super) const COUNT: usize = 4;

    pub(super) fn named([frame, link, stack, instruction]: [u64; COUNT]) -> super::Registers {
        super::Registers {
            instruction,
            stack,
            frame,
            link,
        }
    }
}

/// What unwinding starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) instruction: u64,
    pub(super) stack: u64,
    pub(super) frame: u64,
    /// On machines that have it.
    pub(super) link: u64,
}

/// One moment of one thread.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) thread: u32,
    pub(super) registers: Registers,
    /// From the stack pointer upwards.
    pub(super) stack: &'a [u8],
}

/// Of all threads that there were at its start.
pub(super) struct Sampler {
    threads: HashMap<u32, (String, perf_event::Sampler)>,
}

impl Sampler {
    /// # Errors
    /// When the kernel does not let us.
    pub(super) fn start(frequency: u64) -> io::Result<Self> {
        let mut threads = HashMap::new();
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?;
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let Some(id) = task.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            match sample(id, frequency) {
                Ok(sampler) => {
                    threads.insert(id.unsigned_abs(), (name.trim_end().to_owned(), sampler));
                }
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { threads })
    }

    pub(super) fn threads(&self) -> HashMap<u32, String> {
        let names = self.threads.iter();
        names.map(|(id, (name, _))| (*id, name.clone())).collect()
    }

    /// Takes out what the kernel has; says how many samples there was no room for.
    pub(super) fn collect(&mut self, mut tell: impl FnMut(Sample<'_>)) -> u64 {
        let mut lost = 0;
        for (thread, (_, sampler)) in &mut self.threads {
            // No more than a buffer, however quick the thread is.
            let mut left = BUFFER;
            while left > 0
                && let Some(record) = sampler.next_record()
            {
                left = left.saturating_sub(record.len().max(1));
                let bytes: Cow<'_, [u8]> = record.to_contiguous();
                match record.ty() {
                    SAMPLE => {
                        if let Some(sample) = parse(*thread, &bytes) {
                            tell(sample);
                        }
                    }
                    LOST => lost += number(bytes.get(8..)).unwrap_or(0),
                    _ => {}
                }
            }
        }
        lost
    }
}

fn sample(thread: i32, frequency: u64) -> io::Result<perf_event::Sampler> {
    let open = |kernel: bool| {
        let mut builder = Builder::new(Software::CPU_CLOCK);
        builder
            .observe_pid(thread)
            .any_cpu()
            .sample_frequency(frequency)
            .sample(SampleFlag::REGS_USER | SampleFlag::STACK_USER)
            .sample_regs_user(registers::MASK)
            .sample_stack_user(STACK)
            .exclude_kernel(!kernel)
            .exclude_hv(true)
            .enabled(true);
        builder.build()
    };
    // What the kernel does for us is part of what we cost; without the right to see that, our own part.
    let counter = open(true).or_else(|_refused| open(false))?;
    counter.sampled(BUFFER)
}

fn number(bytes: Option<&[u8]>) -> Option<u64> {
    let (first, _) = bytes?.split_first_chunk()?;
    Some(u64::from_ne_bytes(*first))
}

/// `abi, registers, size of the stack, the stack, bytes of it that were copied`; `None` for a thread that has no stack of its
/// own, as it is the kernel's or is about to end.
fn parse(thread: u32, bytes: &[u8]) -> Option<Sample<'_>> {
    let (abi, mut rest) = bytes.split_first_chunk()?;
    if u64::from_ne_bytes(*abi) == 0 {
        return None;
    }
    let mut values = [0; registers::COUNT];
    for value in &mut values {
        let (first, after) = rest.split_first_chunk()?;
        *value = u64::from_ne_bytes(*first);
        rest = after;
    }
    let size = usize::try_from(number(Some(rest))?).ok()?;
    let stack = rest.get(8..)?.get(..size)?;
    let copied = match number(rest.get(8 + size..)) {
        Some(copied) => usize::try_from(copied).ok()?,
        None => 0,
    };
    Some(Sample {
        thread,
        registers: registers::named(values),
        stack: stack.get(..copied.min(size))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_parsed_or_dropped() {
        let registers = [0_u64; registers::COUNT].map(|_| 7);
        let whole = |abi: u64, copied: u64| {
            let numbers = [&[abi][..], &registers, &[16]].concat();
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
            bytes.extend([1; 16]);
            bytes.extend(copied.to_ne_bytes());
            bytes
        };
        let stack = |bytes: &[u8]| parse(5, bytes).map(|sample| sample.stack.len());
        assert_eq!(stack(&whole(2, 16)), Some(16));
        assert_eq!(stack(&whole(2, 8)), Some(8));
        // More than there is.
        assert_eq!(stack(&whole(2, 1 << 40)), Some(16));
        assert_eq!(stack(&whole(0, 16)), None);
        let bytes = whole(2, 16);
        for cut in 0..bytes.len() - 8 {
            assert_eq!(stack(&bytes[..cut]), None, "{cut} bytes");
        }
    }
}
