//! The demo's lines on the terminal.

use std::{
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

use anyhow::Result;

/// Titles are padded to this, so that results stand in a column.
const TITLE_WIDTH: usize = 58;

/// Standard output, with colours where it is a terminal.
pub(crate) struct Console {
    colours: bool,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self {
            colours: stdout().is_terminal(),
        }
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        // Whoever has closed the output still wants the mesh taken down.
        let _closed = writeln!(stdout(), "{}", text.as_ref());
    }

    /// What is being done now.
    pub(crate) fn step(&self, text: impl AsRef<str>) {
        self.line(format!("- {}", text.as_ref()));
    }

    /// A check with what it saw.
    pub(crate) fn check(
        &self,
        number: usize,
        title: &str,
        outcome: &Result<String>,
        took: Duration,
    ) {
        let (word, colour, seen) = match outcome {
            Ok(seen) => ("ok    ", "32", seen.clone()),
            Err(e) => ("FAILED", "31", format!("{e:#}")),
        };
        let word = if self.colours {
            format!("\x1b[{colour}m{word}\x1b[0m")
        } else {
            word.to_owned()
        };
        let seen = seen.replace('\n', "\n     ");
        self.line(format!(
            "\n{number:>2}. {title:<TITLE_WIDTH$} {word} {:>5.1} s\n     {seen}",
            took.as_secs_f64()
        ));
    }
}
