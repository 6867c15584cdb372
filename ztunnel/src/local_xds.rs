//! `LOCAL_XDS_PATH` and `LOCAL_XDS`: workloads, services and policies without a control plane, in the form of Istio's
//! (facts A15).
//!
//! They become the messages of the wire and go the way of any update, so that nothing is understood in two ways. A file
//! with a mistake stops the start as a whole: nobody is there to be told later.

mod policies;
mod services;
#[cfg(test)]
mod tests;
mod workloads;

use std::{fs, net::IpAddr, path::PathBuf};

use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    istio::workload::{Address, address::Type},
};
use leyline_runtime::env::Reader;
use leyline_xds::session::{Resource, Update};
use prost::Message;
use serde::{Deserialize, Serialize};

use self::{policies::Policy, services::Service, workloads::Workload};

/// Where it comes from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum LocalXds {
    /// A file.
    Path(PathBuf),
    /// The text itself.
    Inline(String),
}

/// A mistake in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalXdsError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Yaml(String),
    #[error("{kind} {name}: {reason}")]
    Entry {
        kind: &'static str,
        name: String,
        reason: String,
    },
}

/// The document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
}

impl LocalXds {
    /// As set; not read yet.
    pub(crate) fn read(env: &mut Reader<'_>) -> Option<Self> {
        let setting = |value: String| Some(value).filter(|value| !value.is_empty());
        let path = setting(env.string("LOCAL_XDS_PATH", ""));
        let text = setting(env.string("LOCAL_XDS", ""));
        match (path, text) {
            (Some(path), Some(_)) => {
                let why = "only one of LOCAL_XDS and LOCAL_XDS_PATH may be set";
                env.reject("LOCAL_XDS_PATH", path, why);
                None
            }
            (Some(path), None) => Some(Self::Path(path.into())),
            (None, Some(text)) => Some(Self::Inline(text)),
            (None, None) => None,
        }
    }

    /// The updates that a control plane would send.
    ///
    /// # Errors
    /// A sentence for the operator, with the place.
    pub(crate) fn load(&self) -> Result<Vec<Update>, LocalXdsError> {
        match self {
            Self::Inline(text) => updates(text),
            Self::Path(path) => {
                let text = fs::read_to_string(path).map_err(|source| LocalXdsError::Read {
                    path: path.clone(),
                    source,
                })?;
                updates(&text)
            }
        }
    }
}

fn updates(text: &str) -> Result<Vec<Update>, LocalXdsError> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        // After the first line comes a picture of the place.
        let shown = error.to_string();
        LocalXdsError::Yaml(shown.lines().next().unwrap_or_default().to_owned())
    })?;
    let Document {
        mut workloads,
        services,
        policies,
    } = document;
    for service in &services {
        service.add_endpoints(&mut workloads);
    }
    let mut addresses = Vec::with_capacity(workloads.len() + services.len());
    for workload in workloads {
        let name = workload.uid();
        let wire = workload.into_wire();
        let wire = wire.map_err(|reason| entry("workload", &name, reason))?;
        addresses.push(address(name, Type::Workload(wire)));
    }
    for service in services {
        let name = service.key();
        let wire = service.into_wire();
        let wire = wire.map_err(|reason| entry("service", &name, reason))?;
        addresses.push(address(name, Type::Service(wire)));
    }
    let mut authorizations = Vec::with_capacity(policies.len());
    for policy in policies {
        let name = policy.key();
        let wire = policy.into_wire();
        let wire = wire.map_err(|reason| entry("policy", &name, reason))?;
        authorizations.push(resource(name, wire.encode_to_vec()));
    }
    // Policies first: no workload is known without those that select it.
    Ok(vec![
        update(AUTHORIZATION_TYPE, authorizations),
        update(ADDRESS_TYPE, addresses),
    ])
}

fn entry(kind: &'static str, name: &str, reason: String) -> LocalXdsError {
    LocalXdsError::Entry {
        kind,
        name: name.to_owned(),
        reason,
    }
}

fn update(type_url: &'static str, resources: Vec<Resource>) -> Update {
    Update {
        aliases: Vec::new(),
        type_url,
        resources,
        removed: Vec::new(),
    }
}

fn address(name: String, of: Type) -> Resource {
    resource(name, Address { r#type: Some(of) }.encode_to_vec())
}

fn resource(name: String, body: Vec<u8>) -> Resource {
    Resource {
        name,
        version: String::new(),
        body,
    }
}

/// As on the wire.
fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `ADDRESS/LENGTH`, or an address alone.
fn block(text: &str) -> Result<(Vec<u8>, u32), String> {
    let wrong = || format!("{text}: write an address or a block such as 10.0.0.0/8");
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_not_one| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(length) => length.parse().map_err(|_not_one| wrong())?,
    };
    if length > most {
        return Err(wrong());
    }
    Ok((address_bytes(address), length))
}
