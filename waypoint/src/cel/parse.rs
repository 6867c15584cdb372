//! From text to a tree: by precedence, in one pass, with a bound on depth.

use regex::RegexBuilder;

use super::{Attribute, Binary, Node, Test, Value};
use crate::config::error::{Compiled, Unsupported};

/// Parentheses within each other; nobody writes as many, and the stack is not endless.
const MAX_DEPTH: u32 = 64;
/// Bytes that a pattern may take; as for other patterns.
const MAX_PATTERN: usize = 1 << 20;

/// Operators, loosest first.
const LEVELS: [&[(&str, Binary)]; 5] = [
    &[("||", Binary::Or)],
    &[("&&", Binary::And)],
    &[
        ("==", Binary::Equal),
        ("!=", Binary::NotEqual),
        ("<=", Binary::LessOrEqual),
        (">=", Binary::GreaterOrEqual),
        ("<", Binary::Less),
        (">", Binary::Greater),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[
        ("*", Binary::Multiply),
        ("/", Binary::Divide),
        ("%", Binary::Remainder),
    ],
];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Double(f64),
    Sign(&'static str),
}

pub(super) fn parse(text: &str) -> Compiled<Node> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
    };
    let root = parser.conditional()?;
    match parser.peek() {
        None => Ok(root),
        Some(token) => Err(unexpected(Some(token))),
    }
}

fn unexpected(token: Option<&Token>) -> Unsupported {
    match token {
        None => Unsupported::new("the expression ends too early"),
        Some(token) => Unsupported::new(format!("{token:?} is not expected in the expression")),
    }
}

fn tokens(text: &str) -> Compiled<Vec<Token>> {
    const SIGNS: [&str; 22] = [
        "||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "(", ")", "[",
        "]", ",", ".", "?", ":",
    ];
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            let (value, after) = quoted(rest, first)?;
            found.push(Token::Text(value));
            rest = after.trim_start();
            continue;
        }
        let word = |accept: fn(char) -> bool| {
            let end = rest.find(|c: char| !accept(c)).unwrap_or(rest.len());
            rest.split_at(end)
        };
        let after = if first.is_ascii_digit() {
            let (number, after) = word(|c| c.is_ascii_digit() || c == '.');
            found.push(number_of(number)?);
            // `5u` is unsigned, which makes no difference here.
            after.strip_prefix('u').unwrap_or(after)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let (name, after) = word(|c| c.is_ascii_alphanumeric() || c == '_');
            found.push(Token::Name(name.to_owned()));
            after
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
            let sign =
                sign.ok_or_else(|| Unsupported::new(format!("`{first}` in the expression")))?;
            found.push(Token::Sign(sign));
            rest.get(sign.len()..).unwrap_or_default()
        };
        rest = after.trim_start();
    }
    Ok(found)
}

fn number_of(text: &str) -> Compiled<Token> {
    let wrong = || Unsupported::new(format!("`{text}` is no number"));
    if text.contains('.') {
        text.parse().map(Token::Double).map_err(|_wrong| wrong())
    } else {
        text.parse().map(Token::Int).map_err(|_wrong| wrong())
    }
}

/// The text within quotes, and what follows it.
fn quoted(text: &str, quote: char) -> Compiled<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((position, character)) = characters.next() {
        match character {
            '\\' => {
                let escaped = characters.next().map(|(_, escaped)| escaped);
                value.push(match escaped {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some(plain @ ('\\' | '"' | '\'')) => plain,
                    Some(_) | None => return Err(Unsupported::new("an escape in a text")),
                });
            }
            end if end == quote => {
                let after = text.get(position + end.len_utf8()..).unwrap_or_default();
                return Ok((value, after));
            }
            plain => value.push(plain),
        }
    }
    Err(Unsupported::new("a text without its end"))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(known)) if *known == sign);
        self.at += usize::from(found);
        found
    }

    fn require(&mut self, sign: &str) -> Compiled<()> {
        if self.take(sign) {
            return Ok(());
        }
        Err(unexpected(self.peek()))
    }

    fn conditional(&mut self) -> Compiled<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Unsupported::new("an expression as deep as this"));
        }
        let condition = self.level(0)?;
        let node = if self.take("?") {
            let yes = self.conditional()?;
            self.require(":")?;
            let no = self.conditional()?;
            Node::If(Box::new([condition, yes, no]))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn level(&mut self, level: usize) -> Compiled<Node> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = self.operator(operators) {
            self.at += 1;
            let right = self.level(level + 1)?;
            left = Node::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn operator(&self, operators: &[(&str, Binary)]) -> Option<Binary> {
        let written = match self.peek()? {
            Token::Sign(sign) => sign,
            Token::Name(name) => name.as_str(),
            Token::Text(_) | Token::Int(_) | Token::Double(_) => return None,
        };
        let mut operators = operators.iter();
        operators
            .find(|(sign, _)| *sign == written)
            .map(|(_, operator)| *operator)
    }

    fn unary(&mut self) -> Compiled<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Unsupported::new("an expression as deep as this"));
        }
        let node = if self.take("!") {
            Node::Not(Box::new(self.unary()?))
        } else if self.take("-") {
            Node::Minus(Box::new(self.unary()?))
        } else {
            self.primary()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn primary(&mut self) -> Compiled<Node> {
        let node = match self.next() {
            Some(Token::Text(text)) => Node::Literal(Value::Text(text)),
            Some(Token::Int(number)) => Node::Literal(Value::Int(number)),
            Some(Token::Double(number)) => Node::Literal(Value::Double(number)),
            Some(Token::Sign("(")) => {
                let inner = self.conditional()?;
                self.require(")")?;
                inner
            }
            Some(Token::Sign("[")) => Node::List(self.list("]")?),
            Some(Token::Name(name)) => match name.as_str() {
                "true" => Node::Literal(Value::Bool(true)),
                "false" => Node::Literal(Value::Bool(false)),
                "null" => Node::Literal(Value::Null),
                _ if self.take("(") => self.function(&name)?,
                _ => return self.attribute(name),
            },
            other => return Err(unexpected(other.as_ref())),
        };
        self.methods(node)
    }

    fn list(&mut self, end: &str) -> Compiled<Vec<Node>> {
        let mut items = Vec::new();
        while !self.take(end) {
            if !items.is_empty() {
                self.require(",")?;
            }
            items.push(self.conditional()?);
        }
        Ok(items)
    }

    fn function(&mut self, name: &str) -> Compiled<Node> {
        let mut arguments = self.list(")")?;
        let argument = match (arguments.pop(), arguments.is_empty()) {
            (Some(argument), true) => Box::new(argument),
            _ => return Err(Unsupported::new(format!("{name}() takes one argument"))),
        };
        match name {
            "has" => Ok(Node::Has(argument)),
            "size" => Ok(Node::Size(argument)),
            "string" => Ok(Node::ToText(argument)),
            "int" => Ok(Node::ToInt(argument)),
            _ => Err(Unsupported::new(format!("the function {name}()"))),
        }
    }

    /// Names and indexes up to the first that is called.
    fn attribute(&mut self, first: String) -> Compiled<Node> {
        let mut path = vec![first];
        loop {
            if self.take("[") {
                let Some(Token::Text(key)) = self.next() else {
                    return Err(Unsupported::new("an index that is no text"));
                };
                self.require("]")?;
                path.push(key);
                continue;
            }
            let called = matches!(self.tokens.get(self.at + 2), Some(Token::Sign("(")));
            if called || !self.take(".") {
                break;
            }
            match self.next() {
                Some(Token::Name(name)) => path.push(name),
                other => return Err(unexpected(other.as_ref())),
            }
        }
        let node = Node::Attribute(Attribute::compile(&path)?);
        self.methods(node)
    }

    fn methods(&mut self, mut node: Node) -> Compiled<Node> {
        while self.take(".") {
            let Some(Token::Name(name)) = self.next() else {
                return Err(Unsupported::new("a method without a name"));
            };
            self.require("(")?;
            node = method(&name, node, self.list(")")?)?;
        }
        Ok(node)
    }
}

fn method(name: &str, of: Node, mut arguments: Vec<Node>) -> Compiled<Node> {
    let of = Box::new(of);
    let argument = arguments.pop();
    let is_only = arguments.is_empty();
    let test = match (name, argument, is_only) {
        ("size", None, true) => return Ok(Node::Size(of)),
        ("matches", Some(Node::Literal(Value::Text(pattern))), true) => {
            let pattern = RegexBuilder::new(&pattern)
                .size_limit(MAX_PATTERN)
                .build()
                .map_err(|error| Unsupported::new(format!("pattern `{pattern}`: {error}")))?;
            return Ok(Node::Matches(of, pattern));
        }
        ("startsWith", Some(part), true) => (Test::StartsWith, part),
        ("endsWith", Some(part), true) => (Test::EndsWith, part),
        ("contains", Some(part), true) => (Test::Contains, part),
        _ => return Err(Unsupported::new(format!("the method {name}()"))),
    };
    Ok(Node::Test(test.0, of, Box::new(test.1)))
}
