//! Lookups of the process itself, by its own resolvers.

use std::{io, net::SocketAddr};

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
