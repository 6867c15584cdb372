//! What tells gRPC from other HTTP, and how the errors of one are said in the other.

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};

/// Its media type; a format may follow.
const GRPC: &[u8] = b"application/grpc";

/// Whether a message is gRPC. `application/grpc-web` is another protocol.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    let format = kind.and_then(|kind| kind.strip_prefix(GRPC));
    format.is_some_and(|format| matches!(format.first(), None | Some(b'+' | b';')))
}

/// gRPC's own mapping (grpc/doc/http-grpc-status-mapping.md).
pub(crate) fn status_of_http(status: StatusCode) -> u16 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_is_told_by_its_media_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web-text+proto", false),
            ("application/json", false),
        ] {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind))];
            assert_eq!(is_grpc(&HeaderMap::from_iter(headers)), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
