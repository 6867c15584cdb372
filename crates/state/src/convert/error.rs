//! What is wrong with a resource; the text goes back to the control plane in a NACK.

use leyline_types::{IdentityError, NamespacedNameError, ServiceKeyError};

/// A resource that could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The bytes are not the message.
    #[error("`{resource}` cannot be decoded")]
    Decode {
        /// Name of the resource.
        resource: String,
        /// What is wrong with the bytes.
        #[source]
        source: prost::DecodeError,
    },
    /// A field cannot be understood.
    #[error("`{resource}`: {field}: {problem}")]
    Field {
        /// Name of the resource.
        resource: String,
        /// The field, as in `ports[1].service_port`.
        field: String,
        /// Why.
        #[source]
        problem: Problem,
    },
}

impl ConvertError {
    pub(super) fn decode(resource: &str, source: prost::DecodeError) -> Self {
        Self::Decode {
            resource: resource.to_owned(),
            source,
        }
    }

    pub(super) fn field(resource: &str, field: impl Into<String>, problem: Problem) -> Self {
        Self::Field {
            resource: resource.to_owned(),
            field: field.into(),
            problem,
        }
    }
}

/// Why a field cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It must be there.
    #[error("is missing")]
    Missing,
    /// An address is 4 or 16 bytes.
    #[error("has {0} bytes, an address has 4 or 16")]
    AddressLength(usize),
    /// A prefix longer than the address.
    #[error("prefix length {0} is longer than the address")]
    PrefixLength(u32),
    /// A port is 1 to 65535.
    #[error("{0} is not a port")]
    Port(u32),
    /// An enum value of a later version of the wire; its meaning cannot be guessed.
    #[error("unknown value {0}")]
    UnknownValue(i32),
    /// A value that is known and not supported.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The parts do not make an identity.
    #[error("{0}")]
    Identity(#[source] IdentityError),
    /// Not the name of a policy.
    #[error("{0}")]
    Name(#[source] NamespacedNameError),
    /// Not the key of a service.
    #[error("{0}")]
    ServiceKey(#[source] ServiceKeyError),
    /// Kubernetes' bounds of a session's timeout.
    #[error("is not a duration of 1 to 86400 seconds")]
    Timeout,
    /// Trust domains are a list of names.
    #[error("is not a list of trust domains")]
    TrustDomains,
    /// The resource says another name than it was sent under.
    #[error("the resource says `{0}`")]
    OtherName(String),
}

/// A field with its problem, before the resource that it belongs to is added.
pub(super) struct FieldError {
    field: String,
    problem: Problem,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self {
            field: field.into(),
            problem,
        }
    }

    /// Says that the field is part of another: `ports[1]` + `service_port`.
    pub(super) fn within(self, outer: impl std::fmt::Display) -> Self {
        Self {
            field: format!("{outer}.{}", self.field),
            problem: self.problem,
        }
    }

    pub(super) fn of(self, resource: &str) -> ConvertError {
        ConvertError::field(resource, self.field, self.problem)
    }
}
