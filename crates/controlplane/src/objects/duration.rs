//! Durations as Istio and the Gateway API write them: `5s`, `1h30m`, `100ms`, `1.5s`.

use std::time::Duration;

/// Longer ones are mistakes: Envoy's timeouts are milliseconds in 32 bits in places.
const LONGEST: Duration = Duration::from_secs(49 * 24 * 3600);

/// Reads a duration in the form of Go's `time.ParseDuration`, without a sign (Istio's API takes that, and the Gateway
/// API a subset of it, GEP-2257).
///
/// # Errors
/// A sentence that says what a duration looks like.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let malformed = || format!("`{text}` is not a duration, such as 5s, 1h30m or 100ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(malformed)?;
        let (number, unit_on) = rest.split_at(digits);
        let unit_end = unit_on
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(unit_on.len());
        let (unit, next) = unit_on.split_at(unit_end);
        let Ok(number) = number.parse::<f64>() else {
            return Err(malformed());
        };
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(malformed()),
        };
        total += number * seconds;
        rest = next;
    }
    if text.is_empty() {
        return Err(malformed());
    }
    match Duration::try_from_secs_f64(total) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) | Err(_) => Err(format!("`{text}` is longer than 49 days")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        let millis = |text: &str| parse(text).map(|duration| duration.as_micros());
        for (text, micros) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000),
            ("1.5s", 1_500_000),
            ("100ms", 100_000),
            ("1h30m", 5_400_000_000),
            ("250us", 250),
            ("1m0.5s", 60_500_000),
        ] {
            assert_eq!(millis(text), Ok(micros), "{text}");
        }
        for text in [
            "", "5", "s", "5x", "-5s", "1..5s", "5s ", "99999h", "5 s", ".",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
