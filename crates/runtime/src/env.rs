//! Reading settings from the environment: only binaries do, through a [`Reader`] over an [`EnvSource`].
//!
//! The reader never fails at once: it remembers every unreadable value and goes on with the default, so that one
//! start reports all of them. The caller must end with [`Reader::finish`] and stop when that is an error.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

/// Where variables come from: the process in production, a map in tests.
pub trait EnvSource {
    /// The value of one variable, if it is set.
    fn get(&self, name: &str) -> Option<String>;
    /// All variables whose name starts with `prefix`, ordered by name.
    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)>;
}

/// The environment of this process. Values that are not Unicode are read with replacement characters.
#[derive(Clone, Copy, Debug)]
pub struct OsEnv;

impl EnvSource for OsEnv {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        let all = std::env::vars_os().map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            (name, value.to_string_lossy().into_owned())
        });
        let mut found: Vec<_> = all.filter(|(name, _)| name.starts_with(prefix)).collect();
        found.sort();
        found
    }
}

/// A fixed environment.
#[derive(Clone, Debug, Default)]
pub struct MapEnv(pub BTreeMap<String, String>);

impl<const N: usize> From<[(&str, &str); N]> for MapEnv {
    fn from(pairs: [(&str, &str); N]) -> Self {
        let owned = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self(BTreeMap::from(owned))
    }
}

impl EnvSource for MapEnv {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        let found = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        found
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

/// One variable whose value cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid env var {name}={value} ({why})")]
pub struct InvalidVar {
    /// The variable.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

/// Every variable that could not be used; displayed as one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct EnvError(pub Vec<InvalidVar>);

impl Display for EnvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, invalid) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{invalid}")?;
        }
        Ok(())
    }
}

impl std::error::Error for EnvError {}

/// Typed access with defaults, collecting what is wrong.
pub struct Reader<'a> {
    source: &'a dyn EnvSource,
    /// For variables that the source does not have.
    fallback: BTreeMap<String, String>,
    invalid: Vec<InvalidVar>,
}

impl<'a> Reader<'a> {
    /// Reads from `source`.
    pub fn new(source: &'a dyn EnvSource) -> Self {
        Self {
            source,
            fallback: BTreeMap::new(),
            invalid: Vec::new(),
        }
    }

    /// Gives a variable a value from elsewhere (a configuration file); the environment wins over it.
    pub fn fall_back(&mut self, name: String, value: String) {
        self.fallback.insert(name, value);
    }

    /// An error if any value so far was invalid.
    pub fn finish(self) -> Result<(), EnvError> {
        if self.invalid.is_empty() {
            Ok(())
        } else {
            Err(EnvError(self.invalid))
        }
    }

    /// Notes that a value cannot be used, for checks that the caller makes itself.
    pub fn reject(&mut self, name: &str, value: impl Display, why: impl Display) {
        self.invalid.push(InvalidVar {
            name: name.to_owned(),
            value: value.to_string(),
            why: why.to_string(),
        });
    }

    /// The value as it is.
    pub fn string(&mut self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    /// The value as it is, if set.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        self.source
            .get(name)
            .or_else(|| self.fallback.get(name).cloned())
    }

    /// A value of any type that can be read from text.
    pub fn parse<T>(&mut self, name: &str, default: T) -> T
    where
        T: FromStr<Err: Display>,
    {
        self.parse_optional(name).unwrap_or(default)
    }

    /// As `parse`, `None` when not set (or invalid).
    pub fn parse_optional<T>(&mut self, name: &str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        self.parse_with(name, |text| text.parse::<T>().map_err(|e| e.to_string()))
    }

    /// `true` or `false`, nothing else.
    pub fn bool(&mut self, name: &str, default: bool) -> bool {
        let read = |text: &str| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        };
        self.parse_with(name, read).unwrap_or(default)
    }

    /// `5s`, `1m30s`, `10ms`; a bare number is seconds.
    pub fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.parse_with(name, parse_duration).unwrap_or(default)
    }

    /// All variables that start with `prefix`, by the rest of their names.
    pub fn with_prefix(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let fallback = self.fallback.clone().into_iter();
        fallback
            .chain(self.source.with_prefix(prefix))
            .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value)))
            .collect()
    }

    /// A value by a parser of the caller, `None` when not set (or invalid).
    pub fn parse_with<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.optional(name)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.reject(name, text, why);
                None
            }
        }
    }
}

/// A sum of numbers with units (`1m30s`), or a bare number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("expected a duration such as 5s, 1m30s or 10ms".to_owned());
    }
    let too_long = || "the duration is too long".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = prefix(rest, |c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err(format!("expected a number at `{rest}`"));
        }
        let number: u64 = digits.parse().map_err(|e| format!("`{digits}`: {e}"))?;
        rest = &rest[digits.len()..];
        let unit = prefix(rest, |c| c.is_ascii_alphabetic());
        rest = rest[unit.len()..].trim_start();
        let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
        let part = match unit {
            "ns" => Some(Duration::from_nanos(number)),
            "us" => Some(Duration::from_micros(number)),
            "ms" => Some(Duration::from_millis(number)),
            "s" => seconds(1),
            // A bare number stands alone; `1m30` is more likely a slip than ninety seconds.
            "" if digits.len() == text.len() => seconds(1),
            "m" => seconds(60),
            "h" => seconds(60 * 60),
            "d" => seconds(24 * 60 * 60),
            _ => {
                return Err(format!(
                    "unknown unit `{unit}`; use ns, us, ms, s, m, h or d"
                ));
            }
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(too_long)?;
    }
    Ok(total)
}

/// The longest start of `text` (ASCII classes only) that `belongs` accepts.
fn prefix(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ok = |text: &str, millis: u64| {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        };
        ok("5s", 5_000);
        ok("5", 5_000);
        ok("0", 0);
        ok("1m30s", 90_000);
        ok("1m 30s", 90_000);
        ok("10ms", 10);
        ok("2h", 7_200_000);
        ok("1d", 86_400_000);
        ok(" 7s ", 7_000);
        for bad in [
            "",
            " ",
            "s",
            "-5s",
            "5x",
            "1.5s",
            "1m30",
            "5s?",
            "99999999999999999999s",
            "18446744073709551615d",
            "µs",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn typed_values_and_defaults() {
        let env = MapEnv::from([
            ("NAME", "x"),
            ("PORT", "15021"),
            ("ON", "true"),
            ("WAIT", "10ms"),
            ("XDS_HEADER_A", "1"),
            ("XDS_HEADER_B", "2"),
        ]);
        let mut reader = Reader::new(&env);
        assert_eq!(reader.string("NAME", "y"), "x");
        assert_eq!(reader.string("NONE", "y"), "y");
        assert_eq!(reader.optional("NONE"), None);
        assert_eq!(reader.parse("PORT", 1u16), 15021);
        assert_eq!(reader.parse("NONE", 1u16), 1);
        assert!(reader.bool("ON", false));
        assert!(reader.bool("NONE", true));
        assert_eq!(reader.duration("WAIT", Duration::ZERO).as_millis(), 10);
        let headers = reader.with_prefix("XDS_HEADER_");
        assert_eq!(
            headers.into_iter().collect::<Vec<_>>(),
            [
                ("A".to_owned(), "1".to_owned()),
                ("B".to_owned(), "2".to_owned())
            ]
        );
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn the_environment_wins_over_what_it_falls_back_to() {
        let env = MapEnv::from([("META_A", "env")]);
        let mut reader = Reader::new(&env);
        reader.fall_back("META_A".to_owned(), "file".to_owned());
        reader.fall_back("META_B".to_owned(), "file".to_owned());
        reader.fall_back("OTHER".to_owned(), "1".to_owned());
        assert_eq!(reader.string("META_A", ""), "env");
        assert_eq!(reader.parse("OTHER", 0), 1);
        let all = reader.with_prefix("META_");
        let all: Vec<_> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(all, [("A", "env"), ("B", "file")]);
    }

    #[test]
    fn every_invalid_value_is_reported() {
        let env = MapEnv::from([("ON", "1"), ("PORT", "70000"), ("WAIT", "soon")]);
        let mut reader = Reader::new(&env);
        assert!(!reader.bool("ON", false));
        assert_eq!(reader.parse("PORT", 80u16), 80);
        reader.duration("WAIT", Duration::ZERO);
        reader.reject("MODE", "other", "must be shared");
        assert_eq!(
            reader.finish().unwrap_err().to_string(),
            "invalid env var ON=1 (must be true or false)\n\
             invalid env var PORT=70000 (number too large to fit in target type)\n\
             invalid env var WAIT=soon (expected a number at `soon`)\n\
             invalid env var MODE=other (must be shared)"
        );
    }
}
