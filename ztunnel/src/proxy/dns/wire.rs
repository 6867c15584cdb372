//! DNS messages as far as they are passed on unread (RFC 1035, 4.1): the header, the question, and where the lifetimes of
//! the records are. Local answers are made with `hickory-proto`; what comes from a resolver reaches the client as it is,
//! whatever types and options are in it.

/// Length of the header.
pub(super) const HEADER: usize = 12;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
/// What is remembered is remembered at most this long.
const MAX_TTL: u32 = 3600;
const NO_ERROR: u8 = 0;
const NAME_ERROR: u8 = 3;

/// Where the first question ends, name, type and class.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    let end = skip_name(message, HEADER)?.checked_add(4)?;
    (end <= message.len()).then_some(end)
}

/// Skips a name; a pointer ends it (4.1.4).
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return at.checked_add(1),
            1..=63 => at = at.checked_add(usize::from(length) + 1)?,
            // Reserved forms of labels.
            64..=191 => return None,
            192..=255 => return at.checked_add(2),
        }
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The identifier of a message.
pub(super) fn id(message: &[u8]) -> u16 {
    u16_at(message, 0).unwrap_or_default()
}

/// Gives a message another identifier.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// Whether a message says that it was cut.
pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Whether a message is the response to a query.
pub(super) fn responds_to(response: &[u8], query: &[u8]) -> bool {
    let is_response = response.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let question = |message: &[u8]| {
        let end = question_end(message)?;
        Some(message.get(HEADER..end)?.to_ascii_lowercase())
    };
    let asked = question(query);
    is_response && id(response) == id(query) && asked.is_some() && question(response) == asked
}

/// A name that exists has no such records, rather than being none.
pub(super) fn admit_name(response: &mut [u8]) {
    if let Some(flags) = response.get_mut(3)
        && *flags & 0x0f == NAME_ERROR
    {
        *flags &= 0xf0;
    }
}

/// What fits of a response: the question, and that it was cut.
pub(super) fn cut(response: &[u8]) -> Vec<u8> {
    let end = question_end(response).unwrap_or_else(|| response.len().min(HEADER));
    let mut short = response.get(..end).unwrap_or_default().to_vec();
    if let Some(flags) = short.get_mut(2) {
        *flags |= 0x02;
    }
    // No record is left.
    if let Some(counts) = short.get_mut(6..HEADER) {
        counts.fill(0);
    }
    short
}

/// How long a response may be remembered, and where its records say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// Seconds.
    pub(super) ttl: u32,
    /// Offsets of the records' TTLs.
    pub(super) places: Vec<u16>,
}

impl Lifetime {
    /// `None` for what must not be remembered: failures, cut responses, and negative ones without a SOA (RFC 2308, 5).
    pub(super) fn of(response: &[u8]) -> Option<Self> {
        let code = response.get(3)? & 0x0f;
        if is_truncated(response) || (code != NO_ERROR && code != NAME_ERROR) {
            return None;
        }
        let answers = u16_at(response, 6)?;
        let authorities = u16_at(response, 8)?;
        let records =
            u32::from(answers) + u32::from(authorities) + u32::from(u16_at(response, 10)?);
        let (mut at, mut places) = (question_end(response)?, Vec::new());
        let (mut least, mut negative) = (MAX_TTL, None);
        for _ in 0..records {
            at = skip_name(response, at)?;
            let (kind, ttl) = (u16_at(response, at)?, u32_at(response, at + 4)?);
            let length = usize::from(u16_at(response, at + 8)?);
            let end = at + 10 + length;
            response.get(at..end)?;
            if kind != TYPE_OPT {
                places.push(u16::try_from(at + 4).ok()?);
                // A value with the high bit is none (RFC 2181, 8).
                least = least.min(if ttl > i32::MAX as u32 { 0 } else { ttl });
            }
            if kind == TYPE_SOA {
                // MINIMUM is the last of its numbers.
                negative = Some(u32_at(response, end.checked_sub(4)?)?);
            }
            at = end;
        }
        let ttl = if code == NAME_ERROR || answers == 0 {
            least.min(negative?)
        } else {
            least
        };
        (ttl > 0).then_some(Self { ttl, places })
    }

    /// Counts the records' TTLs down.
    pub(super) fn age(&self, response: &mut [u8], seconds: u32) {
        for at in self.places.iter().map(|at| usize::from(*at)) {
            let left = u32_at(response, at)
                .unwrap_or_default()
                .min(MAX_TTL)
                .saturating_sub(seconds);
            if let Some(place) = response.get_mut(at..at + 4) {
                place.copy_from_slice(&left.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
