//! Format strings over a request that is under way: there is no response yet.

use std::{borrow::Cow, time::SystemTime};

use serde_json::Value;

use super::{
    pipeline::Exchange,
    server::{Destination, HttpConnection},
};
use crate::{
    format::{Field, Source, Told},
    listener::Client,
};

/// A request on its connection.
#[derive(Clone, Copy)]
pub(crate) struct RequestSource<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) conn: &'a HttpConnection,
}

impl Source for RequestSource<'_> {
    fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        let exchange = self.exchange;
        match name {
            ":method" => Some(exchange.head.method.as_str().into()),
            ":path" => Some(exchange.path.as_str().into()),
            ":authority" | "host" => Some(exchange.authority.as_str().into()),
            ":scheme" => Some("http".into()),
            name => joined(&exchange.head.headers, name),
        }
    }

    fn response(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn trailer(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn metadata(&self, path: &[String]) -> Option<Cow<'_, str>> {
        metadata(&self.exchange.metadata, path)
    }

    fn field(&self, field: Field) -> Option<Told<'_>> {
        self.conn.field(field)
    }

    fn start(&self) -> SystemTime {
        SystemTime::now()
    }
}

impl HttpConnection {
    /// What is known of the connection alone.
    pub(crate) fn field(&self, field: Field) -> Option<Told<'_>> {
        match field {
            Field::LocalPrincipal => Some(Told::text(self.shared.settings.identity.to_string())),
            other => self.client.field(&self.destination, other),
        }
    }
}

impl Client {
    /// What is known of a client and where it wants to go. What only a finished request has is not there.
    pub(crate) fn field(&self, destination: &Destination, field: Field) -> Option<Told<'_>> {
        match field {
            Field::DownstreamRemote => Some(Told::text(self.addr.to_string())),
            Field::DownstreamRemoteWithoutPort => Some(Told::text(self.addr.ip().to_string())),
            Field::DownstreamRemotePort => Some(Told::Number(self.addr.port().into())),
            Field::DownstreamLocal => Some(Told::text(destination.to_string())),
            Field::DownstreamLocalWithoutPort => Some(match destination.address() {
                Some(addr) => Told::text(addr.ip().to_string()),
                None => Told::text(destination.to_string()),
            }),
            Field::DownstreamLocalPort => Some(Told::Number(destination.port().into())),
            Field::PeerPrincipal => Some(Told::text(&*self.principal)),
            _ => None,
        }
    }
}

/// All values of a header, joined as they would be on one line.
pub(crate) fn joined<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = String::from_utf8_lossy(values.next()?.as_bytes());
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first);
    }
    let mut all = first.into_owned();
    for value in rest {
        all.push(',');
        all.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    Some(all.into())
}

/// A value that a filter left, as text.
pub(crate) fn metadata<'a>(
    metadata: &'a serde_json::Map<String, Value>,
    path: &[String],
) -> Option<Cow<'a, str>> {
    let (first, rest) = path.split_first()?;
    let mut value = metadata.get(first)?;
    for key in rest {
        value = value.get(key)?;
    }
    Some(match value {
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    })
}
