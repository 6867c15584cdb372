//! Addresses of hosts for the pod's proxy itself, found as an application of the pod finds them.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};
use leyline_net::listen::Families;
use leyline_telemetry::dns::DnsProtocol;

use super::{
    DnsProxy, lookup,
    query::{Parsed, Query},
};

impl DnsProxy {
    /// An address of a host; IPv4 before IPv6.
    pub(in crate::proxy) async fn address_of(&self, host: &str) -> Option<IpAddr> {
        let host = format!("{}.", host.trim_end_matches('.'));
        let name = Name::from_ascii(host).ok()?;
        let kinds = match self.pod.shared.config.families {
            Families::Both => &[RecordType::A, RecordType::AAAA][..],
            Families::V4 => &[RecordType::A],
        };
        for kind in kinds {
            let query = lookup::address_query(&name, *kind).ok()?;
            // As by a connection: no answer is cut.
            let Parsed::Query(query) = Query::parse(&query, DnsProtocol::Tcp) else {
                return None;
            };
            let response = self.answer(&query, None).await?;
            let found = lookup::addresses_of(&response).ok()?;
            if let Some((ip, _lifetime)) = found.first() {
                return Some(*ip);
            }
        }
        None
    }
}
