//! The forms of names and labels (RFC 1123 and the Kubernetes documents on names and labels).

const LABEL: &str = "must be at most 63 lower case letters, digits and hyphens, starting and ending with a letter or digit";
const SUBDOMAIN: &str = "must be lower case letters, digits, hyphens and dots, at most 253, each part starting and \
                         ending with a letter or digit";

fn is_dns_part(text: &str) -> bool {
    let lower_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes
        .iter()
        .all(|byte| lower_or_digit(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| lower_or_digit(*byte))
        && bytes.last().is_some_and(|byte| lower_or_digit(*byte))
}

/// One label of a DNS name.
pub(super) fn dns_label(text: &str) -> Result<(), String> {
    if text.len() <= 63 && is_dns_part(text) {
        Ok(())
    } else {
        Err(format!("`{text}` {LABEL}"))
    }
}

/// A DNS name.
pub(super) fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(is_dns_part) {
        Ok(())
    } else {
        Err(format!("`{text}` {SUBDOMAIN}"))
    }
}

/// A port name: at most 15 lower case letters, digits and single hyphens, with at least one letter.
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let good = text.len() <= 15
        && is_dns_part(text)
        && !text.contains("--")
        && text.bytes().any(|byte| byte.is_ascii_lowercase());
    if good {
        Ok(())
    } else {
        Err(format!(
            "`{text}` is neither a port number nor a port name (at most 15 lower case letters, digits and hyphens)"
        ))
    }
}

/// The value of a label.
pub(super) fn label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || is_qualified_part(text) {
        Ok(())
    } else {
        Err(format!(
            "label value `{text}` must be at most 63 letters, digits, `-`, `_` and `.`, starting and ending with a \
             letter or digit"
        ))
    }
}

/// The key of a label or annotation: `name` or `prefix.example/name`.
pub(super) fn label_key(text: &str) -> Result<(), String> {
    let (prefix, name) = text
        .rsplit_once('/')
        .map_or((None, text), |(p, n)| (Some(p), n));
    if is_qualified_part(name) && prefix.is_none_or(|prefix| dns_subdomain(prefix).is_ok()) {
        Ok(())
    } else {
        Err(format!(
            "`{text}` is not a label key, which has the form name or prefix.example/name"
        ))
    }
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}
