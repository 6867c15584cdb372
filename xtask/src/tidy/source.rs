//! Rules on the text of one file: lengths, dropped channel ends, forbidden words.

use std::path::Path;

use super::{
    Finding,
    mask::{is_word, mask},
};

/// Lines of a file without its tests.
const MAX_FILE: usize = 500;

/// Lines of the file that only wires the rest together.
const MAX_MAIN: usize = 100;

/// Lines of a function.
const MAX_FUNCTION: usize = 60;

/// Lines of a function that is one flat table and says so.
const MAX_TABLE: usize = 100;

/// Marks a function as a table, in a comment above it.
const TABLE_MARK: &str = "tidy: table";

/// The only places that may hold `unsafe`.
const UNSAFE_ALLOWED: [&str; 5] = [
    "crates/net/src/sockopt",
    "crates/net/src/netns",
    "crates/capture/src/ebpf",
    "ebpf/abi/",
    "ebpf/programs/",
];

/// Code that must not be anywhere, tests included.
const FORBIDDEN: [(&str, &str); 4] = [
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("#[ignore", "a test runs or does not exist"),
    ("#[should_panic", "assert on the error instead"),
];

/// Lines, counted from 0, first and last included.
type Lines = std::ops::RangeInclusive<usize>;

/// All findings of one file.
pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let masked = mask(text);
    let scan = Scan {
        path,
        text,
        lines: masked.code.lines().collect(),
        code: &masked.code,
        comments: masked.comments.lines().collect(),
    };
    let mut findings = scan.forbidden();
    findings.extend(scan.dropped_channel_ends());
    findings.extend(scan.unsafe_code());
    findings.extend(scan.unnumbered_todos());
    if !is_test_file(path) {
        let tests = scan.test_regions();
        findings.extend(scan.module_shape());
        findings.extend(scan.file_length(&tests));
        findings.extend(scan.function_lengths(&tests));
        findings.extend(scan.globs(&tests));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// Files that hold only tests. The harness (`tests/src`) is code like any other.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let in_test_dir = path.ancestors().skip(1).any(|dir| {
        let name = dir.file_name().unwrap_or_default();
        (name == "tests" && dir != Path::new("tests")) || dir == Path::new("tests/it")
    });
    name == "tests.rs" || name.ends_with("_tests.rs") || in_test_dir
}

struct Scan<'a> {
    path: &'a Path,
    text: &'a str,
    code: &'a str,
    lines: Vec<&'a str>,
    comments: Vec<&'a str>,
}

impl Scan<'_> {
    fn finding(&self, line: usize, rule: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            path: self.path.to_path_buf(),
            line: line + 1,
            rule,
            what: what.into(),
        }
    }

    fn forbidden(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            for (word, why) in FORBIDDEN {
                if find_words(line, word).next().is_some() {
                    findings.push(self.finding(number, "forbidden", format!("`{word}`: {why}")));
                }
            }
        }
        findings
    }

    /// `let (_, rx) = channel()` drops the sender at once, and no lint sees it.
    fn dropped_channel_ends(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for start in find_words(self.code, "let") {
            let rest = self.code[start + "let".len()..].trim_start();
            let Some((pattern, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')'))
            else {
                continue;
            };
            let value = after.split(';').next().unwrap_or_default();
            let makes_channel = find_words(value, "channel")
                .chain(find_words(value, "unbounded_channel"))
                .next()
                .is_some();
            if makes_channel && pattern.split(',').any(|end| end.trim() == "_") {
                let line = self.line_of(start);
                let what = "`_` drops this end of the channel at once; name it";
                findings.push(self.finding(line, "channel-end", what));
            }
        }
        findings
    }

    fn unsafe_code(&self) -> Vec<Finding> {
        let path = self.path.to_string_lossy();
        if UNSAFE_ALLOWED
            .iter()
            .any(|allowed| path.starts_with(allowed))
        {
            return Vec::new();
        }
        find_words(self.code, "unsafe")
            .map(|at| self.finding(self.line_of(at), "unsafe", "not allowed in this module"))
            .collect()
    }

    fn unnumbered_todos(&self) -> Vec<Finding> {
        let unnumbered = |line: &str| {
            find_words(line, "TODO").any(|at| !line[at + "TODO".len()..].starts_with("(#"))
                || find_words(line, "FIXME").next().is_some()
        };
        let lines = self.comments.iter().enumerate();
        lines
            .filter(|(_, line)| unnumbered(line))
            .map(|(number, _)| {
                self.finding(number, "todo", "write `TODO(#number): ...` or nothing")
            })
            .collect()
    }

    fn module_shape(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.path.file_name().is_some_and(|name| name == "mod.rs") {
            findings.push(self.finding(0, "module", "use foo.rs and foo/bar.rs, not mod.rs"));
        }
        let first = self.text.lines().find(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with("#![") && !line.starts_with("// ")
        });
        if !first.is_some_and(|line| line.starts_with("//!")) {
            findings.push(self.finding(0, "module", "begin with a `//!` that says what it is for"));
        }
        findings
    }

    fn file_length(&self, tests: &[Lines]) -> Vec<Finding> {
        let is_main = self.path.file_name().is_some_and(|name| name == "main.rs");
        let allowed = if is_main { MAX_MAIN } else { MAX_FILE };
        let length = (0..self.lines.len())
            .filter(|line| !within(*line, tests))
            .count();
        if length <= allowed {
            return Vec::new();
        }
        let what = format!("{length} lines without tests, {allowed} allowed");
        vec![self.finding(0, "file-length", what)]
    }

    fn function_lengths(&self, tests: &[Lines]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for at in find_words(self.code, "fn") {
            let Some((name, body)) = self.function(at) else {
                continue;
            };
            let first = self.line_of(at);
            let length = self.line_of(body) - first + 1;
            if within(first, tests) || length <= MAX_FUNCTION {
                continue;
            }
            let allowed = if self.is_table(first) {
                MAX_TABLE
            } else {
                MAX_FUNCTION
            };
            if length > allowed {
                let what = format!("`{name}` has {length} lines, {allowed} allowed");
                findings.push(self.finding(first, "function-length", what));
            }
        }
        findings
    }

    /// Name and end of the body of the function whose `fn` is at `at`; `None` for a type or a declaration.
    fn function(&self, at: usize) -> Option<(&str, usize)> {
        let rest = &self.code[at + "fn".len()..];
        let name = rest.trim_start();
        let name = &name[..name.find(|c| !is_word(c))?];
        if name.is_empty() {
            return None;
        }
        let mut depth = 0_usize;
        for (offset, c) in rest.char_indices() {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth = depth.saturating_sub(1),
                ';' if depth == 0 => return None,
                '{' if depth == 0 => {
                    let open = at + "fn".len() + offset;
                    return Some((name, self.closing_brace(open)));
                }
                _ => {}
            }
        }
        None
    }

    /// Whether the comments and attributes right above the line mark a table.
    fn is_table(&self, line: usize) -> bool {
        for above in (0..line).rev() {
            if self.comments[above].contains(TABLE_MARK) {
                return true;
            }
            let code = self.lines[above].trim();
            if !(code.is_empty() || code.starts_with("#[")) || self.blank(above) {
                return false;
            }
        }
        false
    }

    fn blank(&self, line: usize) -> bool {
        self.lines[line].trim().is_empty() && self.comments[line].trim().is_empty()
    }

    fn globs(&self, tests: &[Lines]) -> Vec<Finding> {
        let lines = self.lines.iter().enumerate();
        lines
            .filter(|(number, line)| {
                let line = line.trim_start();
                let is_use = line.starts_with("use ") || line.starts_with("pub use ");
                is_use && line.contains("::*") && !within(*number, tests)
            })
            .map(|(number, _)| self.finding(number, "glob", "name what is imported"))
            .collect()
    }

    /// Items under `#[cfg(test)]`.
    fn test_regions(&self) -> Vec<Lines> {
        let mut regions = Vec::new();
        for (at, _) in self.code.match_indices("#[cfg(test)]") {
            let end = self.code[at..]
                .find(['{', ';'])
                .map_or(self.code.len(), |offset| at + offset);
            let end = match self.code.as_bytes().get(end) {
                Some(b'{') => self.closing_brace(end),
                _ => end,
            };
            regions.push(self.line_of(at)..=self.line_of(end));
        }
        regions
    }

    /// Position of the brace that closes the one at `open`, or the end of the file.
    fn closing_brace(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for (offset, c) in self.code[open..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return open + offset,
                '}' => depth -= 1,
                _ => {}
            }
        }
        self.code.len()
    }

    fn line_of(&self, position: usize) -> usize {
        let before = &self.code.as_bytes()[..position.min(self.code.len())];
        before.iter().filter(|byte| **byte == b'\n').count()
    }
}

fn within(line: usize, regions: &[Lines]) -> bool {
    regions.iter().any(|region| region.contains(&line))
}

/// Positions of `word` where it is not part of a longer word.
fn find_words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = text[..*at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            let open_start = !word.starts_with(is_word) || !before.is_some_and(is_word);
            let open_end = !word.ends_with(is_word) || !after.is_some_and(is_word);
            open_start && open_end
        })
}

#[cfg(test)]
mod tests;
