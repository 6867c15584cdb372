//! Resources of the control plane into domain types. Called by the application for each xDS resource, off any lock.
//!
//! Parse, do not validate: what comes out is usable as it is, and what cannot be understood rejects its own resource
//! with its name, the field and the reason, so that the rest of the message is kept.

mod authorization;
mod error;
mod field;
mod service;
mod workload;

use leyline_proto::istio::workload as proto;
use leyline_types::NamespacedName;
use prost::Message;

pub use authorization::policy;
pub use error::{ConvertError, Problem};
pub use service::service;
pub use workload::workload;

use crate::store::Change;

/// Converts a resource of the type `istio.workload.Address`.
///
/// # Errors
/// When it cannot be decoded, a field cannot be understood, or it is not the resource of that name.
pub fn address(name: &str, body: &[u8]) -> Result<Change, ConvertError> {
    let decoded =
        proto::Address::decode(body).map_err(|source| ConvertError::decode(name, source))?;
    match decoded.r#type {
        Some(proto::address::Type::Workload(decoded)) => {
            let workload = workload(decoded)?;
            same_name(name, workload.uid.as_str())?;
            Ok(Change::Workload(workload.into()))
        }
        Some(proto::address::Type::Service(decoded)) => {
            let service = service(decoded)?;
            same_name(name, &service.key().to_string())?;
            Ok(Change::Service(service.into()))
        }
        None => Err(ConvertError::field(name, "type", Problem::Missing)),
    }
}

/// Converts a resource of the type `istio.security.Authorization`.
///
/// # Errors
/// As [`address`]; a condition that cannot be understood is no error, but makes the policy deny.
pub fn authorization(name: &str, body: &[u8]) -> Result<Change, ConvertError> {
    let decoded = leyline_proto::istio::security::Authorization::decode(body)
        .map_err(|source| ConvertError::decode(name, source))?;
    let policy = policy(decoded)?;
    same_name(name, &policy.key.to_string())?;
    Ok(Change::Policy(policy.into()))
}

/// The change that the removal of an `istio.workload.Address` stands for.
pub fn removed_address(name: &str) -> Change {
    Change::RemoveAddress(name.into())
}

/// The change that the removal of an `istio.security.Authorization` stands for.
///
/// # Errors
/// When the name is not `namespace/name`, so that no policy has it.
pub fn removed_authorization(name: &str) -> Result<Change, ConvertError> {
    let key: NamespacedName = name
        .parse()
        .map_err(|source| ConvertError::field(name, "name", Problem::Name(source)))?;
    Ok(Change::RemovePolicy(key))
}

/// A removal comes by name alone, so a resource under another name could never be removed again.
fn same_name(name: &str, own: &str) -> Result<(), ConvertError> {
    if name == own {
        return Ok(());
    }
    Err(ConvertError::field(
        name,
        "name",
        Problem::OtherName(own.to_owned()),
    ))
}

#[cfg(test)]
mod tests;
