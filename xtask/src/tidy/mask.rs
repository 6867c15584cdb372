//! Takes comments and literals out of Rust source, so that a search for code finds only code.

/// Source in two layers of the same shape: what is in one is blank in the other, line feeds are in both.
#[derive(Debug)]
pub(super) struct Masked {
    /// Without comments, and with empty string and character literals.
    pub(super) code: String,
    /// Only the comments.
    pub(super) comments: String,
}

/// Where the scan is.
#[derive(Clone, Copy)]
enum Mode {
    Code,
    LineComment,
    BlockComment { depth: usize },
    Text,
    RawText { hashes: usize },
}

/// Splits the layers. Works on characters; the layers may differ in length only where a character is not ASCII.
pub(super) fn mask(source: &str) -> Masked {
    let chars: Vec<char> = source.chars().collect();
    let mut masked = Masked {
        code: String::with_capacity(source.len()),
        comments: String::with_capacity(source.len()),
    };
    let mut mode = Mode::Code;
    let mut at = 0;
    while at < chars.len() {
        let (taken, next) = step(&chars, at, mode);
        let in_comment = |mode| matches!(mode, Mode::LineComment | Mode::BlockComment { .. });
        let comment = in_comment(mode) || in_comment(next);
        let literal = matches!(mode, Mode::Text | Mode::RawText { .. })
            || matches!(next, Mode::Text | Mode::RawText { .. })
            || (taken > 1 && chars[at] == '\'');
        for &c in &chars[at..at + taken] {
            let blank = if c == '\n' { '\n' } else { ' ' };
            masked.code.push(if comment || literal { blank } else { c });
            masked.comments.push(if comment { c } else { blank });
        }
        at += taken;
        mode = next;
    }
    masked
}

/// How many characters belong together at `at`, and the mode after them.
fn step(chars: &[char], at: usize, mode: Mode) -> (usize, Mode) {
    let rest = &chars[at..];
    match mode {
        Mode::Code => code_step(chars, at),
        Mode::LineComment if rest[0] == '\n' => (1, Mode::Code),
        Mode::LineComment => (1, mode),
        Mode::BlockComment { depth } => match rest {
            ['/', '*', ..] => (2, Mode::BlockComment { depth: depth + 1 }),
            ['*', '/', ..] if depth == 1 => (2, Mode::Code),
            ['*', '/', ..] => (2, Mode::BlockComment { depth: depth - 1 }),
            _ => (1, mode),
        },
        Mode::Text => match rest {
            ['\\', _, ..] => (2, mode),
            ['"', ..] => (1, Mode::Code),
            _ => (1, mode),
        },
        Mode::RawText { hashes } => {
            let closing = rest[0] == '"' && rest[1..].iter().take(hashes).all(|c| *c == '#');
            if closing && rest.len() > hashes {
                (1 + hashes, Mode::Code)
            } else {
                (1, mode)
            }
        }
    }
}

fn code_step(chars: &[char], at: usize) -> (usize, Mode) {
    let rest = &chars[at..];
    let in_word = at > 0 && is_word(chars[at - 1]);
    match rest {
        ['/', '/', ..] => (2, Mode::LineComment),
        ['/', '*', ..] => (2, Mode::BlockComment { depth: 1 }),
        ['"', ..] => (1, Mode::Text),
        ['r', '"' | '#', ..] if !in_word || is_byte_prefix(chars, at) => raw_text(rest),
        ['\'', ..] => (character(rest), Mode::Code),
        _ => (1, Mode::Code),
    }
}

/// Whether the `r` at `at` follows the `b` or `c` of a literal such as `br"..."`.
fn is_byte_prefix(chars: &[char], at: usize) -> bool {
    matches!(chars[at - 1], 'b' | 'c') && (at < 2 || !is_word(chars[at - 2]))
}

/// At `r"` or `r#`: a raw string, or a raw name such as `r#type`.
fn raw_text(rest: &[char]) -> (usize, Mode) {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) == Some(&'"') {
        (2 + hashes, Mode::RawText { hashes })
    } else {
        (1, Mode::Code)
    }
}

/// Length of the character literal at a quote, or 1 for the quote of a lifetime.
fn character(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, after @ ..] => {
            let end = after.iter().position(|c| *c == '\'');
            3 + end.map_or(after.len(), |end| end + 1)
        }
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, code: &str) {
        let masked = mask(source);
        assert_eq!(
            masked.code.split_whitespace().collect::<Vec<_>>().join(" "),
            code,
            "{source}"
        );
        assert_eq!(masked.code.lines().count(), source.lines().count());
        assert_eq!(masked.code.chars().count(), masked.comments.chars().count());
    }

    #[test]
    fn comments_and_literals_are_blank() {
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check(r#"f("{ // \" }", x)"#, "f( , x)");
        check("f(r#\"{ \" }\"#, x)", "f( , x)");
        check("f(br\"{\", b\"}\", x)", "f(b , b , x)");
        check("f('{', '\\'', '\\u{7d}', x)", "f( , , , x)");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        check("let r#type = bar\"x\";", "let r#type = bar ;");
        check("r\"\" \"\\\\\" x", "x");
    }

    #[test]
    fn comments_are_kept_apart() {
        let masked = mask("x // one\n\"// no\" /* two */ y");
        assert_eq!(masked.comments.trim(), "// one\n        /* two */");
    }

    #[test]
    fn what_is_not_closed_does_not_panic() {
        for source in [
            "\"", "/*", "'", "'\\", "'\\n", "r#\"", "r", "b", "br#", "\"\\", "//",
        ] {
            mask(source);
        }
    }
}
