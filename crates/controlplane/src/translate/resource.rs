//! Encoding, always the same for the same content, with the version taken from the bytes.

use std::{collections::BTreeMap, fmt::Write};

use leyline_proto::{
    envoy::service::discovery::v3 as discovery,
    istio::{
        security::Authorization,
        workload::{Address, PortList, Service, Workload, address},
    },
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use sha2::{Digest, Sha256};

/// Resources by name.
pub type Resources = BTreeMap<String, Resource>;

/// One xDS resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Changes exactly when the body does.
    pub version: String,
    /// The encoded message.
    pub body: bytes::Bytes,
}

impl Resource {
    pub(super) fn new(body: Vec<u8>) -> Self {
        // Half of the digest: enough that two contents never meet, and short in logs.
        let mut version = String::with_capacity(32);
        for byte in &Sha256::digest(&body)[..16] {
            // Writing to a string cannot fail.
            let _written = write!(version, "{byte:02x}");
        }
        Self {
            version,
            body: body.into(),
        }
    }

    /// For a response.
    pub(crate) fn to_wire(&self, name: &str, type_url: &str) -> discovery::Resource {
        discovery::Resource {
            name: name.to_owned(),
            version: self.version.clone(),
            resource: Some(prost_types::Any {
                type_url: type_url.to_owned(),
                value: self.body.to_vec(),
            }),
            aliases: Vec::new(),
        }
    }
}

/// Field `workload` of `Address`.
const ADDRESS_WORKLOAD: u32 = 1;
/// Field `services` of `Workload`.
const WORKLOAD_SERVICES: u32 = 22;

/// A map field has no order on the wire, so that generated code writes it in any; here it is written sorted, after the
/// other fields (protobuf allows any order).
pub(super) fn workload(workload: &Workload) -> Resource {
    let mut plain = workload.clone();
    let services: BTreeMap<String, PortList> = plain.services.drain().collect();
    let mut message = plain.encode_to_vec();
    for (name, ports) in services {
        let mut entry = Vec::new();
        prost::encoding::string::encode(1, &name, &mut entry);
        prost::encoding::message::encode(2, &ports, &mut entry);
        append(WORKLOAD_SERVICES, &entry, &mut message);
    }
    let mut address = Vec::with_capacity(message.len() + 4);
    append(ADDRESS_WORKLOAD, &message, &mut address);
    Resource::new(address)
}

/// Encodes a field of bytes; for maps, which have no order of their own.
pub(super) fn append(field: u32, bytes: &[u8], to: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

pub(super) fn service(service: &Service) -> Resource {
    let address = Address {
        r#type: Some(address::Type::Service(service.clone())),
    };
    Resource::new(address.encode_to_vec())
}

pub(super) fn authorization(policy: &Authorization) -> Resource {
    Resource::new(policy.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_with_many_services_always_has_the_same_bytes_and_reads_back() {
        let build = || {
            let ports = |port| PortList {
                ports: vec![leyline_proto::istio::workload::Port {
                    service_port: port,
                    target_port: port,
                    app_protocol: 0,
                }],
            };
            Workload {
                uid: "c//Pod/a/b".to_owned(),
                services: (1..50).map(|n| (format!("a/s{n}"), ports(n))).collect(),
                ..Workload::default()
            }
        };
        let (one, two) = (workload(&build()), workload(&build()));
        assert_eq!(one, two);
        let read = Address::decode(one.body).unwrap();
        assert_eq!(read.r#type, Some(address::Type::Workload(build())));
    }
}
