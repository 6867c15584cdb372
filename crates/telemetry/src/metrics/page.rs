//! The page of metrics as a scraper wants it: classic text or OpenMetrics by `Accept`, compressed by `Accept-Encoding`.

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};

/// Content type of the classic text.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Content type of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Quality of brotli: above it the time grows much faster than the page shrinks.
const BROTLI_QUALITY: u32 = 4;
/// Window of brotli, 4 MiB: labels repeat over the whole page.
const BROTLI_WINDOW: u32 = 22;

/// An answer to a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Content-Encoding`, if it is compressed.
    pub encoding: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
}

impl Page {
    /// Makes the page of classic text.
    pub(super) fn new(text: String, accept: Option<&str>, accept_encoding: Option<&str>) -> Self {
        let open_metrics = accept.is_some_and(wants_open_metrics);
        let (content_type, text) = if open_metrics {
            (OPEN_METRICS, to_open_metrics(&text))
        } else {
            (TEXT, text)
        };
        let encoding = accept_encoding.and_then(Encoding::negotiate);
        // Compressing into memory cannot fail; if it does, the text itself is an answer too.
        let compressed = encoding.and_then(|encoding| Some((encoding, encoding.compress(&text)?)));
        let (encoding, body) = match compressed {
            Some((encoding, body)) => (Some(encoding.name()), body),
            None => (None, text.into_bytes()),
        };
        Self {
            content_type,
            encoding,
            body,
        }
    }
}

fn wants_open_metrics(accept: &str) -> bool {
    let quality = |media: &str| items(accept).find_map(|(name, q)| (name == media).then_some(q));
    match quality("application/openmetrics-text") {
        None => false,
        Some(open) => open > 0.0 && quality("text/plain").is_none_or(|text| open >= text),
    }
}

/// The items of a header with their qualities (RFC 9110, 12.4.2).
fn items(header: &str) -> impl Iterator<Item = (&str, f32)> {
    header.split(',').map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        let quality = quality.map_or(1.0, |q| q.parse().unwrap_or(0.0));
        (name, quality)
    })
}

/// In the order of our preference among what is equally welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Zstd,
    Brotli,
    Deflate,
}

impl Encoding {
    const ALL: [Self; 4] = [Self::Gzip, Self::Zstd, Self::Brotli, Self::Deflate];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Deflate => "deflate",
        }
    }

    fn negotiate(accept_encoding: &str) -> Option<Self> {
        let mut best: Option<(Self, f32)> = None;
        for encoding in Self::ALL {
            let named = items(accept_encoding).find(|(name, _)| *name == encoding.name());
            let any = items(accept_encoding).find(|(name, _)| *name == "*");
            let Some((_, quality)) = named.or(any) else {
                continue;
            };
            if quality > best.map_or(0.0, |(_, best)| best) {
                best = Some((encoding, quality));
            }
        }
        best.map(|(encoding, _)| encoding)
    }

    fn compress(self, text: &str) -> Option<Vec<u8>> {
        let body = text.as_bytes();
        let room = Vec::with_capacity(body.len() / 8);
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(room, Compression::fast());
                encoder.write_all(body).ok()?;
                encoder.finish().ok()
            }
            // HTTP's deflate is zlib's format (RFC 9110, 8.4.1.2).
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(room, Compression::fast());
                encoder.write_all(body).ok()?;
                encoder.finish().ok()
            }
            Self::Brotli => {
                let mut compressed = room;
                let mut encoder = brotli::CompressorWriter::new(
                    &mut compressed,
                    4096,
                    BROTLI_QUALITY,
                    BROTLI_WINDOW,
                );
                encoder.write_all(body).ok()?;
                encoder.flush().ok()?;
                drop(encoder);
                Some(compressed)
            }
            Self::Zstd => Some(ruzstd::encoding::compress_to_vec(
                body,
                ruzstd::encoding::CompressionLevel::Fastest,
            )),
        }
    }
}

/// Classic text as OpenMetrics 1.0: families of counters are named without `_total`, no empty lines, `# EOF` at the end,
/// each family once.
fn to_open_metrics(text: &str) -> String {
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            kinds.insert(name, kind);
        }
    }
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines().filter(|line| !line.is_empty()) {
        match comment(line) {
            Some((keyword, name, rest)) => {
                let kind = kinds.get(name).copied().unwrap_or("unknown");
                let (family, kind) = family(name, kind);
                let rest = if keyword == "TYPE" { kind } else { rest };
                out.extend(["# ", keyword, " ", family, " ", rest]);
            }
            None => push_sample(&mut out, line),
        }
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

/// Keyword, metric and the rest of `# HELP` and `# TYPE`.
fn comment(line: &str) -> Option<(&str, &str, &str)> {
    let (keyword, rest) = line.strip_prefix("# ")?.split_once(' ')?;
    let (name, rest) = rest.split_once(' ')?;
    Some((keyword, name, rest))
}

/// A counter must end in `_total`; one that does not is told as of unknown type.
fn family<'a>(name: &'a str, kind: &'a str) -> (&'a str, &'a str) {
    match (kind, name.strip_suffix("_total")) {
        ("counter", Some(family)) => (family, kind),
        ("counter", None) => (name, "unknown"),
        _ => (name, kind),
    }
}

/// Bounds of buckets are written with a fraction.
fn push_sample(out: &mut String, line: &str) {
    const LE: &str = "le=\"";
    let whole = line.find(LE).and_then(|at| {
        let (before, rest) = line.split_at(at + LE.len());
        let (bound, after) = rest.split_once('"')?;
        let digits = !bound.is_empty() && bound.bytes().all(|byte| byte.is_ascii_digit());
        digits.then_some((before, bound, after))
    });
    match whole {
        Some((before, bound, after)) => out.extend([before, bound, ".0\"", after]),
        None => out.push_str(line),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const TEXT_FORM: &str = "\
# HELP a_total What.
# TYPE a_total counter
a_total{x=\"le=\\\"\"} 1

# TYPE g gauge
g 2
# TYPE odd counter
odd 3

# TYPE h histogram
h_bucket{le=\"0.5\"} 0
h_bucket{le=\"1\"} 1
h_bucket{le=\"+Inf\"} 1
h_sum 1
h_count 1
";

    #[test]
    fn open_metrics() {
        assert_eq!(
            to_open_metrics(TEXT_FORM),
            "\
# HELP a What.
# TYPE a counter
a_total{x=\"le=\\\"\"} 1
# TYPE g gauge
g 2
# TYPE odd unknown
odd 3
# TYPE h histogram
h_bucket{le=\"0.5\"} 0
h_bucket{le=\"1.0\"} 1
h_bucket{le=\"+Inf\"} 1
h_sum 1
h_count 1
# EOF
"
        );
    }

    #[test]
    fn the_form_follows_accept() {
        // Prometheus 3, and 2 before it.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, expected) in [
            (None, TEXT),
            (Some("*/*"), TEXT),
            (Some(prometheus), OPEN_METRICS),
            (Some("application/openmetrics-text"), OPEN_METRICS),
            (Some("application/openmetrics-text;q=0, text/plain"), TEXT),
            (Some("application/openmetrics-text;q=0.1,text/plain"), TEXT),
        ] {
            let page = Page::new(TEXT_FORM.to_owned(), accept, None);
            assert_eq!(page.content_type, expected, "{accept:?}");
            let is_open = page.body.ends_with(b"# EOF\n");
            assert_eq!(is_open, expected == OPEN_METRICS, "{accept:?}");
        }
    }

    #[test]
    fn the_encoding_follows_accept_encoding() {
        for (accept, expected) in [
            ("", None),
            ("identity", None),
            ("gzip", Some("gzip")),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", Some("br")),
            ("gzip;q=0, *", Some("zstd")),
            ("deflate", Some("deflate")),
            ("deflate, gzip, br, zstd", Some("gzip")),
            ("gzip;q=x", None),
        ] {
            let encoding = Encoding::negotiate(accept).map(Encoding::name);
            assert_eq!(encoding, expected, "{accept}");
        }
    }

    #[test]
    fn what_is_compressed_can_be_read() {
        let text = TEXT_FORM.repeat(1000);
        for encoding in Encoding::ALL {
            let page = Page::new(text.clone(), None, Some(encoding.name()));
            assert_eq!(page.encoding, Some(encoding.name()));
            assert!(page.body.len() < text.len() / 10, "{encoding:?}");
            let mut read = String::new();
            let body = page.body.as_slice();
            match encoding {
                Encoding::Gzip => flate2::read::GzDecoder::new(body).read_to_string(&mut read),
                Encoding::Deflate => flate2::read::ZlibDecoder::new(body).read_to_string(&mut read),
                Encoding::Brotli => brotli::Decompressor::new(body, 4096).read_to_string(&mut read),
                Encoding::Zstd => ruzstd::decoding::StreamingDecoder::new(body)
                    .unwrap()
                    .read_to_string(&mut read),
            }
            .unwrap();
            assert_eq!(read, text, "{encoding:?}");
        }
    }
}
