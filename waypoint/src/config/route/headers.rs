//! What is done to headers: removed first, then set or added (Envoy does it in this order).

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValueOption, header_value_option::HeaderAppendAction,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::error::{At, Compiled, Unsupported};

/// Changes of one level (route, virtual host, ...).
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderOps {
    pub(crate) request: HeaderChanges,
    pub(crate) response: HeaderChanges,
    /// `:authority` or `host` was set.
    pub(crate) authority: Option<String>,
}

/// Changes of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderChanges {
    remove: Vec<HeaderName>,
    put: Vec<Put>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Put {
    name: HeaderName,
    value: HeaderValue,
    how: HeaderAppendAction,
}

impl HeaderOps {
    pub(crate) fn compile(
        request_remove: &[String],
        request_add: &[HeaderValueOption],
        response_remove: &[String],
        response_add: &[HeaderValueOption],
    ) -> Compiled<Self> {
        let is_authority = |option: &&HeaderValueOption| {
            option.header.as_ref().is_some_and(|header| {
                header.key.eq_ignore_ascii_case(":authority")
                    || header.key.eq_ignore_ascii_case("host")
            })
        };
        let authority = request_add.iter().find(is_authority);
        let request_add = request_add.iter().filter(|option| !is_authority(option));
        Ok(Self {
            request: HeaderChanges::compile(request_remove, request_add).at("request headers")?,
            response: HeaderChanges::compile(response_remove, response_add.iter())
                .at("response headers")?,
            authority: authority.and_then(|option| Some(option.header.as_ref()?.value.clone())),
        })
    }
}

impl HeaderChanges {
    fn compile<'a>(
        remove: &[String],
        add: impl Iterator<Item = &'a HeaderValueOption>,
    ) -> Compiled<Self> {
        let mut changes = Self::default();
        for text in remove {
            changes.remove.push(name(text)?);
        }
        for option in add {
            let header = option.header.as_ref();
            let header = header.ok_or_else(|| Unsupported::missing("header"))?;
            let value = if header.raw_value.is_empty() {
                literal(&header.value).at(&header.key)?
            } else {
                HeaderValue::from_bytes(&header.raw_value)
                    .map_err(|_not_a_value| Unsupported::new("not a header value"))
                    .at(&header.key)?
            };
            changes.put.push(Put {
                name: name(&header.key)?,
                value,
                how: how(option)?,
            });
        }
        Ok(changes)
    }

    /// Those of `other` come after.
    pub(crate) fn extend(&mut self, other: Self) {
        self.remove.extend(other.remove);
        self.put.extend(other.put);
    }

    /// One more header, put after those before it.
    pub(crate) fn put(&mut self, name: HeaderName, value: HeaderValue, how: HeaderAppendAction) {
        self.put.push(Put { name, value, how });
    }

    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for Put { name, value, how } in &self.put {
            match how {
                HeaderAppendAction::AppendIfExistsOrAdd => {
                    headers.append(name, value.clone());
                }
                HeaderAppendAction::AddIfAbsent => {
                    headers.entry(name).or_insert_with(|| value.clone());
                }
                HeaderAppendAction::OverwriteIfExistsOrAdd => {
                    headers.insert(name, value.clone());
                }
                HeaderAppendAction::OverwriteIfExists => {
                    if headers.contains_key(name) {
                        headers.insert(name, value.clone());
                    }
                }
            }
        }
    }
}

pub(crate) fn name(text: &str) -> Compiled<HeaderName> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_not_a_name| Unsupported::new(format!("`{text}` is no name of a header")))
}

/// A value without command operators; `%%` is a percent sign.
fn literal(text: &str) -> Compiled<HeaderValue> {
    let plain = text.replace("%%", "");
    if plain.contains('%') {
        return Err(Unsupported::new(format!(
            "command operators in header values (`{text}`)"
        )));
    }
    HeaderValue::from_str(&text.replace("%%", "%"))
        .map_err(|_not_a_value| Unsupported::new(format!("`{text}` is no header value")))
}

#[expect(deprecated, reason = "older control planes send it")]
pub(crate) fn how(option: &HeaderValueOption) -> Compiled<HeaderAppendAction> {
    if let Some(append) = &option.append {
        return Ok(if append.value {
            HeaderAppendAction::AppendIfExistsOrAdd
        } else {
            HeaderAppendAction::OverwriteIfExistsOrAdd
        });
    }
    HeaderAppendAction::try_from(option.append_action)
        .map_err(|_unknown| Unsupported::new("append_action"))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderValue as Proto;

    use super::*;

    fn option(key: &str, value: &str, how: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(Proto {
                key: key.to_owned(),
                value: value.to_owned(),
                ..Proto::default()
            }),
            append_action: how.into(),
            ..HeaderValueOption::default()
        }
    }

    #[test]
    fn headers_are_removed_before_they_are_put() {
        use HeaderAppendAction as Action;
        let add = [
            option("x-a", "new", Action::AppendIfExistsOrAdd),
            option("x-b", "2", Action::AppendIfExistsOrAdd),
            option("x-c", "other", Action::AddIfAbsent),
            option("x-d", "100%%", Action::OverwriteIfExistsOrAdd),
            option("x-e", "none", Action::OverwriteIfExists),
            option("Host", "other.example", Action::OverwriteIfExistsOrAdd),
        ];
        let ops = HeaderOps::compile(&["x-a".to_owned()], &add, &[], &[]).unwrap();
        assert_eq!(ops.authority.as_deref(), Some("other.example"));
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", "old"), ("x-b", "1"), ("x-c", "3"), ("x-d", "4")] {
            headers.insert(name, value.parse().unwrap());
        }
        ops.request.apply(&mut headers);
        let values = |name: &str| -> Vec<&str> {
            let values = headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(values("x-a"), ["new"]);
        assert_eq!(values("x-b"), ["1", "2"]);
        assert_eq!(values("x-c"), ["3"]);
        assert_eq!(values("x-d"), ["100%"]);
        assert!(values("x-e").is_empty() && values("host").is_empty());
    }

    #[test]
    fn a_value_that_would_have_to_be_computed_is_refused() {
        let add = [option("x", "%REQ(a)%", HeaderAppendAction::AddIfAbsent)];
        assert!(HeaderOps::compile(&[], &add, &[], &[]).is_err());
    }
}
