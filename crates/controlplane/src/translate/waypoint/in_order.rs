//! The same bytes for the same message, in this process and in the next. Maps of protobuf have no order on the wire, and
//! those of the crate `envoy-types` come out in any; here their entries are sorted by key, which any reader takes. By the
//! bytes a resource has its version: if that differed after a restart, all proxies would be told everything again.
//!
//! Messages within an `Any` are encoded before and not looked at: who makes one with a map writes that in order himself.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
    extensions::transport_sockets::tls::v3::Secret,
};
use prost::{
    Message,
    bytes::Buf,
    encoding::{WireType, decode_key, decode_varint},
};

use crate::translate::resource::append;

/// Where a message has maps: fields by their number.
pub(super) struct Shape(&'static [(u32, Part)]);

enum Part {
    /// A message with maps in it, or several.
    Of(&'static Shape),
    /// A map of such messages.
    Map(&'static Shape),
}

use Part::{Map, Of};

/// Without maps.
static PLAIN: Shape = Shape(&[]);
/// `google.protobuf.Struct`, and what it is made of.
static STRUCT: Shape = Shape(&[(1, Map(&VALUE))]);
static VALUE: Shape = Shape(&[(5, Of(&STRUCT)), (6, Of(&LIST))]);
static LIST: Shape = Shape(&[(1, Of(&VALUE))]);
static METADATA: Shape = Shape(&[(1, Map(&STRUCT)), (2, Map(&PLAIN))]);

static WEIGHT: Shape = Shape(&[(3, Of(&METADATA)), (10, Map(&PLAIN))]);
static WEIGHTS: Shape = Shape(&[(1, Of(&WEIGHT))]);
static ROUTE_ACTION: Shape = Shape(&[(3, Of(&WEIGHTS)), (4, Of(&METADATA))]);
static ROUTE: Shape = Shape(&[
    (2, Of(&ROUTE_ACTION)),
    (4, Of(&METADATA)),
    (13, Map(&PLAIN)),
]);
static HOST: Shape = Shape(&[(3, Of(&ROUTE)), (15, Map(&PLAIN)), (24, Of(&METADATA))]);

static ENDPOINT: Shape = Shape(&[(3, Of(&METADATA))]);
static LOCALITY: Shape = Shape(&[(2, Of(&ENDPOINT)), (9, Of(&METADATA))]);
static SOCKET_MATCH: Shape = Shape(&[(2, Of(&STRUCT))]);
static CHAIN: Shape = Shape(&[(5, Of(&METADATA))]);

/// A message whose maps are known.
pub(super) trait InOrder: Message + PartialEq + Sized {
    /// Where they are.
    fn shape() -> &'static Shape;

    /// The bytes, always the same.
    fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.encode_to_vec();
        // What was just encoded can be read; were it not so, it would be sent as it is.
        sorted(&bytes, Self::shape()).unwrap_or(bytes)
    }
}

impl InOrder for RouteConfiguration {
    fn shape() -> &'static Shape {
        static SHAPE: Shape = Shape(&[(2, Of(&HOST)), (16, Map(&PLAIN)), (17, Of(&METADATA))]);
        &SHAPE
    }
}

impl InOrder for ClusterLoadAssignment {
    fn shape() -> &'static Shape {
        static SHAPE: Shape = Shape(&[(2, Of(&LOCALITY)), (5, Map(&PLAIN))]);
        &SHAPE
    }
}

impl InOrder for Cluster {
    fn shape() -> &'static Shape {
        static SHAPE: Shape = Shape(&[
            (25, Of(&METADATA)),
            (33, Of(&ASSIGNMENT)),
            (36, Map(&PLAIN)),
            (43, Of(&SOCKET_MATCH)),
        ]);
        static ASSIGNMENT: Shape = Shape(&[(2, Of(&LOCALITY)), (5, Map(&PLAIN))]);
        &SHAPE
    }
}

impl InOrder for Listener {
    fn shape() -> &'static Shape {
        static SHAPE: Shape = Shape(&[(3, Of(&CHAIN)), (6, Of(&METADATA)), (25, Of(&CHAIN))]);
        &SHAPE
    }
}

impl InOrder for Secret {
    fn shape() -> &'static Shape {
        &PLAIN
    }
}

/// The message with the entries of each map by their keys, where the first of them was. `None` when it cannot be read.
fn sorted(message: &[u8], shape: &Shape) -> Option<Vec<u8>> {
    if shape.0.is_empty() {
        return Some(message.to_vec());
    }
    let mut out = Vec::with_capacity(message.len());
    // Entries of the map that is being read, and its number: an encoder writes them one after the other.
    let (mut entries, mut of) = (Vec::new(), 0);
    let mut rest = message;
    while rest.has_remaining() {
        let start = rest;
        let (number, wire) = decode_key(&mut rest).ok()?;
        let content = match wire {
            WireType::LengthDelimited => Some(take(&mut rest)?),
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                None
            }
            WireType::ThirtyTwoBit => {
                rest = rest.get(4..)?;
                None
            }
            WireType::SixtyFourBit => {
                rest = rest.get(8..)?;
                None
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let part = shape.0.iter().find(|(known, _)| *known == number);
        if number != of {
            flush(&mut entries, of, &mut out);
        }
        match (content, part) {
            (Some(content), Some((_, Map(value)))) => {
                entries.push(entry(content, value)?);
                of = number;
            }
            (Some(content), Some((_, Of(inner)))) => {
                append(number, &sorted(content, inner)?, &mut out);
            }
            (_, _) => out.extend_from_slice(&start[..start.len() - rest.len()]),
        }
    }
    flush(&mut entries, of, &mut out);
    Some(out)
}

/// An entry with its key: field 1 the key, field 2 the value.
fn entry(entry: &[u8], value: &'static Shape) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut rest = entry;
    let mut key = Vec::new();
    while rest.has_remaining() {
        let (number, wire) = decode_key(&mut rest).ok()?;
        // All keys here are texts, and all values messages.
        if wire != WireType::LengthDelimited {
            return None;
        }
        let content = take(&mut rest)?;
        if number == 1 {
            key = content.to_vec();
        }
    }
    let of_value = if value.0.is_empty() {
        entry.to_vec()
    } else {
        let mut made = Vec::with_capacity(entry.len());
        let mut rest = entry;
        while rest.has_remaining() {
            let (number, _) = decode_key(&mut rest).ok()?;
            let content = take(&mut rest)?;
            match number {
                2 => append(number, &sorted(content, value)?, &mut made),
                _ => append(number, content, &mut made),
            }
        }
        made
    };
    Some((key, of_value))
}

fn flush(entries: &mut Vec<(Vec<u8>, Vec<u8>)>, number: u32, out: &mut Vec<u8>) {
    entries.sort();
    for (_, entry) in entries.drain(..) {
        append(number, &entry, out);
    }
}

/// The content of a field with a length.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (content, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(content)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::config::{
            core::v3::Metadata,
            endpoint::v3::{LbEndpoint, LocalityLbEndpoints},
            route::v3::{Route, VirtualHost},
        },
        google::protobuf::{Any, Struct, Value, value::Kind},
    };

    use super::*;

    /// A map that comes out in another order each time that it is made.
    fn map<T>(value: impl Fn(usize) -> T) -> std::collections::HashMap<String, T> {
        (0..12).map(|n| (format!("key-{n}"), value(n))).collect()
    }

    fn check<M: InOrder + Default + std::fmt::Debug>(make: impl Fn() -> M) {
        let bytes = make().to_bytes();
        assert_eq!(M::decode(bytes.as_slice()).unwrap(), make());
        for _ in 0..10 {
            assert_eq!(make().to_bytes(), bytes);
        }
    }

    #[test]
    fn a_message_always_has_the_same_bytes_and_reads_back() {
        let any = |n: usize| Any {
            type_url: n.to_string(),
            value: vec![7; n],
        };
        check(|| RouteConfiguration {
            name: "table".to_owned(),
            virtual_hosts: vec![VirtualHost {
                routes: vec![Route {
                    name: "route".to_owned(),
                    typed_per_filter_config: map(any),
                    ..Route::default()
                }],
                typed_per_filter_config: map(any),
                ..VirtualHost::default()
            }],
            max_direct_response_body_size_bytes: Some(
                envoy_types::pb::google::protobuf::UInt32Value { value: 7 },
            ),
            ..RouteConfiguration::default()
        });
        let text = |n: usize| Value {
            kind: Some(Kind::StringValue(n.to_string())),
        };
        let fields = move |_: usize| Struct { fields: map(text) };
        let metadata = || Metadata {
            filter_metadata: map(fields),
            typed_filter_metadata: map(any),
        };
        check(|| ClusterLoadAssignment {
            cluster_name: "cluster".to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    metadata: Some(metadata()),
                    ..LbEndpoint::default()
                }],
                priority: 3,
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        });
        check(|| Cluster {
            name: "cluster".to_owned(),
            metadata: Some(metadata()),
            typed_extension_protocol_options: map(any),
            ..Cluster::default()
        });
    }
}
