//! Reads Prometheus text, as a scrape would see it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Parses the text format.
    ///
    /// # Errors
    /// On a line that is neither comment nor sample.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("not a sample: {line}")))
            .collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// The sum of the series of a metric that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|sample| sample.value).sum()
    }

    /// The values of one label over the series of a metric, each with its sum.
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.series(name, &[]) {
            let value = sample.labels.get(label).cloned().unwrap_or_default();
            *sums.entry(value).or_default() += sample.value;
        }
        sums
    }

    fn series(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) if line.as_bytes()[at] == b'{' => (&line[..at], &line[at + 1..]),
        Some(at) => {
            return Some(Sample {
                name: line[..at].to_owned(),
                labels: BTreeMap::new(),
                value: value(&line[at..])?,
            });
        }
        None => return None,
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some(Sample {
                name: name.to_owned(),
                labels,
                value: value(after)?,
            });
        }
        let (key, after) = rest.split_once("=\"")?;
        let (text, after) = quoted(after)?;
        labels.insert(key.to_owned(), text);
        rest = after;
    }
}

/// Text up to the closing quote, unescaped, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut unescaped = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((unescaped, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => unescaped.push('\n'),
                other => unescaped.push(other),
            },
            other => unescaped.push(other),
        }
    }
    None
}

/// The number; a time stamp after it is passed over.
fn value(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_series_that_have_the_labels() {
        let text = "# TYPE c counter\nc{a=\"x\",b=\"1\"} 2\nc{a=\"x\",b=\"q\\\"}\"} 3\nc{a=\"y\"} 5 17\nplain 1\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("c", &[("a", "x")]), 5.0);
        assert_eq!(metrics.sum("c", &[("b", "q\"}")]), 3.0);
        assert_eq!(metrics.sum("plain", &[]), 1.0);
        assert_eq!(
            metrics.by_label("c", "a"),
            [("x".to_owned(), 5.0), ("y".to_owned(), 5.0)].into()
        );
        assert!(Metrics::parse("c{a=\"x} 1").is_err());
    }
}
