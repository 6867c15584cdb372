use super::*;

/// What is handed on of a stream that comes in these parts, and what is kept at its end.
fn pass(parts: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let mut scanner = Scanner::default();
    let (mut passed, mut kept) = (Vec::new(), Vec::new());
    for part in parts {
        kept.extend_from_slice(part);
        let cleared = scanner.clear(&mut kept);
        passed.extend(kept.drain(..cleared));
    }
    (passed, kept)
}

const BOTH: &str =
    "POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n";

fn is_spoilt(stream: &str) -> bool {
    let (passed, kept) = pass(&[stream.as_bytes()]);
    assert!(kept.is_empty(), "{stream:?}");
    assert_eq!(passed.len(), stream.len());
    passed.contains(&SPOILT)
}

#[test]
fn two_lengths_are_found_wherever_a_head_begins() {
    for before in [
        "",
        "\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\nhost: a\n\r\n",
        "PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123\r\n\r\n89",
        "PUT / HTTP/1.1\r\nContent-Length:0\r\n\r\n",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "PUT / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n5;a=b\r\n\r\n\r\n0\r\n0A\r\n0123456789\r\n00\r\nx: y\r\nz:\r\n\r\n",
    ] {
        for (request, expected) in [
            (BOTH, true),
            (&BOTH.to_ascii_uppercase(), true),
            (&BOTH.replace("\r\n", "\n"), true),
            (&BOTH.replace("length: 4", "length: x"), true),
            (&BOTH.replace("transfer-encoding: chunked\r\n", ""), false),
            (&BOTH.replace("content-length: 4\r\n", ""), false),
        ] {
            let stream = format!("{before}{request}");
            assert_eq!(is_spoilt(&stream), expected, "{stream:?}");
        }
    }
}

#[test]
fn bodies_are_not_looked_at_and_neither_are_other_protocols() {
    for stream in [
        format!(
            "PUT / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{BOTH}",
            BOTH.len()
        ),
        format!(
            "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{BOTH}\r\n0\r\n\r\n",
            BOTH.len()
        ),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{BOTH}"),
        // hyper ends the connection at these.
        format!("PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nx\r\n{BOTH}"),
        format!("PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\n{BOTH}"),
        format!("PUT / HTTP/1.1\r\ncontent-length: x\r\n\r\n{BOTH}"),
    ] {
        assert!(!is_spoilt(&stream), "{stream:?}");
    }
}

#[test]
fn what_follows_a_request_for_another_protocol_waits_for_its_answer() {
    for request in [
        "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
        "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n",
        "PUT / HTTP/1.1\r\nUpgrade: h2c\r\ncontent-length: 3\r\n\r\nabc",
        "PUT / HTTP/1.1\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ] {
        for (answer, spoils) in [(Answer::Switched, false), (Answer::Stays, true)] {
            let mut scanner = Scanner::default();
            let mut stream = format!("{request}{BOTH}").into_bytes();
            assert_eq!(scanner.clear(&mut stream), request.len(), "{request:?}");
            assert!(scanner.awaits_answer());
            let mut rest = stream.split_off(request.len());
            assert_eq!(scanner.clear(&mut rest), 0);
            scanner.answered(answer);
            assert_eq!(scanner.clear(&mut rest), BOTH.len());
            assert_eq!(rest.contains(&SPOILT), spoils, "{request:?} {answer:?}");
        }
    }
}

#[test]
fn it_does_not_matter_in_which_parts_a_stream_comes() {
    let stream = format!(
        "\r\nPUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: u\r\n\r\n\
         PUT / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\nhost: a\n\r\n{BOTH}"
    );
    let stream = stream.as_bytes();
    let whole = pass(&[stream]);
    assert!(whole.0.contains(&SPOILT));
    let single: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(pass(&single), whole);
    for first in 0..stream.len() {
        for second in first..stream.len() {
            let parts = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(pass(&parts), whole, "{first} {second}");
        }
    }
}

#[test]
fn a_head_is_kept_until_it_is_complete_or_too_long() {
    let (passed, kept) = pass(&[b"GET / HTTP/1.1\r\n", b"host: a\r\n\r"]);
    assert!(passed.is_empty());
    assert_eq!(kept.len(), 26);
    let long = vec![b'a'; MAX_HEAD + 1];
    let (passed, kept) = pass(&[&long]);
    assert_eq!((passed.len(), kept.len()), (MAX_HEAD + 1, 0));
}
