//! `%START_TIME(%Y-%m-%dT%H:%M:%S.%3f)%`: dates in UTC, with the letters of strftime and Envoy's fractions.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::config::error::{Compiled, Unsupported};

/// Without argument.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A time as protobuf writes it in JSON.
pub(crate) fn utc(time: SystemTime) -> String {
    // The default is one.
    TimeFormat::compile("").map_or_else(|_| String::new(), |format| format.text(time))
}

/// A parsed format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeFormat(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(char),
    Letter(char),
    /// So many digits of the second's fraction.
    Fraction(u32),
}

impl TimeFormat {
    pub(crate) fn compile(text: &str) -> Compiled<Self> {
        let text = if text.is_empty() { DEFAULT } else { text };
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                pieces.push(Piece::Literal(character));
                continue;
            }
            let unknown = || Unsupported::new(format!("time format `{text}`"));
            match characters.next().ok_or_else(unknown)? {
                '%' => pieces.push(Piece::Literal('%')),
                'f' => pieces.push(Piece::Fraction(9)),
                digit @ '1'..='9' => {
                    if characters.next() != Some('f') {
                        return Err(unknown());
                    }
                    let digits = digit.to_digit(10).ok_or_else(unknown)?;
                    pieces.push(Piece::Fraction(digits));
                }
                letter if "YmdHMSsTFbaejyz".contains(letter) => {
                    pieces.push(Piece::Letter(letter));
                }
                _ => return Err(unknown()),
            }
        }
        Ok(Self(pieces))
    }

    pub(crate) fn text(&self, time: SystemTime) -> String {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        let days = seconds / 86_400;
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let mut text = String::with_capacity(32);
        for piece in &self.0 {
            // A string takes everything.
            match piece {
                Piece::Literal(character) => write!(text, "{character}"),
                Piece::Fraction(digits) => {
                    let value = nanos / 10u32.pow(9 - digits);
                    write!(text, "{value:0width$}", width = *digits as usize)
                }
                Piece::Letter('Y') => write!(text, "{year:04}"),
                Piece::Letter('y') => write!(text, "{:02}", year % 100),
                Piece::Letter('m') => write!(text, "{month:02}"),
                Piece::Letter('d') => write!(text, "{day:02}"),
                Piece::Letter('e') => write!(text, "{day:2}"),
                Piece::Letter('H') => write!(text, "{hour:02}"),
                Piece::Letter('M') => write!(text, "{minute:02}"),
                Piece::Letter('S') => write!(text, "{second:02}"),
                Piece::Letter('T') => write!(text, "{hour:02}:{minute:02}:{second:02}"),
                Piece::Letter('F') => write!(text, "{year:04}-{month:02}-{day:02}"),
                Piece::Letter('s') => write!(text, "{seconds}"),
                Piece::Letter('j') => {
                    let first = days_from_civil(year);
                    write!(text, "{:03}", days - first + 1)
                }
                Piece::Letter('b') => {
                    let name = MONTHS.get(month as usize - 1);
                    write!(text, "{}", name.copied().unwrap_or_default())
                }
                Piece::Letter('a') => {
                    // The first of January 1970 was a Thursday.
                    let name = DAYS.get((days % 7) as usize);
                    write!(text, "{}", name.copied().unwrap_or_default())
                }
                Piece::Letter(_) => write!(text, "+0000"),
            }
            .ok();
        }
        text
    }
}

/// Year, month and day of the day since 1970: eras of 400 years, years that begin in March (leap days are at their end).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// The day since 1970 of the first of January of a year.
fn days_from_civil(year: u64) -> u64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_asked() {
        let check = |seconds: u64, format: &str, expected: &str| {
            let time = UNIX_EPOCH + Duration::new(seconds, 123_456_789);
            let format = TimeFormat::compile(format).unwrap();
            assert_eq!(format.text(time), expected);
        };
        check(0, "", "1970-01-01T00:00:00.123Z");
        check(951_826_154, "%F %T", "2000-02-29 12:09:14");
        check(
            1_709_164_800,
            "%d/%b/%Y:%H:%M:%S %z",
            "29/Feb/2024:00:00:00 +0000",
        );
        check(1_767_225_599, "%j %a %6f %s", "365 Wed 123456 1767225599");
    }

    #[test]
    fn unknown_letters_are_refused() {
        for format in ["%Q", "%", "%3"] {
            assert!(TimeFormat::compile(format).is_err(), "{format}");
        }
    }
}
