//! Certificates over the wire: who gets which, and who does not.

use std::{fs, process::Command};

use leyline_proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use leyline_tls::csr;
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Status};

use crate::{discovery::PODS, harness::Fixture};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

async fn ask(
    fixture: &Fixture,
    token: Option<String>,
    impersonate: Option<&str>,
    csr: &str,
) -> Result<Vec<String>, Status> {
    let field = |id: &str| {
        let kind = Some(Kind::StringValue(id.to_owned()));
        ("ImpersonatedIdentity".to_owned(), Value { kind })
    };
    let request = IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: 3600,
        metadata: impersonate.map(|id| Struct {
            fields: [field(id)].into_iter().collect(),
        }),
    };
    let mut client = IstioCertificateServiceClient::new(fixture.service(token));
    client
        .create_certificate(request)
        .await
        .map(|response| response.into_inner().cert_chain)
}

fn request(id: &str) -> String {
    csr::generate(&id.parse().unwrap()).unwrap().pem
}

#[tokio::test]
async fn a_node_gets_the_identities_of_its_own_pods() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let chain = ask(
        &fixture,
        Some(fixture.node_token("a")),
        Some(WEB),
        &request(WEB),
    )
    .await
    .unwrap();
    let leaf = fixture.directory.path().join("leaf.pem");
    fs::write(&leaf, &chain[0]).unwrap();
    assert_eq!(
        fs::read_to_string(fixture.root()).unwrap(),
        *chain.last().unwrap()
    );
    let verify = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
        .arg(fixture.root())
        .arg(&leaf)
        .output()
        .unwrap();
    assert!(
        verify.status.success(),
        "{}",
        String::from_utf8_lossy(&verify.stderr)
    );
    let text = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&leaf)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&format!("URI:{WEB}")), "{text}");
}

#[tokio::test]
async fn a_workload_gets_its_own_identity() {
    let fixture = Fixture::start(&[]).await;
    let token = fixture.token("shop", "waypoint", None);
    // What the request claims does not matter.
    let chain = ask(&fixture, Some(token), None, &request(WEB))
        .await
        .unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let names = pem
        .parse_x509()
        .unwrap()
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .clone();
    let expected = "spiffe://cluster.local/ns/shop/sa/waypoint";
    assert_eq!(
        names.general_names,
        [x509_parser::extensions::GeneralName::URI(expected)]
    );
}

#[tokio::test]
async fn nobody_gets_more() {
    let fixture = Fixture::start(&[("pods.yaml", PODS)]).await;
    let node = |name: &str| Some(fixture.node_token(name));
    let impersonation = "request impersonation authentication failure";
    for (what, token, id, message) in [
        ("a pod of another node", node("b"), WEB, impersonation),
        (
            "no such pod",
            node("a"),
            "spiffe://cluster.local/ns/shop/sa/nobody",
            impersonation,
        ),
        (
            "another trust domain",
            node("a"),
            "spiffe://evil.example/ns/shop/sa/web",
            impersonation,
        ),
        ("not an identity", node("a"), "web", impersonation),
        (
            "not a node proxy",
            Some(fixture.token("shop", "web", Some("a"))),
            WEB,
            impersonation,
        ),
        (
            "no node in the token",
            Some(fixture.token("istio-system", "ztunnel", None)),
            WEB,
            impersonation,
        ),
        ("no token", None, WEB, "request authenticate failure"),
        (
            "a bad token",
            Some("a.b.c".to_owned()),
            WEB,
            "request authenticate failure",
        ),
    ] {
        let status = ask(&fixture, token, Some(id), &request(WEB))
            .await
            .unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, message),
            "{what}"
        );
    }
    // Ended pods do not count.
    fixture.write("pods.yaml", &PODS.replace("Running", "Succeeded"));
    fixture
        .status_until(|status| status["resources"]["address"] == 0)
        .await;
    assert!(
        ask(&fixture, node("a"), Some(WEB), &request(WEB))
            .await
            .is_err()
    );

    let status = ask(&fixture, node("a"), None, "not a request")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}
