//! Limits and deadlines of tunnels. The binaries fill it from their configuration; tests make it small.

use std::time::Duration;

use h2::{client, server};

/// Where the connections of an inbound tunnel run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamTasks {
    /// In the tunnel's task, where a wake-up costs nothing; those that move much data beside others leave it. For who
    /// only passes bytes on.
    Tunnel,
    /// Each in its own, on any core. For who works for them.
    Own,
}

/// What both ends of a tunnel allow. The defaults are Istio's where Istio has one.
#[derive(Clone, Debug)]
pub struct HboneConfig {
    /// Bytes that one stream may have received and not yet handed on while it is alone in its tunnel; a quarter of the
    /// tunnel's window at most. 4 MiB carries 30 Gbit/s at 1 ms round trip. Many streams have smaller windows each.
    pub stream_window: u32,
    /// The same for up to 32 streams of a tunnel together: 16 MiB. 200 streams can hold less than three times as much.
    pub connection_window: u32,
    /// Largest frame we accept. 1 MiB, as Istio: a large write of the peer stays one frame.
    pub max_frame_size: u32,
    /// Bytes of one stream that wait for the socket, before its writer has to wait. Two of the largest reads of a
    /// TCP connection, so that one can be written while the next one is read.
    pub send_buffer: usize,
    /// Largest response header list. 16 KiB: baggage is at most half of it.
    pub response_headers: u32,
    /// Largest request header list; larger ones are answered with 431. 64 KiB, as Istio.
    pub request_headers: u32,
    /// Streams that a peer may have open in one inbound tunnel. 200, twice what a pool opens.
    pub inbound_streams: u32,
    /// Streams that the pool opens in one tunnel, if the peer allows as many.
    pub outbound_streams: usize,
    /// Tunnels for one key. 256 of them carry 25,600 streams, about all ports of a source address.
    pub tunnels_per_key: usize,
    /// Tunnels for one key that are made because those there are busy with data, before they are full of streams. As
    /// many as there are cores, at most four: more only divide the work into smaller writes.
    pub parallel_tunnels: usize,
    /// Bytes per second, both ways, from which a tunnel is busy. 128 MiB is a third to a half of what one core
    /// encrypts and decrypts. One whose task works half of the time is busy too.
    pub busy_bytes_per_second: u64,
    /// Where the connections of inbound tunnels run.
    pub stream_tasks: StreamTasks,
    /// Keys with a tunnel; when there are more, an idle one is closed for the new one. Each costs a descriptor.
    pub keys: usize,
    /// Time between a pong (or the start) and the next PING.
    pub ping_interval: Duration,
    /// Time without a pong and without any received byte, after which the peer is dead.
    pub ping_deadline: Duration,
    /// From the connected transport to the peer's preface or SETTINGS.
    pub handshake_deadline: Duration,
    /// A dial that takes longer is given up even if the caller's own deadlines failed; connect and TLS are shorter.
    pub dial_deadline: Duration,
    /// From the request to the response: the peer connects to the application in between.
    pub response_deadline: Duration,
    /// From the accepted handshake to the first request.
    pub request_deadline: Duration,
    /// An outbound tunnel without streams is closed after this time.
    pub idle: Duration,
    /// The same for an inbound tunnel. Longer than `idle`, so that the end that opens streams decides.
    pub inbound_idle: Duration,
}

impl Default for HboneConfig {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            send_buffer: 512 << 10,
            response_headers: 16 << 10,
            request_headers: 64 << 10,
            inbound_streams: 200,
            outbound_streams: 100,
            tunnels_per_key: 256,
            parallel_tunnels: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            busy_bytes_per_second: 128 << 20,
            stream_tasks: StreamTasks::Tunnel,
            keys: 16_384,
            ping_interval: Duration::from_secs(10),
            ping_deadline: Duration::from_secs(20),
            handshake_deadline: Duration::from_secs(10),
            dial_deadline: Duration::from_secs(30),
            response_deadline: Duration::from_secs(20),
            request_deadline: Duration::from_secs(30),
            idle: Duration::from_secs(5 * 60),
            inbound_idle: Duration::from_secs(10 * 60),
        }
    }
}

/// Streams that a peer may open and reset before we looked at them (CVE-2023-44487); beyond it the tunnel is closed.
const PENDING_RESETS: usize = 20;
/// Streams that the peer makes us reset by breaking the protocol, before the tunnel is closed.
const ERROR_RESETS: usize = 256;
/// Streams that we reset and remember, to ignore what was on its way. One per stream that a pool opens.
const RESET_STREAMS: usize = 100;

impl HboneConfig {
    pub(crate) fn client_builder(&self) -> client::Builder {
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(self.largest_window())
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame_size)
            .max_header_list_size(self.response_headers)
            .max_send_buffer_size(self.send_buffer)
            // Until the peer's SETTINGS arrive; the pool opens one stream at most before that.
            .initial_max_send_streams(self.outbound_streams)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(Some(ERROR_RESETS))
            .enable_push(false);
        builder
    }

    pub(crate) fn server_builder(&self) -> server::Builder {
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(self.largest_window())
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame_size)
            .max_header_list_size(self.request_headers)
            .max_concurrent_streams(self.inbound_streams)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(Some(ERROR_RESETS));
        builder
    }

    /// Received bytes that a reader may keep before it gives the window back: enough to save most of the locking,
    /// too little to starve a window even if all streams of a tunnel do it.
    pub(crate) fn release_batch(&self) -> usize {
        const BATCH: usize = 16 << 10;
        let share = usize::try_from(self.smallest_window() / 8).unwrap_or(BATCH);
        share.clamp(1, BATCH)
    }
}
