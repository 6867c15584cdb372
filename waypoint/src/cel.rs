//! Expressions of the Common Expression Language, as Telemetry objects use them: which requests are logged
//! (`response.code >= 400`) and what a metric's tag is (`request.host`). The attributes are Envoy's; what is not known
//! refuses the configuration when it arrives.
//!
//! The part of CEL that is here: literals, attributes, `[]`, `!`, `-`, `*`, `/`, `%`, `+`, comparisons, `in`, `&&`, `||`, `? :`, lists,
//! `has()`, `size()`, `string()`, `int()`, and `startsWith`, `endsWith`, `contains`, `matches` on texts.

mod attribute;
mod parse;

use std::cmp::Ordering;

use regex::Regex;

use crate::{
    config::error::Compiled,
    format::{Needed, Source},
};
use attribute::Attribute;

/// A parsed expression.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    root: Node,
}

/// A value. What is missing, or is of the wrong type, is an error that a whole can still be true in spite of: `a || true`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    List(Vec<Self>),
    Null,
    Error,
}

#[derive(Clone, Debug)]
enum Node {
    Literal(Value),
    Attribute(Attribute),
    List(Vec<Self>),
    Not(Box<Self>),
    Minus(Box<Self>),
    Binary(Binary, Box<Self>, Box<Self>),
    If(Box<[Self; 3]>),
    Has(Box<Self>),
    Size(Box<Self>),
    ToText(Box<Self>),
    ToInt(Box<Self>),
    Test(Test, Box<Self>, Box<Self>),
    Matches(Box<Self>, Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    StartsWith,
    EndsWith,
    Contains,
}

impl Expression {
    pub(crate) fn compile(text: &str) -> Compiled<Self> {
        parse::parse(text).map(|root| Self { root })
    }

    /// Whether it holds; an error does not.
    pub(crate) fn is_true(&self, source: &dyn Source) -> bool {
        self.root.value(source) == Value::Bool(true)
    }

    /// Its value as a label; `None` for an error.
    pub(crate) fn text(&self, source: &dyn Source) -> Option<String> {
        self.root.value(source).into_text()
    }

    /// Headers that it asks for.
    pub(crate) fn headers(&self) -> Needed {
        let mut needed = Needed::default();
        self.root.needs(&mut needed);
        needed
    }
}

impl Value {
    fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bool(flag) => Some(flag.to_string()),
            Self::Int(number) => Some(number.to_string()),
            Self::Double(number) => Some(number.to_string()),
            Self::List(_) | Self::Null | Self::Error => None,
        }
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            // Exact for all that is counted here.
            (Self::Int(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Double(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            _ => None,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b))
            }
            (Self::Null, Self::Null) => true,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}

impl Node {
    fn value(&self, source: &dyn Source) -> Value {
        match self {
            Self::Literal(value) => value.clone(),
            Self::Attribute(attribute) => attribute.value(source),
            Self::List(items) => Value::List(items.iter().map(|item| item.value(source)).collect()),
            Self::Not(inner) => match inner.value(source) {
                Value::Bool(flag) => Value::Bool(!flag),
                _ => Value::Error,
            },
            Self::Minus(inner) => match inner.value(source) {
                Value::Int(number) => Value::Int(number.saturating_neg()),
                Value::Double(number) => Value::Double(-number),
                _ => Value::Error,
            },
            Self::Binary(operator, left, right) => binary(*operator, left, right, source),
            Self::If(parts) => {
                let [condition, yes, no] = parts.as_ref();
                match condition.value(source) {
                    Value::Bool(true) => yes.value(source),
                    Value::Bool(false) => no.value(source),
                    _ => Value::Error,
                }
            }
            Self::Has(inner) => Value::Bool(inner.value(source) != Value::Error),
            Self::Size(inner) => match inner.value(source) {
                Value::Text(text) => Value::Int(count(text.chars().count())),
                Value::List(items) => Value::Int(count(items.len())),
                _ => Value::Error,
            },
            Self::ToText(inner) => inner
                .value(source)
                .into_text()
                .map_or(Value::Error, Value::Text),
            Self::ToInt(inner) => match inner.value(source) {
                Value::Int(number) => Value::Int(number),
                // Saturates.
                Value::Double(number) => Value::Int(number as i64),
                Value::Text(text) => text.parse().map_or(Value::Error, Value::Int),
                _ => Value::Error,
            },
            Self::Test(test, text, part) => match (text.value(source), part.value(source)) {
                (Value::Text(text), Value::Text(part)) => Value::Bool(match test {
                    Test::StartsWith => text.starts_with(&part),
                    Test::EndsWith => text.ends_with(&part),
                    Test::Contains => text.contains(&part),
                }),
                _ => Value::Error,
            },
            Self::Matches(text, pattern) => match text.value(source) {
                Value::Text(text) => Value::Bool(pattern.is_match(&text)),
                _ => Value::Error,
            },
        }
    }

    fn needs(&self, needed: &mut Needed) {
        match self {
            Self::Literal(_) => {}
            Self::Attribute(attribute) => attribute.needs(needed),
            Self::List(items) => items.iter().for_each(|item| item.needs(needed)),
            Self::Not(inner)
            | Self::Minus(inner)
            | Self::Has(inner)
            | Self::Size(inner)
            | Self::ToText(inner)
            | Self::ToInt(inner)
            | Self::Matches(inner, _) => inner.needs(needed),
            Self::Binary(_, left, right) | Self::Test(_, left, right) => {
                left.needs(needed);
                right.needs(needed);
            }
            Self::If(parts) => parts.iter().for_each(|part| part.needs(needed)),
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `&&` and `||` are decided by either side where that is enough, whatever the other is.
fn binary(operator: Binary, left: &Node, right: &Node, source: &dyn Source) -> Value {
    let decides = match operator {
        Binary::Or => Some(true),
        Binary::And => Some(false),
        _ => None,
    };
    let left = left.value(source);
    if let Some(decides) = decides {
        if left == Value::Bool(decides) {
            return left;
        }
        let right = right.value(source);
        return match (left, right) {
            (_, Value::Bool(flag)) if flag == decides => Value::Bool(flag),
            (Value::Bool(_), Value::Bool(flag)) => Value::Bool(flag),
            _ => Value::Error,
        };
    }
    let right = right.value(source);
    if left == Value::Error || right == Value::Error {
        return Value::Error;
    }
    let order = |accept: fn(Ordering) -> bool| match left.compare(&right) {
        Some(order) => Value::Bool(accept(order)),
        None => Value::Error,
    };
    match operator {
        Binary::Or | Binary::And => Value::Error,
        Binary::Equal => Value::Bool(left.equals(&right)),
        Binary::NotEqual => Value::Bool(!left.equals(&right)),
        Binary::Less => order(Ordering::is_lt),
        Binary::LessOrEqual => order(Ordering::is_le),
        Binary::Greater => order(Ordering::is_gt),
        Binary::GreaterOrEqual => order(Ordering::is_ge),
        Binary::In => match &right {
            Value::List(items) => Value::Bool(items.iter().any(|item| item.equals(&left))),
            _ => Value::Error,
        },
        Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Remainder => {
            arithmetic(operator, left, right)
        }
    }
}

fn arithmetic(operator: Binary, left: Value, right: Value) -> Value {
    let whole = |value: Option<i64>| value.map_or(Value::Error, Value::Int);
    match (operator, left, right) {
        (Binary::Add, Value::Text(a), Value::Text(b)) => Value::Text(a + &b),
        (Binary::Add, Value::Int(a), Value::Int(b)) => whole(a.checked_add(b)),
        (Binary::Subtract, Value::Int(a), Value::Int(b)) => whole(a.checked_sub(b)),
        (Binary::Multiply, Value::Int(a), Value::Int(b)) => whole(a.checked_mul(b)),
        (Binary::Divide, Value::Int(a), Value::Int(b)) => whole(a.checked_div(b)),
        (Binary::Remainder, Value::Int(a), Value::Int(b)) => whole(a.checked_rem(b)),
        (Binary::Add, Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Binary::Subtract, Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        (Binary::Multiply, Value::Double(a), Value::Double(b)) => Value::Double(a * b),
        (Binary::Divide, Value::Double(a), Value::Double(b)) => Value::Double(a / b),
        _ => Value::Error,
    }
}

#[cfg(test)]
mod tests;
