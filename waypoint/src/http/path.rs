//! Paths are brought into one form before anything is decided on them, so that a policy or a route sees what the
//! application will see (MeshConfig `pathNormalization`).

use crate::config::http::{EscapedSlashes, PathNormalization};

/// What became of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Normalized {
    Path(String),
    /// The client shall ask for this one.
    Redirect(String),
    /// A path that would leave the root, or has escaped slashes where they are not allowed.
    Bad,
}

/// Normalises the path of `path_and_query`; the query stays as it is.
pub(crate) fn normalize(path_and_query: &str, how: PathNormalization) -> Normalized {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    // A fragment is not sent by clients that keep to the rules; it must not hide the rest of a path.
    let path = path.split('#').next().unwrap_or(path);
    if !path.starts_with('/') {
        return Normalized::Path(path_and_query.to_owned());
    }
    let mut path = path.to_owned();
    let mut redirect = false;
    if has_escaped_slash(&path) {
        match how.escaped_slashes {
            EscapedSlashes::Keep => {}
            EscapedSlashes::Reject => return Normalized::Bad,
            EscapedSlashes::UnescapeAndRedirect | EscapedSlashes::UnescapeAndForward => {
                path = unescape_slashes(&path);
                redirect = how.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
            }
        }
    }
    if how.normalize {
        match remove_dot_segments(&decode_unreserved(&path.replace('\\', "/"))) {
            Some(normal) => path = normal,
            None => return Normalized::Bad,
        }
    }
    if how.merge_slashes {
        while path.contains("//") {
            path = path.replace("//", "/");
        }
    }
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    if redirect {
        Normalized::Redirect(path)
    } else {
        Normalized::Path(path)
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(is_escaped_slash)
}

fn is_escaped_slash(window: &[u8]) -> bool {
    window.eq_ignore_ascii_case(b"%2f") || window.eq_ignore_ascii_case(b"%5c")
}

/// `%2F` becomes a slash, `%5C` a backslash, which normalising turns into a slash.
fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (slash, after) = match from.get(..3) {
            Some(code) if code.eq_ignore_ascii_case("%2f") => ("/", 3),
            Some(code) if code.eq_ignore_ascii_case("%5c") => ("\\", 3),
            Some(_) | None => ("%", 1),
        };
        out.push_str(slash);
        rest = from.get(after..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// RFC 3986, 6.2.2.2: letters, digits and `-._~` need no escape.
fn decode_unreserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let code = from
            .get(1..3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
                rest = from.get(3..).unwrap_or_default();
            }
            Some(_) | None => {
                out.push('%');
                rest = from.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

/// RFC 3986, 5.2.4; `None` for a path above the root.
fn remove_dot_segments(path: &str) -> Option<String> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for segment in path.split('/').skip(1) {
        ends_in_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop()?;
            }
            segment => segments.push(segment),
        }
    }
    if ends_in_directory {
        segments.push("");
    }
    Some(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PathNormalization = PathNormalization {
        normalize: true,
        merge_slashes: true,
        escaped_slashes: EscapedSlashes::UnescapeAndForward,
    };

    fn check(how: PathNormalization, path: &str, expected: &str) {
        let expected = Normalized::Path(expected.to_owned());
        assert_eq!(normalize(path, how), expected, "{path}");
    }

    #[test]
    fn paths_are_brought_into_one_form() {
        let base = PathNormalization {
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            ..ALL
        };
        check(base, "/a/./b/../c?x=/../y", "/a/c?x=/../y");
        check(base, "/a/%2e%2E/b", "/b");
        check(base, "/%61dmin", "/admin");
        check(base, "/a\\b", "/a/b");
        check(base, "/a//b", "/a//b");
        check(base, "/a%2Fb", "/a%2Fb");
        check(base, "/a/..", "/");
        check(base, "/a/.", "/a/");
        check(base, "/%zz%", "/%zz%");
        check(base, "*", "*");
        check(ALL, "/a//b///c", "/a/b/c");
        check(ALL, "/a%2f%5Cb", "/a/b");
        check(ALL, "/a%2f..%2fadmin", "/admin");
    }

    #[test]
    fn a_path_above_the_root_is_refused() {
        assert_eq!(normalize("/..", ALL), Normalized::Bad);
        assert_eq!(normalize("/a/../../b", ALL), Normalized::Bad);
        let reject = PathNormalization {
            escaped_slashes: EscapedSlashes::Reject,
            ..ALL
        };
        assert_eq!(normalize("/a%2Fb", reject), Normalized::Bad);
    }

    #[test]
    fn without_normalisation_nothing_changes() {
        let none = PathNormalization {
            normalize: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
        };
        check(none, "/a/../b//c%2F", "/a/../b//c%2F");
    }
}
