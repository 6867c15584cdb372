//! From registers and a piece of stack to the functions that had called each other: by the unwind tables and symbols of the
//! files that are mapped into the process.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    ops::Range,
    sync::Arc,
};

use framehop::{ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, Unwinder as _};
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, SymbolKind,
    read::{ReadCache, ReadRef},
};

use super::sampler::Sample;

#[cfg(target_arch = "aarch64")]
use framehop::aarch64::{
    CacheAarch64 as Cache, UnwindRegsAarch64, UnwinderAarch64 as ArchUnwinder,
};
#[cfg(target_arch = "x86_64")]
use framehop::x86_64::{CacheX86_64 as Cache, UnwindRegsX86_64, UnwinderX86_64 as ArchUnwinder};

/// Deeper stacks are recursion, or bytes that are no stack.
const MOST_FRAMES: usize = 256;

type Bytes = Arc<[u8]>;

#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("/proc/self/maps: {0}")]
    Maps(#[source] io::Error),
}

/// The files that the process runs.
pub(super) struct Program {
    files: Vec<Mapped>,
}

/// A file, where it is in memory.
struct Mapped {
    path: String,
    addresses: Range<u64>,
    /// Address in memory minus address in the file.
    bias: u64,
    sections: Sections,
}

/// What unwinding needs of a file.
#[derive(Default)]
struct Sections {
    text: Option<(Range<u64>, Bytes)>,
    eh_frame: Option<(Range<u64>, Bytes)>,
    eh_frame_hdr: Option<(Range<u64>, Bytes)>,
    got: Option<Range<u64>>,
}

impl Program {
    /// What is mapped now. Files that are no programs are left out; so are those that are gone, by an upgrade.
    pub(super) fn running() -> Result<Self, ProgramError> {
        let maps = fs::read_to_string("/proc/self/maps").map_err(ProgramError::Maps)?;
        let mut files: BTreeMap<&str, Vec<Mapping>> = BTreeMap::new();
        for (path, mapping) in maps.lines().filter_map(Mapping::parse) {
            files.entry(path).or_default().push(mapping);
        }
        let mapped = |(path, mappings): (&str, Vec<Mapping>)| {
            let is_code = mappings.iter().any(|mapping| mapping.is_code);
            is_code.then(|| Mapped::open(path, &mappings)).flatten()
        };
        Ok(Self {
            files: files.into_iter().filter_map(mapped).collect(),
        })
    }

    pub(super) fn unwinder(&self) -> Unwinder {
        let mut unwinder = ArchUnwinder::new();
        for file in &self.files {
            unwinder.add_module(file.module());
        }
        Unwinder {
            unwinder,
            cache: Cache::new(),
        }
    }

    /// The names of the functions at some addresses, as their authors wrote them.
    pub(super) fn names(&self, addresses: impl Iterator<Item = u64>) -> HashMap<u64, String> {
        let mut sorted: Vec<u64> = addresses.collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut names = HashMap::with_capacity(sorted.len());
        for file in &self.files {
            file.name(&sorted, &mut names);
        }
        names
    }
}

/// One line of `/proc/self/maps`.
struct Mapping {
    addresses: Range<u64>,
    offset: u64,
    is_code: bool,
}

impl Mapping {
    fn parse(line: &str) -> Option<(&str, Self)> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let access = words.next()?;
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let path = words.nth(2)?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let mapping = Self {
            addresses: number(start)?..number(end)?,
            offset,
            is_code: access.contains('x'),
        };
        path.starts_with('/').then_some((path, mapping))
    }
}

impl Mapped {
    fn open(path: &str, mappings: &[Mapping]) -> Option<Self> {
        // The program itself by its link: the path may be that of another one by now, or of another namespace.
        let own = fs::read_link("/proc/self/exe").is_ok_and(|own| own.as_os_str() == path);
        let path = if own { "/proc/self/exe" } else { path };
        let cache = ReadCache::new(File::open(path).ok()?);
        let file = object::File::parse(&cache).ok()?;
        let bias = mappings.iter().find_map(|mapping| {
            let segment = file.segments().find(|segment| {
                let (start, size) = segment.file_range();
                (start..start + size).contains(&mapping.offset)
            })?;
            let in_file = segment.address() + (mapping.offset - segment.file_range().0);
            Some(mapping.addresses.start.wrapping_sub(in_file))
        })?;
        let start = mappings
            .iter()
            .map(|mapping| mapping.addresses.start)
            .min()?;
        let end = mappings.iter().map(|mapping| mapping.addresses.end).max()?;
        Some(Self {
            path: path.to_owned(),
            addresses: start..end,
            bias,
            sections: Sections::of(&file),
        })
    }

    fn module(&self) -> Module<Bytes> {
        let Sections {
            text,
            eh_frame,
            eh_frame_hdr,
            got,
        } = &self.sections;
        let range = |section: &Option<(Range<u64>, Bytes)>| {
            section.as_ref().map(|(range, _)| range.clone())
        };
        let bytes = |section: &Option<(Range<u64>, Bytes)>| {
            section.as_ref().map(|(_, bytes)| Arc::clone(bytes))
        };
        let info = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: range(text),
            text: bytes(text),
            eh_frame_svma: range(eh_frame),
            eh_frame: bytes(eh_frame),
            eh_frame_hdr_svma: range(eh_frame_hdr),
            eh_frame_hdr: bytes(eh_frame_hdr),
            got_svma: got.clone(),
            ..ExplicitModuleSectionInfo::default()
        };
        Module::new(self.path.clone(), self.addresses.clone(), self.bias, info)
    }

    /// Names those of the addresses that are in this file. A program has far more functions than a profile shows.
    fn name(&self, sorted: &[u64], names: &mut HashMap<u64, String>) {
        let Ok(file) = File::open(&self.path) else {
            return;
        };
        let cache = ReadCache::new(file);
        let Ok(file) = object::File::parse(&cache) else {
            return;
        };
        // A program that was stripped has those that others link to.
        for symbol in file.symbols().chain(file.dynamic_symbols()) {
            if symbol.kind() != SymbolKind::Text || !symbol.is_definition() {
                continue;
            }
            let start = symbol.address().wrapping_add(self.bias);
            let end = start.saturating_add(symbol.size());
            let first = sorted.partition_point(|address| *address < start);
            let within = sorted.iter().skip(first);
            for address in within.take_while(|address| **address < end) {
                if let Ok(name) = symbol.name() {
                    let name = || format!("{:#}", rustc_demangle::demangle(name));
                    names.entry(*address).or_insert_with(name);
                }
            }
        }
    }
}

impl Sections {
    fn of<'data, R: ReadRef<'data>>(file: &object::File<'data, R>) -> Self {
        let range = |name: &str| {
            let section = file.section_by_name(name)?;
            Some(section.address()..section.address() + section.size())
        };
        let whole = |name: &str| {
            let data = file.section_by_name(name)?.data().ok()?;
            Some((range(name)?, Bytes::from(data)))
        };
        Self {
            text: whole(".text"),
            eh_frame: whole(".eh_frame"),
            eh_frame_hdr: whole(".eh_frame_hdr"),
            got: range(".got"),
        }
    }
}

/// Walks stacks.
pub(super) struct Unwinder {
    unwinder: ArchUnwinder<Bytes, MayAllocateDuringUnwind>,
    cache: Cache<MayAllocateDuringUnwind>,
}

impl Unwinder {
    /// The addresses of a stack, the innermost first; each within the instruction that was running or calling.
    pub(super) fn walk(&mut self, sample: &Sample<'_>) -> Vec<u64> {
        let registers = sample.registers;
        let mut read = |address: u64| {
            let at = address.checked_sub(registers.stack).ok_or(())?;
            let at = usize::try_from(at).map_err(|_too_far| ())?;
            let word = sample.stack.get(at..).and_then(<[u8]>::first_chunk);
            word.map(|word| u64::from_ne_bytes(*word)).ok_or(())
        };
        #[cfg(target_arch = "x86_64")]
        let start = UnwindRegsX86_64::new(registers.instruction, registers.stack, registers.frame);
        #[cfg(target_arch = "aarch64")]
        let start = UnwindRegsAarch64::new(registers.link, registers.stack, registers.frame);
        let mut frames =
            self.unwinder
                .iter_frames(registers.instruction, start, &mut self.cache, &mut read);
        let mut stack = Vec::with_capacity(32);
        // An error is the end of what was copied.
        while stack.len() < MOST_FRAMES
            && let Ok(Some(frame)) = frames.next()
        {
            stack.push(frame.address_for_lookup());
        }
        stack
    }
}
