//! Whether a request is traced, as Envoy decides it: by the client, by the service, or by chance, which the request's id
//! stands for, so that all proxies on its way decide alike. The id is marked with the reason.

use http::{HeaderMap, HeaderName, HeaderValue};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
/// Shares are of so many.
const WHOLE: u64 = 10_000;
/// Of a UUID as text; here its version stands, and Envoy's reason.
const UUID_LENGTH: usize = 36;
const MARK: usize = 14;

/// What is done about a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Sample,
    Leave,
}

impl Decision {
    pub(crate) fn of(is_sampled: bool) -> Self {
        if is_sampled {
            Self::Sample
        } else {
            Self::Leave
        }
    }
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(u64);

impl Share {
    pub(crate) const ALL: Self = Self(WHOLE);

    /// To two places behind the point.
    pub(crate) fn of_percent(percent: f64) -> Self {
        // In range, and whole.
        Self((percent.clamp(0.0, 100.0) * 100.0).round() as u64)
    }

    fn takes(self, random: u64) -> bool {
        random % WHOLE < self.0
    }
}

/// The shares of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    /// Of requests whose client asks for it.
    pub(crate) client: Share,
    /// Of all others.
    pub(crate) random: Share,
    /// Of both.
    pub(crate) overall: Share,
    pub(crate) chance: Chance,
}

/// What stands for chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// The request's id, which is marked.
    RequestId,
    /// Nothing but chance.
    Dice,
}

/// Why a request is traced, as its id is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Client,
    Service,
    Sampled,
    No,
}

impl Reason {
    const ALL: [(Self, char); 4] = [
        (Self::No, '4'),
        (Self::Sampled, '9'),
        (Self::Service, 'a'),
        (Self::Client, 'b'),
    ];

    fn of(id: &str) -> Self {
        let mark = (id.len() == UUID_LENGTH).then(|| id.chars().nth(MARK));
        let known = Self::ALL
            .iter()
            .find(|(_, known)| Some(Some(*known)) == mark);
        known.map_or(Self::No, |(reason, _)| *reason)
    }

    fn marked(self, id: &str) -> Option<HeaderValue> {
        if id.len() != UUID_LENGTH {
            return None;
        }
        let mark = Self::ALL.iter().find(|(reason, _)| *reason == self)?.1;
        let (before, after) = id.split_at_checked(MARK)?;
        let after = after.get(1..)?;
        HeaderValue::try_from(format!("{before}{mark}{after}")).ok()
    }
}

/// Decides, and marks the request's id.
pub(crate) fn decide(sampling: &Sampling, headers: &mut HeaderMap) -> Decision {
    let id = headers.get(REQUEST_ID);
    let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    let number = id.as_deref().and_then(number);
    let (random, before) = match sampling.chance {
        Chance::Dice => (rand::random(), Reason::No),
        Chance::RequestId => match (&id, number) {
            (Some(id), Some(number)) => (number, Reason::of(id)),
            // An id that is none of ours cannot be decided by.
            _ => return Decision::Leave,
        },
    };
    let mut reason = before;
    if before == Reason::No {
        reason = if headers.contains_key(CLIENT_TRACE_ID) && sampling.client.takes(random) {
            Reason::Client
        } else if headers.contains_key(FORCE_TRACE) {
            Reason::Service
        } else if sampling.random.takes(random) {
            Reason::Sampled
        } else {
            Reason::No
        };
    }
    if !sampling.overall.takes(random) {
        reason = Reason::No;
    }
    if sampling.chance == Chance::RequestId
        && reason != before
        && let Some(marked) = id.and_then(|id| reason.marked(&id))
    {
        headers.insert(REQUEST_ID, marked);
    }
    Decision::of(reason != Reason::No)
}

/// The first 32 bits of the id.
fn number(id: &str) -> Option<u64> {
    let first = id.get(..8)?;
    let is_hex = first.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(first, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00001387-7d4d-4d4d-8d4d-00000000000a";

    fn check(random: f64, headers: &[(&'static str, &'static str)], expected: (Decision, &str)) {
        let sampling = Sampling {
            client: Share::ALL,
            random: Share::of_percent(random),
            overall: Share::ALL,
            chance: Chance::RequestId,
        };
        let mut map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let decision = decide(&sampling, &mut map);
        let id = map.get(REQUEST_ID).map(|id| id.to_str().unwrap());
        assert_eq!((decision, id.unwrap_or_default()), expected, "{headers:?}");
    }

    #[test]
    fn the_id_decides_and_is_marked() {
        use Decision::{Leave, Sample};
        // 0x1387 is 4999 of 10,000.
        let id = ("x-request-id", ID);
        let marked = |mark: char| format!("00001387-7d4d-{mark}d4d-8d4d-00000000000a");
        check(49.99, &[id], (Leave, ID));
        check(50.0, &[id], (Sample, &marked('9')));
        check(0.0, &[id], (Leave, ID));
        check(100.0, &[id], (Sample, &marked('9')));
        check(
            0.0,
            &[id, ("x-envoy-force-trace", "1")],
            (Sample, &marked('a')),
        );
        check(
            0.0,
            &[id, ("x-client-trace-id", "1")],
            (Sample, &marked('b')),
        );
        // It was decided before.
        let before = "00001387-7d4d-9d4d-8d4d-00000000000a";
        check(0.0, &[("x-request-id", before)], (Sample, before));
        check(100.0, &[("x-request-id", "mine")], (Leave, "mine"));
        check(100.0, &[], (Leave, ""));
    }

    #[test]
    fn shares_are_of_all_ids() {
        let share = Share::of_percent(12.5);
        let taken = (0..WHOLE).filter(|number| share.takes(*number)).count();
        assert_eq!(taken, 1250);
        assert!(!Share::of_percent(-1.0).takes(0));
    }
}
