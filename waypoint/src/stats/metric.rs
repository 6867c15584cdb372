//! The metrics and their names.

/// One of Istio's standard metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Metric {
    Requests,
    RequestDuration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

impl Metric {
    pub(crate) const ALL: [Self; 10] = [
        Self::Requests,
        Self::RequestDuration,
        Self::RequestBytes,
        Self::ResponseBytes,
        Self::RequestMessages,
        Self::ResponseMessages,
        Self::TcpOpened,
        Self::TcpClosed,
        Self::TcpSent,
        Self::TcpReceived,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "istio_requests_total",
            Self::RequestDuration => "istio_request_duration_milliseconds",
            Self::RequestBytes => "istio_request_bytes",
            Self::ResponseBytes => "istio_response_bytes",
            Self::RequestMessages => "istio_request_messages_total",
            Self::ResponseMessages => "istio_response_messages_total",
            Self::TcpOpened => "istio_tcp_connections_opened_total",
            Self::TcpClosed => "istio_tcp_connections_closed_total",
            Self::TcpSent => "istio_tcp_sent_bytes_total",
            Self::TcpReceived => "istio_tcp_received_bytes_total",
        }
    }

    pub(super) fn help(self) -> &'static str {
        match self {
            Self::Requests => "Requests.",
            Self::RequestDuration => {
                "Time from the first byte of a request to the last of its response."
            }
            Self::RequestBytes => "Bytes of request bodies.",
            Self::ResponseBytes => "Bytes of response bodies.",
            Self::RequestMessages => "gRPC messages of clients.",
            Self::ResponseMessages => "gRPC messages of servers.",
            Self::TcpOpened => "Connections opened.",
            Self::TcpClosed => "Connections ended.",
            Self::TcpSent => "Bytes sent by the destination to the source.",
            Self::TcpReceived => "Bytes sent by the source to the destination.",
        }
    }

    pub(super) fn is_histogram(self) -> bool {
        matches!(
            self,
            Self::RequestDuration | Self::RequestBytes | Self::ResponseBytes
        )
    }
}
