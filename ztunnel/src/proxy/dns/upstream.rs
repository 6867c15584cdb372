//! Passes a query on to the resolver that the pod asked, from the pod's own namespace.

use std::{io, net::SocketAddr, time::Duration};

use leyline_net::{ConnectOptions, NetNs, connect, udp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::wire;

/// How long each try waits; together a little less than the 5 s after which resolver libraries ask again.
const TRIES: [Duration; 3] = [
    Duration::from_millis(1000),
    Duration::from_millis(1500),
    Duration::from_millis(2000),
];
/// For a response over TCP.
const TCP_DEADLINE: Duration = Duration::from_secs(4);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("no answer within the deadline")]
    Deadline,
    #[error("cannot be reached: {0}")]
    Io(#[from] io::Error),
}

/// Whether a cut response is asked for again over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truncated {
    /// The client could not take more anyway, and will itself ask again over TCP.
    Taken,
    AskedAgain,
}

/// Towards resolvers.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub(super) netns: &'a NetNs,
    pub(super) mark: u32,
    pub(super) options: ConnectOptions<'a>,
}

impl Upstream<'_> {
    /// Asks one resolver. The query gets an identifier of its own, so that nobody who saw the client's can answer.
    pub(super) async fn ask(
        &self,
        server: SocketAddr,
        query: &[u8],
        truncated: Truncated,
    ) -> Result<Vec<u8>, UpstreamError> {
        let mut query = query.to_vec();
        let mut failure = UpstreamError::Deadline;
        for wait in TRIES {
            wire::set_id(&mut query, rand::random());
            match timeout(wait, self.by_datagram(server, &query)).await {
                Ok(Ok(response))
                    if wire::is_truncated(&response) && truncated == Truncated::AskedAgain =>
                {
                    return timeout(TCP_DEADLINE, self.by_stream(server, &query))
                        .await
                        .map_err(|_elapsed| UpstreamError::Deadline)?;
                }
                Ok(Ok(response)) => return Ok(response),
                // Nobody listens, or there is no way: a further try would say so again.
                Ok(Err(error)) => return Err(error.into()),
                Err(_elapsed) => failure = UpstreamError::Deadline,
            }
        }
        Err(failure)
    }

    /// One datagram and its answer, on a socket that nothing else uses.
    async fn by_datagram(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = udp::connect_datagrams(self.netns, server, self.mark)?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let response = buffer.get(..length).unwrap_or_default();
            // Anything else is late or forged.
            if wire::responds_to(response, query) {
                return Ok(response.to_vec());
            }
        }
    }

    async fn by_stream(&self, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        let connected = connect(self.netns, server, &self.options).await;
        let mut stream = connected.map_err(io::Error::other)?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(query);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut response = vec![0; usize::from(length)];
        stream.read_exact(&mut response).await?;
        if wire::responds_to(&response, query) {
            Ok(response)
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidData).into())
        }
    }
}
