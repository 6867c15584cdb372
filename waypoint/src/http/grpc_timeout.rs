//! How long a request may take: what its route says, or, for gRPC, what the client says in `grpc-timeout` (gRPC over
//! HTTP2, "Timeout").

use std::time::Duration;

use http::HeaderMap;

use super::grpc::is_grpc;
use crate::config::route::action::Forward;

/// The timeout of a request.
pub(super) fn of(action: &Forward, headers: &HeaderMap) -> Option<Duration> {
    match action.grpc_timeout {
        Some(most) if is_grpc(headers) => {
            let asked = headers
                .get("grpc-timeout")
                .and_then(|value| parse(value.to_str().ok()?));
            asked.into_iter().chain(most).min()
        }
        Some(_) | None => action.timeout,
    }
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_clients() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("100000000S", None),
            ("S", None),
            ("-1S", None),
            ("1 S", None),
            ("1", None),
            ("", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
