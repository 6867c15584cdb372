//! OpenSSL as an independent peer, in both directions. It does not know the hybrid group.

use std::{fs, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpSocket},
    process::{Child, Command},
};

use super::*;
use crate::testing::{key_pem, pem};

/// A directory with a peer's certificate, key and roots, as files.
fn files(ca: &TestCa, uri: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = ca.issue(&Leaf::workload(uri));
    let chain: String = chain.iter().map(|der| pem(der)).collect();
    fs::write(dir.path().join("chain.pem"), chain).unwrap();
    fs::write(dir.path().join("key.pem"), key_pem(&key)).unwrap();
    fs::write(dir.path().join("root.pem"), ca.root_pem()).unwrap();
    dir
}

fn openssl(dir: &TempDir, arguments: &[&str]) -> Child {
    Command::new("openssl")
        .current_dir(dir.path())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Accepts one `openssl s_client` with these arguments, and says what both saw.
async fn accept_s_client(arguments: &[&str]) -> (Accepted, String) {
    let ca = TestCa::new();
    let dir = files(&ca, DB);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let fixed = [
        "s_client",
        "-connect",
        &address,
        "-CAfile",
        "root.pem",
        "-verify_return_error",
    ];
    let child = openssl(&dir, &[&fixed, arguments].concat());
    let (stream, _) = listener.accept().await.unwrap();
    let mut accepted = Box::pin(accept(&ca.workload(WEB), stream, &[], DEADLINE)).await;
    if let Ok((tls, _)) = &mut accepted {
        tls.shutdown().await.unwrap();
    }
    // Closes openssl's input, which ends it if nothing else has.
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (accepted, text)
}

const CERTIFICATE: [&str; 4] = ["-cert", "chain.pem", "-key", "key.pem"];

#[tokio::test]
async fn accepts_openssl() {
    let arguments = [&CERTIFICATE[..], &["-alpn", "h2"]].concat();
    let (accepted, text) = accept_s_client(&arguments).await;
    assert_eq!(accepted.unwrap().1.to_string(), DB);
    for expected in [
        "TLSv1.3",
        "TLS_AES_256_GCM_SHA384",
        "ALPN protocol: h2",
        "Verify return code: 0",
    ] {
        assert!(text.contains(expected), "{expected} not in:\n{text}");
    }
    assert!(
        !text.contains("Post-Handshake New Session Ticket"),
        "{text}"
    );
}

#[tokio::test]
async fn refuses_openssl_with_its_reason() {
    let with = |more: &[&'static str]| [&CERTIFICATE[..], more].concat();
    for (arguments, reason, told) in [
        (
            vec!["-alpn", "h2"],
            "no_certificate",
            "certificate required",
        ),
        (
            with(&["-alpn", "h2", "-tls1_2"]),
            "version",
            "protocol version",
        ),
        (
            with(&["-alpn", "http/1.1"]),
            "alpn",
            "no application protocol",
        ),
        (
            with(&[
                "-alpn",
                "h2",
                "-ciphersuites",
                "TLS_CHACHA20_POLY1305_SHA256",
            ]),
            "parameters",
            "handshake failure",
        ),
        (with(&[]), "alpn", ""),
    ] {
        let (accepted, text) = accept_s_client(&arguments).await;
        assert_eq!(accepted.unwrap_err().reason(), reason, "{arguments:?}");
        assert!(text.contains(told), "{told} not in:\n{text}");
    }
}

/// Connects to one `openssl s_server` with these arguments.
async fn connect_s_server(arguments: &[&str]) -> Connected {
    let ca = TestCa::new();
    let dir = files(&ca, WEB);
    let fixed = [
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-naccept",
        "1",
        "-CAfile",
        "root.pem",
    ];
    let mut child = openssl(&dir, &[&fixed, &CERTIFICATE[..], arguments].concat());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = loop {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("openssl ended early");
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.parse().unwrap();
        }
    };
    let stream = TcpSocket::new_v4().unwrap().connect(address).await.unwrap();
    let (mut tls, identity) =
        connect(&ca.workload(DB), stream, &[WEB.parse().unwrap()], DEADLINE).await?;
    tls.write_all(b"hello openssl\n").await.unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line == "hello openssl" {
            return Ok((tls, identity));
        }
    }
    Err(TlsError::Closed)
}

#[tokio::test]
async fn connects_to_openssl() {
    let demanding = ["-Verify", "4", "-verify_return_error", "-alpn", "h2"];
    let (tls, identity) = connect_s_server(&demanding).await.unwrap();
    assert_eq!(identity.to_string(), WEB);
    let group = tls
        .io
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .unwrap()
        .name();
    assert_eq!(group, NamedGroup::X25519);
}

#[tokio::test]
async fn refuses_openssl_servers() {
    for (arguments, reason) in [
        (&["-tls1_2", "-alpn", "h2"][..], "refused_version"),
        (&["-alpn", "http/1.1"], "refused_alpn"),
        (&[], "alpn"),
    ] {
        let error = connect_s_server(arguments).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn openssl_verifies_our_chain() {
    let ca = TestCa::new().intermediate();
    let dir = files(&ca, WEB);
    let verify = [
        "verify",
        "-CAfile",
        "root.pem",
        "-untrusted",
        "chain.pem",
        "chain.pem",
    ];
    let output = openssl(&dir, &verify).wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}
