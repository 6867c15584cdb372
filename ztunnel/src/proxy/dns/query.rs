//! Queries of clients, and the responses that are made here.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use leyline_telemetry::dns::DnsProtocol;

use super::wire::{self, HEADER};

/// Lifetime of local answers (DNS-7): how long a client may use an address that is no longer right.
pub(super) const TTL: u32 = 30;
/// What every client takes (RFC 1035, 4.2.1).
const MIN_PAYLOAD: u16 = 512;

/// A message of a client.
pub(super) enum Parsed {
    /// To be answered.
    Query(Query),
    /// To be refused with this response.
    Refused(Vec<u8>),
    /// Neither a query nor anything that could be answered.
    Malformed,
}

/// One question.
#[derive(Debug)]
pub(super) struct Query {
    message: Message,
    bytes: Vec<u8>,
    question_end: usize,
    protocol: DnsProtocol,
}

impl Query {
    /// Reads a message.
    pub(super) fn parse(bytes: &[u8], protocol: DnsProtocol) -> Parsed {
        let Some(flags) = bytes.get(2).filter(|_| bytes.len() >= HEADER) else {
            return Parsed::Malformed;
        };
        // Responses are answered by nobody, or two proxies would go on for ever.
        if flags & 0x80 != 0 {
            return Parsed::Malformed;
        }
        let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
        let refuse = |code: ResponseCode| {
            let message = Message::error_msg(wire::id(bytes), op_code, code);
            message.to_vec().map_or(Parsed::Malformed, Parsed::Refused)
        };
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let parsed = Message::from_vec(bytes).ok().zip(wire::question_end(bytes));
        let Some((message, question_end)) = parsed else {
            return refuse(ResponseCode::FormErr);
        };
        if message.queries.len() != 1 || message.metadata.message_type != MessageType::Query {
            return refuse(ResponseCode::FormErr);
        }
        Parsed::Query(Self {
            message,
            bytes: bytes.to_vec(),
            question_end,
            protocol,
        })
    }

    pub(super) fn id(&self) -> u16 {
        wire::id(&self.bytes)
    }

    pub(super) fn protocol(&self) -> DnsProtocol {
        self.protocol
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name, type and class as they were sent.
    pub(super) fn question(&self) -> &[u8] {
        self.bytes
            .get(HEADER..self.question_end)
            .unwrap_or_default()
    }

    /// The name in lower case, without a last dot.
    pub(super) fn name(&self) -> String {
        let question = self.message.queries.first();
        let name = question.map(|question| question.name.to_lowercase().to_ascii());
        let mut name = name.unwrap_or_default();
        if name.ends_with('.') {
            name.pop();
        }
        name
    }

    fn record_type(&self) -> RecordType {
        let question = self.message.queries.first();
        question.map_or(RecordType::ZERO, |question| question.query_type)
    }

    /// Whether it may be about a name that the mesh knows.
    pub(super) fn is_internet(&self) -> bool {
        let question = self.message.queries.first();
        question.is_some_and(|question| question.query_class == DNSClass::IN)
    }

    /// Whether it asks for addresses.
    pub(super) fn asks_addresses(&self) -> bool {
        matches!(self.record_type(), RecordType::A | RecordType::AAAA)
    }

    /// The type, as metrics have it.
    pub(super) fn type_name(&self) -> &'static str {
        match self.record_type() {
            RecordType::A => "A",
            RecordType::AAAA => "AAAA",
            RecordType::ANY => "ANY",
            RecordType::CNAME => "CNAME",
            RecordType::HTTPS => "HTTPS",
            RecordType::MX => "MX",
            RecordType::NS => "NS",
            RecordType::PTR => "PTR",
            RecordType::SOA => "SOA",
            RecordType::SRV => "SRV",
            RecordType::SVCB => "SVCB",
            RecordType::TXT => "TXT",
            _ => "OTHER",
        }
    }

    /// What besides the question changes a resolver's answer; `None` where options do, which nobody else can know.
    pub(super) fn cache_flags(&self) -> Option<u8> {
        let metadata = &self.message.metadata;
        let edns = self.message.edns.as_ref();
        if edns.is_some_and(|edns| !edns.options().as_ref().is_empty()) {
            return None;
        }
        let flags = [
            metadata.recursion_desired,
            metadata.checking_disabled,
            metadata.authentic_data,
            edns.is_some(),
            edns.is_some_and(|edns| edns.flags().dnssec_ok),
        ];
        let bits = flags.into_iter().enumerate();
        Some(bits.fold(0, |all, (at, flag)| all | u8::from(flag) << at))
    }

    /// The longest response that the client takes.
    fn limit(&self) -> usize {
        match self.protocol {
            DnsProtocol::Tcp => usize::from(u16::MAX),
            DnsProtocol::Udp => usize::from(self.payload()),
        }
    }

    fn payload(&self) -> u16 {
        let edns = self.message.edns.as_ref();
        edns.map_or(MIN_PAYLOAD, |edns| edns.max_payload().max(MIN_PAYLOAD))
    }

    /// A response that the client takes: cut if it is too long.
    pub(super) fn fit(&self, response: Vec<u8>) -> Vec<u8> {
        if response.len() > self.limit() {
            wire::cut(&response)
        } else {
            response
        }
    }

    /// A response without records.
    pub(super) fn failed(&self) -> Option<Vec<u8>> {
        let mut response = self.response();
        response.metadata.response_code = ResponseCode::ServFail;
        response.to_vec().ok()
    }

    /// A response with the addresses of the wanted family, under the alias if there is one.
    pub(super) fn answered(&self, alias: Option<&str>, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let mut response = self.response();
        response.metadata.authoritative = true;
        let mut owner = self.message.queries.first()?.name.clone();
        if let Some(alias) = alias {
            let alias = Name::from_ascii(format!("{alias}.")).ok()?;
            let record = RData::CNAME(CNAME(alias.clone()));
            response.add_answer(Record::from_rdata(owner, TTL, record));
            owner = alias;
        }
        for address in addresses {
            let data = match (address, self.record_type()) {
                (IpAddr::V4(v4), RecordType::A) => RData::A(A(*v4)),
                (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(AAAA(*v6)),
                _ => continue,
            };
            response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        let bytes = response.to_vec().ok()?;
        Some(self.fit(bytes))
    }

    fn response(&self) -> Message {
        let mut response = Message::response(self.id(), OpCode::Query);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.checking_disabled = self.message.metadata.checking_disabled;
        response.add_queries(self.message.queries.iter().cloned());
        if let Some(asked) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(self.payload());
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            response.set_edns(edns);
        }
        response
    }
}

#[cfg(test)]
mod tests;
