//! Which targets log at which level, in the text form that operators and `istioctl` write.

use std::fmt;

use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::TelemetryError;

/// What logs when nothing is said.
const DEFAULT: LevelFilter = LevelFilter::INFO;

/// A default level and levels of targets.
#[derive(Clone, Debug)]
pub(super) struct Levels(Targets);

impl Levels {
    /// Levels of a start: info unless the text says otherwise.
    pub(super) fn initial(text: &str) -> Result<Self, TelemetryError> {
        Self(Targets::new().with_default(DEFAULT)).with(text)
    }

    /// Exactly the levels in the text.
    pub(super) fn parse(text: &str) -> Result<Self, TelemetryError> {
        Self(Targets::new()).with(text)
    }

    /// These levels, changed by the items of the text: `level`, `module=level` or (as istioctl's help says)
    /// `module:level`, separated by commas.
    pub(super) fn with(&self, text: &str) -> Result<Self, TelemetryError> {
        let mut targets = self.0.clone();
        for item in text.split(',').map(str::trim) {
            targets = match split(item) {
                Some((module, level)) => targets.with_target(module, parse_level(level, item)?),
                None => targets.with_default(parse_level(item, item)?),
            };
        }
        Ok(Self(targets))
    }

    pub(super) fn targets(&self) -> Targets {
        self.0.clone()
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Module and level, unless the item is a level alone.
fn split(item: &str) -> Option<(&str, &str)> {
    let (module, level) = item.split_once('=').or_else(|| item.rsplit_once(':'))?;
    Some((module.trim_end_matches(':'), level)).filter(|(module, _)| !module.is_empty())
}

fn parse_level(word: &str, item: &str) -> Result<LevelFilter, TelemetryError> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(TelemetryError::Level(item.to_owned())),
    })
}

/// Undoes the encoding of a query value. What is not valid stays as it is, and then is no level.
pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let decoded = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = decoded {
            bytes.push(high * 16 + low);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start: &str, change: &str, expected: &str) {
        let levels = Levels::initial(start).unwrap().with(change).unwrap();
        assert_eq!(levels.to_string(), expected, "{start} + {change}");
    }

    #[test]
    fn items_change_what_they_name() {
        check("info", "debug", "debug");
        check("warn", "ztunnel::proxy=debug", "ztunnel::proxy=debug,warn");
        check("a=debug", "a=off", "a=off,info");
        check(
            "info",
            "ztunnel::proxy:debug, access=off",
            "ztunnel::proxy=debug,access=off,info",
        );
        check("info", "ztunnel::proxy::trace", "ztunnel::proxy=trace,info");
        check("INFO", "Error", "error");
    }

    #[test]
    fn what_is_no_level_is_refused() {
        for bad in [
            "",
            "inof",
            "a=",
            "=debug",
            "a=b=c",
            "a=1",
            "info,,debug",
            "a:loud",
            "::debug",
        ] {
            assert!(Levels::initial(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percent_encoding() {
        for (encoded, expected) in [
            ("a%3A%3Ab%3Ddebug%2Caccess=off", "a::b=debug,access=off"),
            ("info", "info"),
            ("%", "%"),
            ("%2", "%2"),
            ("%zz", "%zz"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(percent_decode(encoded), expected);
        }
    }
}
