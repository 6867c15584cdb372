//! From file text to documents, and from one document to a tree that knows the line of each value.
//!
//! Documents are cut at `---` lines before parsing, so that a document that is not YAML cannot take its neighbours along.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::objects::field::Segment;

/// One document of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// Number of its first line in the file, from 1.
    pub(crate) first_line: usize,
    /// Its text, without the marker.
    pub(crate) text: String,
}

/// Cuts a file at document markers; documents that say nothing (blank, comments, directives) are left out.
pub(crate) fn split(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut current = Document {
        first_line: 1,
        text: String::new(),
    };
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if let Some(rest) = after_marker(line) {
            let next = Document {
                first_line: index + 1,
                // Spaces in place of the marker keep the columns of what follows it.
                text: format!("   {rest}"),
            };
            documents.push(std::mem::replace(&mut current, next));
        } else {
            current.text.push_str(line);
        }
    }
    documents.push(current);
    documents.retain(|document| document.text.lines().any(says_something));
    documents
}

/// What follows `---` on a line that starts a document.
fn after_marker(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("---")?;
    rest.chars()
        .next()
        .is_none_or(char::is_whitespace)
        .then_some(rest)
}

fn says_something(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%') && line != "..."
}

/// Kind, namespace, name as far as they can be seen in a document that is not YAML, and whether it looks like a status.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) has_spec: bool,
    pub(crate) has_status: bool,
}

/// Reads block-style `kind:` and `metadata:` lines; used only when parsing failed, to know whose last version to keep.
/// `None` when a key is there twice: then these are two documents, or it is not clear whose.
pub(crate) fn scan_header(text: &str) -> Option<Header> {
    let mut header = Header::default();
    let mut in_metadata = false;
    let mut metadata_indent = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let Some((key, value)) = line.trim().split_once(':') else {
            continue;
        };
        let value = value.split(" #").next().unwrap_or_default();
        let value = value.trim().trim_matches(['"', '\'']).to_owned();
        if indent == 0 {
            in_metadata = key == "metadata";
            metadata_indent = None;
            match key {
                "kind" => set_once(&mut header.kind, value)?,
                "spec" => header.has_spec = true,
                "status" => header.has_status = true,
                _ => {}
            }
        } else if in_metadata && *metadata_indent.get_or_insert(indent) == indent {
            match key {
                "name" => set_once(&mut header.name, value)?,
                "namespace" => set_once(&mut header.namespace, value)?,
                _ => {}
            }
        }
    }
    Some(header)
}

fn set_once(field: &mut Option<String>, value: String) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

/// A value and the line, within its document, on which it starts.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    line: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Scalar(Value),
    List(Vec<Node>),
    /// Each with the line of its key.
    Map(Vec<(String, u64, Node)>),
}

/// Why a document is not YAML that Kubernetes would take.
#[derive(Debug)]
pub(crate) struct NotYaml {
    pub(crate) line: Option<u64>,
    pub(crate) reason: String,
}

impl Node {
    /// Parses one document.
    pub(crate) fn parse(text: &str) -> Result<Self, NotYaml> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            // What kubectl's parser does with file modes.
            legacy_octal_numbers: true,
        };
        serde_saphyr::from_str_with_options::<Spanned<Content>>(text, options)
            .map(Self::from_spanned)
            .map_err(|error| NotYaml {
                line: error.location().map(|location| location.line()),
                reason: without_place(&one_line(&error.without_snippet().to_string())).to_owned(),
            })
    }

    fn from_spanned(spanned: Spanned<Content>) -> Self {
        Self {
            line: spanned.referenced.line(),
            content: spanned.value,
        }
    }

    /// The same without lines, as JSON.
    pub(crate) fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Content::Map(entries) => entries
                .iter()
                .map(|(key, _, node)| (key.clone(), node.to_value()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// The line of the deepest part of `path` that exists.
    pub(crate) fn line_of(&self, path: &[Segment]) -> u64 {
        let mut node = self;
        let mut line = self.line;
        for segment in path {
            let next = match (&node.content, segment) {
                (Content::Map(entries), Segment::Key(key)) => entries
                    .iter()
                    .find(|(name, _, _)| name == key)
                    .map(|(_, key_line, child)| (*key_line, child)),
                (Content::List(items), Segment::Index(index)) => {
                    items.get(*index).map(|child| (child.line, child))
                }
                (Content::Scalar(_) | Content::List(_) | Content::Map(_), _) => None,
            };
            let Some((found, child)) = next else { break };
            line = found;
            node = child;
        }
        line
    }

    /// An entry of a map.
    pub(crate) fn child(&self, key: &str) -> Option<&Self> {
        let Content::Map(entries) = &self.content else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _, _)| name == key)
            .map(|(_, _, node)| node)
    }

    /// The elements of a list.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.content {
            Content::List(items) => items,
            Content::Scalar(_) | Content::Map(_) => &[],
        }
    }

    /// The text of a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(Value::String(text)) => Some(text),
            Content::Scalar(_) | Content::List(_) | Content::Map(_) => None,
        }
    }

    /// Whether it is null.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.content, Content::Scalar(Value::Null))
    }

    /// Whether it is a map.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.content, Content::Map(_))
    }
}

/// The parser counts lines from the document's start; the line of an issue is that in the file.
fn without_place(text: &str) -> &str {
    match text.rsplit_once(" at line ") {
        Some((reason, place)) if place.starts_with(|c: char| c.is_ascii_digit()) => reason,
        Some(_) | None => text,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Content::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Content>>()? {
            items.push(Node::from_spanned(item));
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = Node::from_spanned(map.next_value::<Spanned<Content>>()?);
            entries.push((key.value, key.referenced.line(), value));
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests;
