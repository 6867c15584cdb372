//! The small parts that several resources share: addresses, blocks, ports, enum values, gateways.

use std::net::IpAddr;

use ipnet::IpNet;
use leyline_proto::istio::workload as proto;
use leyline_types::{Network, NetworkAddress, ServiceKey, Str};

use super::error::{FieldError, Problem};
use crate::workload::{Gateway, GatewayDestination};

/// Prefix of an IPv4 address that is written as IPv6 (`::ffff:0:0/96`).
const MAPPED_V4_BITS: u32 = 96;

/// An address of 4 or 16 bytes; a mapped IPv4 address becomes IPv4.
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(Problem::AddressLength(bytes.len())),
    }
}

/// A block of addresses without host bits.
pub(super) fn block(bytes: &[u8], length: u32) -> Result<IpNet, Problem> {
    let address = ip(bytes)?;
    let mapped = address.is_ipv4() && bytes.len() == 16;
    let own_length = if mapped {
        length.checked_sub(MAPPED_V4_BITS)
    } else {
        Some(length)
    };
    own_length
        .and_then(|own| u8::try_from(own).ok())
        .and_then(|own| IpNet::new(address, own).ok())
        .map(|net| net.trunc())
        .ok_or(Problem::PrefixLength(length))
}

/// A port that must be there.
pub(super) fn port(value: u32) -> Result<u16, Problem> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(Problem::Port(value)),
    }
}

/// A port where 0 means none.
pub(super) fn optional_port(value: u32) -> Result<Option<u16>, Problem> {
    if value == 0 {
        return Ok(None);
    }
    port(value).map(Some)
}

/// A value of an enum that this version knows.
pub(super) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, FieldError> {
    E::try_from(value).map_err(|_unknown| FieldError::new(field, Problem::UnknownValue(value)))
}

/// A text that must not be empty.
pub(super) fn required(field: &str, text: String) -> Result<Str, FieldError> {
    if text.is_empty() {
        return Err(FieldError::new(field, Problem::Missing));
    }
    Ok(text.into())
}

/// A text with a meaning when it is empty.
pub(super) fn or_default(text: String, default: &str) -> Str {
    if text.is_empty() {
        default.into()
    } else {
        text.into()
    }
}

/// The place of a waypoint or network gateway.
pub(super) fn gateway(wire: proto::GatewayAddress) -> Result<Gateway, FieldError> {
    use proto::gateway_address::Destination;
    let destination = match wire.destination {
        Some(Destination::Hostname(name)) => {
            let key = format!("{}/{}", name.namespace, name.hostname);
            let key: ServiceKey = key
                .parse()
                .map_err(|error| FieldError::new("hostname", Problem::ServiceKey(error)))?;
            GatewayDestination::Service(key)
        }
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress {
            address: ip(&address.address).map_err(|problem| FieldError::new("address", problem))?,
            network: Network::new(address.network),
        }),
        None => return Err(FieldError::new("destination", Problem::Missing)),
    };
    let port = optional_port(wire.hbone_mtls_port)
        .map_err(|problem| FieldError::new("hbone_mtls_port", problem))?;
    Ok(Gateway {
        destination,
        hbone_mtls_port: port.unwrap_or(leyline_types::ports::HBONE),
    })
}
