//! Tables in `tests` and the specification of HBONE name tests; each of them must exist, so that the texts cannot rot.

use std::path::Path;

use super::Finding;

/// Where the texts are, relative to the root.
pub(super) const TABLES: [&str; 3] = [
    "tests/PARITY.md",
    "tests/ACCEPTANCE.md",
    "crates/hbone/HBONE.md",
];

/// A test as the table names it: `end/of/path::function`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    line: usize,
    file: &'a str,
    function: &'a str,
}

/// Names in the text of a table that no source has; `sources` are paths with their text.
pub(super) fn check(table: &str, text: &str, sources: &[(&Path, &str)]) -> Vec<Finding> {
    named(text)
        .filter(|named| !sources.iter().any(|(path, text)| has(path, text, named)))
        .map(
            |Named {
                 line,
                 file,
                 function,
             }| Finding {
                path: table.into(),
                line,
                rule: "parity",
                what: format!("there is no function `{function}` in a file `{file}.rs`"),
            },
        )
        .collect()
}

/// Whatever is in back quotes and looks like a path to a function.
fn named(table: &str) -> impl Iterator<Item = Named<'_>> {
    table.lines().enumerate().flat_map(|(index, line)| {
        let quoted = line.split('`').skip(1).step_by(2);
        quoted.filter_map(move |text| {
            let (file, function) = text.split_once("::")?;
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let is_name = !file.is_empty() && !function.is_empty() && function.chars().all(is_word);
            is_name.then_some(Named {
                line: index + 1,
                file,
                function,
            })
        })
    })
}

fn has(path: &Path, text: &str, named: &Named<'_>) -> bool {
    path.with_extension("").ends_with(named.file)
        && text.match_indices("fn ").any(|(at, word)| {
            let rest = text.get(at + word.len()..).unwrap_or_default();
            let after = rest.strip_prefix(named.function);
            after.is_some_and(|after| after.starts_with(['(', '<']))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_has_are_found() {
        let sources = [
            (
                Path::new("tests/it/dns.rs"),
                "async fn names_are_answered() {}",
            ),
            (Path::new("crates/a/src/b.rs"), "fn generic<T>(t: T) {}"),
        ];
        let lines = |table: &str| {
            let found = check("a table", table, &sources);
            found.iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        let good = "| A | `it/dns::names_are_answered`, `src/b::generic` |\nBefore `::` and `x` is nothing.";
        assert_eq!(lines(good), [0_usize; 0]);
        for wrong in [
            "`it/dns::names_are`",
            "`t/dns::names_are_answered`",
            "`it/dns::generic`",
            "`src/b::T`",
        ] {
            assert_eq!(
                lines(&format!("# Title\n\n| B | {wrong} |")),
                [3],
                "{wrong}"
            );
        }
    }
}
