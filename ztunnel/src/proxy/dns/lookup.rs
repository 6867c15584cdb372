//! Lookups of the process itself, by its own resolvers; and what questions for addresses and their answers look like.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use hickory_proto::{
    op::{Message, OpCode, Query},
    rr::{Name, RData, RecordType},
};
use leyline_net::{ConnectOptions, NetNs};

use super::{
    PORT,
    resolv_conf::ResolvConf,
    upstream::{Truncated, Upstream, UpstreamError},
};

/// Resolvers, and the way to them.
pub(crate) struct Lookup<'a> {
    pub(crate) netns: &'a NetNs,
    pub(crate) mark: u32,
    pub(crate) servers: &'a [SocketAddr],
    pub(crate) options: ConnectOptions<'a>,
}

impl Lookup<'_> {
    /// The response of the first that has one.
    pub(crate) async fn ask(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        let upstream = Upstream {
            netns: self.netns,
            mark: self.mark,
            options: self.options,
        };
        let mut failure = UpstreamError::Deadline;
        for server in self.servers {
            match upstream.ask(*server, query, Truncated::AskedAgain).await {
                Ok(response) => return Ok(response),
                Err(error) => failure = error,
            }
        }
        Err(io::Error::other(failure))
    }
}

/// As our own resolv.conf says now.
pub(crate) async fn own_servers() -> io::Result<Vec<SocketAddr>> {
    let read = tokio::task::spawn_blocking(ResolvConf::own);
    let conf = read.await.map_err(io::Error::other)??;
    let servers = conf.servers.into_iter().take(3);
    Ok(servers.map(|ip| SocketAddr::new(ip, PORT)).collect())
}

/// A question for the addresses of a name, of one family.
pub(crate) fn address_query(name: &Name, kind: RecordType) -> io::Result<Vec<u8>> {
    let mut query = Message::query();
    query.metadata.op_code = OpCode::Query;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    query.to_vec().map_err(io::Error::other)
}

/// Addresses with their lifetimes, whatever names lead to them: aliases are followed by the resolver.
pub(crate) fn addresses_of(response: &[u8]) -> io::Result<Vec<(IpAddr, u32)>> {
    let response = Message::from_vec(response).map_err(io::Error::other)?;
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    };
    let answers = response.answers.iter();
    Ok(answers
        .filter_map(|record| Some((address(&record.data)?, record.ttl)))
        .collect())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Record, rdata};

    use super::*;

    #[test]
    fn addresses_of_a_response_come_with_their_lifetimes() {
        let name = Name::from_ascii("db.example.").unwrap();
        let alias = Name::from_ascii("real.example.").unwrap();
        let mut response = Message::response(1, OpCode::Query);
        let cname = RData::CNAME(rdata::CNAME(alias.clone()));
        response.add_answer(Record::from_rdata(name, 5, cname));
        let v4 = RData::A(rdata::A([192, 0, 2, 1].into()));
        response.add_answer(Record::from_rdata(alias, 60, v4));
        let found = addresses_of(&response.to_vec().unwrap()).unwrap();
        assert_eq!(found, [(IpAddr::from([192, 0, 2, 1]), 60)]);
        addresses_of(b"nonsense").unwrap_err();
    }
}
