//! Trace context in headers: W3C (Trace Context, level 1) and B3 in both forms. A trace is passed on in the form in which it
//! came; one that begins here is passed on in W3C's.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::sampling::Decision;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// `00-` trace `-` span `-` flags.
const TRACEPARENT_LENGTH: usize = 55;

/// The trace that a request came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// None, or one that cannot be read: a new trace begins.
    None,
    Found(Found),
}

/// What a request said of its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    form: Form,
    /// B3 may say whether to sample without naming a trace.
    ids: Option<Ids>,
    /// `None`: it is left to us.
    sampled: Option<Decision>,
    state: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ids {
    trace: u128,
    span: u64,
    /// B3 knows traces of 64 bits, which are passed on as such.
    width: Width,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Half,
    Full,
}

/// How the trace is written in headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    W3c,
    B3Single,
    B3Multi,
}

/// The span of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpanContext {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) decision: Decision,
    /// `tracestate`, which other vendors wrote.
    pub(crate) state: String,
    form: Form,
    width: Width,
}

/// What the headers of a request say.
pub(crate) fn parent(headers: &HeaderMap) -> Parent {
    if let Some(text) = text(headers, &TRACEPARENT) {
        // What cannot be read is no trace, and its state nobody's (Trace Context, 4.3).
        return w3c(text).map_or(Parent::None, |(ids, sampled)| {
            Parent::Found(Found {
                form: Form::W3c,
                ids: Some(ids),
                sampled: Some(sampled),
                state: state(headers),
            })
        });
    }
    let found = match text(headers, &B3) {
        Some(text) => b3_single(text).map(|found| (Form::B3Single, found)),
        None => b3_multi(headers).map(|found| (Form::B3Multi, found)),
    };
    found.map_or(Parent::None, |(form, (ids, sampled))| {
        Parent::Found(Found {
            form,
            ids,
            sampled,
            state: String::new(),
        })
    })
}

impl SpanContext {
    /// A trace that begins here.
    pub(crate) fn root(decision: Decision) -> Self {
        Self {
            trace: non_zero(rand::random),
            span: non_zero(rand::random),
            parent: None,
            decision,
            state: String::new(),
            form: Form::W3c,
            width: Width::Full,
        }
    }

    /// A span in the trace that the request came with; `decision` counts where that does not say.
    pub(crate) fn child(found: Found, decision: Decision) -> Self {
        let root = Self::root(found.sampled.unwrap_or(decision));
        let form = found.form;
        match found.ids {
            Some(ids) => Self {
                trace: ids.trace,
                parent: Some(ids.span),
                state: found.state,
                form,
                width: ids.width,
                ..root
            },
            None => Self { form, ..root },
        }
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.decision == Decision::Sample
    }

    /// Tells the upstream that this span is its parent.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        let sampled = u8::from(self.is_sampled());
        let span = format!("{:016x}", self.span);
        let trace = match self.width {
            Width::Full => format!("{:032x}", self.trace),
            Width::Half => format!("{:016x}", self.trace),
        };
        let mut set = |name: HeaderName, value: &str| {
            // Digits, letters and dashes only.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        match self.form {
            Form::W3c => {
                set(TRACEPARENT, &format!("00-{trace}-{span}-{sampled:02x}"));
                if self.state.is_empty() {
                    headers.remove(TRACESTATE);
                } else {
                    set(TRACESTATE, &self.state);
                }
            }
            Form::B3Single => {
                let mut text = format!("{trace}-{span}-{sampled}");
                if let Some(parent) = self.parent {
                    write!(text, "-{parent:016x}").ok();
                }
                set(B3, &text);
            }
            Form::B3Multi => {
                set(B3_TRACE_ID, &trace);
                set(B3_SPAN_ID, &span);
                if let Some(parent) = self.parent {
                    set(B3_PARENT, &format!("{parent:016x}"));
                }
                // With the debug flag it is said already.
                if !headers.contains_key(B3_FLAGS) {
                    let sampled = if sampled == 1 { "1" } else { "0" };
                    headers.insert(B3_SAMPLED, HeaderValue::from_static(sampled));
                }
            }
        }
    }
}

/// Nobody takes zero for an id.
fn non_zero<T: Default + PartialEq>(random: impl Fn() -> T) -> T {
    loop {
        let id = random();
        if id != T::default() {
            return id;
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn state(headers: &HeaderMap) -> String {
    let lines = headers.get_all(TRACESTATE).iter();
    let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

fn w3c(text: &str) -> Option<(Ids, Decision)> {
    let (known, more) = text.split_at_checked(TRACEPARENT_LENGTH)?;
    let mut parts = known.split('-');
    let mut next = |digits: usize| parts.next().filter(|part| is_hex(part, digits));
    let version = u8::from_str_radix(next(2)?, 16).ok()?;
    let trace = u128::from_str_radix(next(32)?, 16).ok()?;
    let span = u64::from_str_radix(next(16)?, 16).ok()?;
    let flags = u8::from_str_radix(next(2)?, 16).ok()?;
    // Later versions may say more, which is not looked at.
    let is_version = match version {
        0 => more.is_empty(),
        0xff => false,
        _ => more.is_empty() || more.starts_with('-'),
    };
    if !is_version || trace == 0 || span == 0 {
        return None;
    }
    let ids = Ids {
        trace,
        span,
        width: Width::Full,
    };
    Some((ids, Decision::of(flags & 1 == 1)))
}

fn is_hex(text: &str, digits: usize) -> bool {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == digits && text.bytes().all(lower)
}

type B3Found = (Option<Ids>, Option<Decision>);

/// `trace-span[-sampled[-parent]]`, or only whether it is sampled.
fn b3_single(text: &str) -> Option<B3Found> {
    if let Some(decision) = b3_decision(text) {
        return Some((None, Some(decision)));
    }
    let mut parts = text.split('-');
    let ids = b3_ids(parts.next()?, parts.next()?)?;
    match parts.next() {
        Some(sampled) => Some((Some(ids), Some(b3_decision(sampled)?))),
        None => Some((Some(ids), None)),
    }
}

fn b3_multi(headers: &HeaderMap) -> Option<B3Found> {
    let debug = text(headers, &B3_FLAGS) == Some("1");
    let sampled = text(headers, &B3_SAMPLED).and_then(b3_decision);
    let sampled = if debug {
        Some(Decision::Sample)
    } else {
        sampled
    };
    let ids = text(headers, &B3_TRACE_ID)
        .zip(text(headers, &B3_SPAN_ID))
        .and_then(|(trace, span)| b3_ids(trace, span));
    (ids.is_some() || sampled.is_some()).then_some((ids, sampled))
}

fn b3_decision(text: &str) -> Option<Decision> {
    match text {
        "1" | "d" | "true" => Some(Decision::Sample),
        "0" | "false" => Some(Decision::Leave),
        _ => None,
    }
}

fn b3_ids(trace: &str, span: &str) -> Option<Ids> {
    let trace = trace.to_ascii_lowercase();
    let span = span.to_ascii_lowercase();
    let width = if is_hex(&trace, 16) {
        Width::Half
    } else if is_hex(&trace, 32) {
        Width::Full
    } else {
        return None;
    };
    let trace = u128::from_str_radix(&trace, 16).ok()?;
    let span = is_hex(&span, 16).then(|| u64::from_str_radix(&span, 16).ok())??;
    (trace != 0 && span != 0).then_some(Ids { trace, span, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let headers = headers.iter();
        headers
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    /// The headers afterwards, with the new span's id as `NEW`.
    fn passed(headers: &[(&'static str, &str)], decision: Decision) -> (Option<u64>, Vec<String>) {
        let mut headers = map(headers);
        let context = match parent(&headers) {
            Parent::None => SpanContext::root(decision),
            Parent::Found(found) => SpanContext::child(found, decision),
        };
        context.inject(&mut headers);
        let new = format!("{:016x}", context.span);
        let trace = format!("{:032x}", context.trace);
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| {
                let value = value.to_str().unwrap().replace(&new, "NEW");
                format!("{name}: {}", value.replace(&trace, "TRACE"))
            })
            .collect();
        lines.sort();
        (context.parent, lines)
    }

    #[test]
    fn a_trace_is_passed_on_in_its_own_form() {
        let span = u64::from_str_radix(SPAN, 16).ok();
        let check = |headers: &[(&'static str, &str)], parent: Option<u64>, expected: &[&str]| {
            let (found, lines) = passed(headers, Decision::Sample);
            assert_eq!(
                (found, lines),
                (parent, expected.iter().map(ToString::to_string).collect())
            );
        };
        let traceparent = format!("00-{TRACE}-{SPAN}-00");
        check(&[], None, &["traceparent: 00-TRACE-NEW-01"]);
        check(
            &[("traceparent", &traceparent), ("tracestate", "a=1")],
            span,
            &["traceparent: 00-TRACE-NEW-00", "tracestate: a=1"],
        );
        check(
            &[("b3", &format!("{TRACE}-{SPAN}-0"))],
            span,
            &[&format!("b3: TRACE-NEW-0-{SPAN}")],
        );
        check(
            &[("b3", &format!("{TRACE}-{SPAN}"))],
            span,
            &[&format!("b3: TRACE-NEW-1-{SPAN}")],
        );
        check(&[("b3", "0")], None, &["b3: TRACE-NEW-0"]);
        let half = &TRACE[16..];
        check(
            &[
                ("x-b3-traceid", half),
                ("x-b3-spanid", SPAN),
                ("x-b3-sampled", "0"),
            ],
            span,
            &[
                &format!("x-b3-parentspanid: {SPAN}"),
                "x-b3-sampled: 0",
                "x-b3-spanid: NEW",
                &format!("x-b3-traceid: {half}"),
            ],
        );
        check(
            &[
                ("x-b3-traceid", TRACE),
                ("x-b3-spanid", SPAN),
                ("x-b3-flags", "1"),
            ],
            span,
            &[
                "x-b3-flags: 1",
                &format!("x-b3-parentspanid: {SPAN}"),
                "x-b3-spanid: NEW",
                "x-b3-traceid: TRACE",
            ],
        );
    }

    #[test]
    fn what_cannot_be_read_begins_a_new_trace() {
        for bad in [
            "",
            "00",
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("00-{}-{SPAN}-01", TRACE.to_ascii_uppercase()),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{TRACE}-{SPAN}-0x"),
        ] {
            let (parent, lines) = passed(
                &[("traceparent", bad), ("tracestate", "a=1")],
                Decision::Leave,
            );
            assert_eq!(parent, None, "{bad}");
            assert_eq!(lines, ["traceparent: 00-TRACE-NEW-00"], "{bad}");
        }
        let later = format!("01-{TRACE}-{SPAN}-01-more");
        let (parent, _) = passed(&[("traceparent", &later)], Decision::Leave);
        assert!(parent.is_some());
        for bad in ["x", "1-2-3", &format!("{TRACE}-{SPAN}-x")] {
            assert_eq!(parent_of("b3", bad), Parent::None, "{bad}");
        }
    }

    fn parent_of(name: &'static str, value: &str) -> Parent {
        parent(&map(&[(name, value)]))
    }
}
