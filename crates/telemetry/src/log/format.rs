//! The form of a line. Plain: time, level, scope and message between tabs, then `key=value` fields. JSON: one object
//! with `level`, `time`, `scope`, `message`, the fields, and one object per span.
//!
//! An event is one line whatever its values hold: control characters are escaped.

use std::{
    fmt::{self, Debug, Write},
    sync::Arc,
};

use time::OffsetDateTime;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use super::queue::Queue;

/// A longer value is cut: the queue's memory must be bounded, and peers choose some of the values.
const MAX_VALUE: usize = 4 * 1024;

/// A usual access-log line fits.
const USUAL_LINE: usize = 768;

/// Form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: tabs and `key=value`.
    #[default]
    Plain,
    /// For machines: one JSON object per line.
    Json,
}

/// Turns events into lines and queues them.
pub(super) struct LineLayer {
    format: Format,
    queue: Arc<Queue>,
}

impl LineLayer {
    pub(super) fn new(format: Format, queue: Arc<Queue>) -> Self {
        Self { format, queue }
    }
}

/// The fields of a span in the layer's format, kept with the span.
struct SpanFields(Fields);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::new(self.format);
            attributes.record(&mut fields);
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new(self.format);
        event.record(&mut fields);
        let metadata = event.metadata();
        let scope = fields.log_target.take();
        let scope = scope.as_deref().unwrap_or_else(|| metadata.target());
        let spans = context.event_scope(event).into_iter();
        let spans = spans.flat_map(|scope| scope.from_root());
        let level = level_name(metadata.level());
        self.queue
            .push(line(self.format, level, scope, spans, &fields));
    }
}

/// The line that tells of lost lines.
pub(super) fn dropped_line(format: Format, count: u64) -> String {
    let mut fields = Fields::new(format);
    fields.message.push_str("log lines dropped");
    fields.key("count");
    fields.push(format_args!("{count}"));
    let no_spans = std::iter::empty::<SpanRef<'_, tracing_subscriber::Registry>>();
    line(format, "warn", "leyline_telemetry::log", no_spans, &fields)
}

fn line<'a, R: LookupSpan<'a> + 'a>(
    format: Format,
    level: &'static str,
    scope: &str,
    spans: impl Iterator<Item = SpanRef<'a, R>>,
    fields: &Fields,
) -> String {
    let mut text = String::with_capacity(USUAL_LINE);
    match format {
        Format::Plain => plain(&mut text, level, scope, spans, fields),
        Format::Json => json(&mut text, level, scope, spans, fields),
    }
    text.push('\n');
    text
}

fn level_name(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn plain<'a, R: LookupSpan<'a> + 'a>(
    text: &mut String,
    level: &'static str,
    scope: &str,
    spans: impl Iterator<Item = SpanRef<'a, R>>,
    fields: &Fields,
) {
    push_time(text, OffsetDateTime::now_utc());
    push(text, format_args!("\t{level}\t{scope}"));
    for span in spans {
        push(text, format_args!(":{}", span.name()));
        if let Some(SpanFields(fields)) = span.extensions().get()
            && !fields.text.is_empty()
        {
            push(text, format_args!("{{{}}}", fields.text));
        }
    }
    push(text, format_args!("\t{}", fields.message));
    if !fields.text.is_empty() {
        push(text, format_args!("\t{}", fields.text));
    }
}

fn json<'a, R: LookupSpan<'a> + 'a>(
    text: &mut String,
    level: &'static str,
    scope: &str,
    spans: impl Iterator<Item = SpanRef<'a, R>>,
    fields: &Fields,
) {
    push(text, format_args!("{{\"level\":\"{level}\",\"time\":\""));
    push_time(text, OffsetDateTime::now_utc());
    push(text, format_args!("\",\"scope\":{}", Quoted(scope)));
    push(
        text,
        format_args!(",\"message\":{}", Quoted(&fields.message)),
    );
    if !fields.text.is_empty() {
        push(text, format_args!(",{}", fields.text));
    }
    for span in spans {
        push(text, format_args!(",{}:{{", Quoted(span.name())));
        if let Some(SpanFields(fields)) = span.extensions().get() {
            text.push_str(&fields.text);
        }
        text.push('}');
    }
    text.push('}');
}

/// RFC 3339 with microseconds.
fn push_time(text: &mut String, t: OffsetDateTime) {
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    let (hour, minute, second, micro) = (t.hour(), t.minute(), t.second(), t.microsecond());
    let date = format_args!("{year:04}-{month:02}-{day:02}");
    push(
        text,
        format_args!("{date}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z"),
    );
}

/// Fields of an event or a span, formatted one after the other.
struct Fields {
    format: Format,
    message: String,
    text: String,
    /// Target of an event that came through the crate `log`.
    log_target: Option<String>,
}

impl Fields {
    fn new(format: Format) -> Self {
        Self {
            format,
            message: String::new(),
            text: String::new(),
            log_target: None,
        }
    }

    fn key(&mut self, name: &str) {
        match self.format {
            Format::Plain if self.text.is_empty() => push(&mut self.text, format_args!("{name}=")),
            Format::Plain => push(&mut self.text, format_args!(" {name}=")),
            Format::Json if self.text.is_empty() => {
                push(&mut self.text, format_args!("{}:", Quoted(name)));
            }
            Format::Json => push(&mut self.text, format_args!(",{}:", Quoted(name))),
        }
    }

    fn set_message(&mut self, text: fmt::Arguments<'_>) {
        match self.format {
            Format::Plain => push(&mut OneLine(&mut self.message), text),
            // Quoting will escape.
            Format::Json => push(&mut self.message, text),
        }
        cut(&mut self.message, 0);
    }

    /// A value that both formats write alike.
    fn push(&mut self, value: fmt::Arguments<'_>) {
        push(&mut self.text, value);
    }

    /// Whether the field is one of those by which the crate `log` passes its own metadata.
    fn is_log_metadata(name: &str) -> bool {
        name.starts_with("log.")
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.set_message(format_args!("{value}")),
            "log.target" => self.log_target = Some(value.to_owned()),
            name if Self::is_log_metadata(name) => {}
            name => {
                self.key(name);
                let value = &value[..value.floor_char_boundary(MAX_VALUE)];
                match self.format {
                    Format::Plain => self.push(format_args!("{value:?}")),
                    Format::Json => self.push(format_args!("{}", Quoted(value))),
                }
            }
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !Self::is_log_metadata(field.name()) {
            self.key(field.name());
            self.push(format_args!("{value}"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.key(field.name());
        self.push(format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.key(field.name());
        self.push(format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.key(field.name());
            self.push(format_args!("{value:?}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            return self.set_message(format_args!("{value:?}"));
        }
        self.key(field.name());
        match self.format {
            Format::Plain => {
                let start = self.text.len();
                push(&mut OneLine(&mut self.text), format_args!("{value:?}"));
                cut(&mut self.text, start);
            }
            Format::Json => {
                let mut text = format!("{value:?}");
                cut(&mut text, 0);
                self.push(format_args!("{}", Quoted(&text)));
            }
        }
    }
}

/// Bounds the value that begins at `start`.
fn cut(text: &mut String, start: usize) {
    if text.len() - start > MAX_VALUE {
        text.truncate(text.floor_char_boundary(start + MAX_VALUE));
        text.push('…');
    }
}

/// Text as a JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = serde_json::to_string(self.0).map_err(|_unreachable| fmt::Error)?;
        f.write_str(&quoted)
    }
}

/// Escapes control characters on the way.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.contains(char::is_control) {
            self.0.push_str(text);
            return Ok(());
        }
        for c in text.chars() {
            if c.is_control() {
                self.0.extend(c.escape_debug());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// Appends. A value whose own formatting fails leaves what it wrote so far.
fn push(text: &mut impl Write, what: fmt::Arguments<'_>) {
    text.write_fmt(what).ok();
}
