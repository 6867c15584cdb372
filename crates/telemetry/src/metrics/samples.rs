//! Metrics of a source outside the registry, as text.

use std::{collections::BTreeMap, fmt::Write};

/// Collects families of samples; the first mention of a family says what it is.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<&'static str, Family>);

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: &'static str,
    lines: String,
}

impl Samples {
    /// One value of a counter, whose name ends in `_total`. Values of labels are names of the mesh or closed lists.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: u64,
    ) {
        let lines = self.lines(name, help, "counter");
        let mut list = String::new();
        for (key, text) in labels {
            let separator = if list.is_empty() { "" } else { "," };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            // A string takes everything, here and below.
            write!(list, "{separator}{key}=\"{text}\"").ok();
        }
        writeln!(lines, "{name}{{{list}}} {value}").ok();
    }

    /// Samples of a family of any kind, which `write` appends as lines of Prometheus text.
    pub fn rendered(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        write: impl FnOnce(&mut String),
    ) {
        write(self.lines(name, help, kind));
    }

    /// All of it as text.
    pub fn text(self) -> String {
        let mut text = String::new();
        self.append(&mut text);
        text
    }

    fn lines(&mut self, name: &'static str, help: &'static str, kind: &'static str) -> &mut String {
        let family = self.0.entry(name).or_insert_with(|| Family {
            help,
            kind,
            lines: String::new(),
        });
        &mut family.lines
    }

    pub(super) fn append(self, text: &mut String) {
        for (name, Family { help, kind, lines }) in self.0 {
            write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_once() {
        let mut samples = Samples::default();
        samples.counter("b_total", "B.", &[("x", "1")], 1);
        samples.counter("a_total", "A.", &[("x", "q\"\\")], 2);
        samples.counter("b_total", "B.", &[("x", "2"), ("y", "3")], 4);
        let mut text = String::new();
        samples.append(&mut text);
        assert_eq!(
            text,
            "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\"} 2\n\
             # HELP b_total B.\n# TYPE b_total counter\nb_total{x=\"1\"} 1\nb_total{x=\"2\",y=\"3\"} 4\n"
        );
    }
}
