use std::{net::SocketAddr, pin::Pin, time::SystemTime};

use leyline_proto::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use leyline_types::Identity;
use parking_lot::Mutex;
use prost_types::value::Kind;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Response,
    transport::{Identity as ServerIdentity, Server, ServerTlsConfig},
};

use super::*;
use crate::{
    ca::{CaClient, CaError, CertificateAuthority},
    certificate::WorkloadCertificate,
    csr,
    revocation::Revocation,
    testing::{Leaf, TestCa, key_pem, pem},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// What a caller said: metadata by name.
type Heard = Arc<Mutex<Vec<(String, String)>>>;

/// A CA service that signs whatever it is asked for.
struct Service {
    ca: Arc<TestCa>,
    heard: Heard,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name: &str| {
            let value = request.metadata().get(name);
            value
                .map(|v| v.to_str().unwrap().to_owned())
                .unwrap_or_default()
        };
        let said =
            ["authorization", "clusterid", "x-extra"].map(|name| (name.to_owned(), header(name)));
        self.heard.lock().extend(said);
        if header("authorization") == "Bearer stolen" {
            return Err(Status::unauthenticated("request authenticate failure"));
        }
        let request = request.into_inner();
        let metadata = request.metadata.unwrap_or_default();
        let Some(Kind::StringValue(identity)) = metadata
            .fields
            .get("ImpersonatedIdentity")
            .and_then(|value| value.kind.clone())
        else {
            return Err(Status::invalid_argument("nobody to impersonate"));
        };
        let mut leaf = Leaf::workload(&identity);
        leaf.not_after = SystemTime::now() + Duration::from_secs(request.validity_duration as u64);
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: self.ca.sign(&request.csr, &leaf),
        }))
    }
}

/// A control plane whose certificate has one DNS name; runs as long as it is polled.
async fn control_plane(
    ca: &Arc<TestCa>,
    dns: &str,
) -> (SocketAddr, Heard, Pin<Box<dyn Future<Output = ()>>>) {
    let (chain, key) = ca.issue(&Leaf::server(dns));
    let heard = Heard::default();
    let service = Service {
        ca: Arc::clone(ca),
        heard: Arc::clone(&heard),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .tls_config(
            ServerTlsConfig::new()
                .identity(ServerIdentity::from_pem(pem(&chain[0]), key_pem(&key))),
        )
        .unwrap()
        .add_service(IstioCertificateServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    (address, heard, Box::pin(async { server.await.unwrap() }))
}

fn config(address: SocketAddr, root: RootSource) -> ControlPlaneConfig {
    ControlPlaneConfig {
        address: format!("https://localhost:{}", address.port()),
        root,
        alt_hostname: None,
        token: TokenSource::Static("secret".to_owned()),
        cluster_id: "Kubernetes".to_owned(),
        headers: vec![("X-Extra".to_owned(), "more".to_owned())],
    }
}

async fn sign(config: &ControlPlaneConfig) -> Result<WorkloadCertificate, CaError> {
    let client = CaClient::new(config).unwrap();
    let identity: Identity = WEB.parse().unwrap();
    let request = csr::generate(&identity).unwrap();
    let chain = client
        .sign(request.pem, &identity, Duration::from_secs(7200))
        .await?;
    Ok(WorkloadCertificate::from_pem(&identity, &chain, request.key, &Revocation::off()).unwrap())
}

/// Runs a call while the server runs.
async fn beside<T>(
    server: &mut Pin<Box<dyn Future<Output = ()>>>,
    call: impl Future<Output = T>,
) -> T {
    tokio::select! {
        () = server => panic!("the server ended"),
        result = call => result,
    }
}

#[tokio::test]
async fn fetches_a_certificate_in_the_name_of_a_workload() {
    let ca = Arc::new(TestCa::new());
    let (address, heard, mut server) = control_plane(&ca, "localhost").await;
    let config = config(address, RootSource::Pem(ca.root_pem()));
    let certificate = beside(&mut server, sign(&config)).await.unwrap();
    let left = certificate
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left > Duration::from_secs(7000), "{left:?}");
    let expected = [
        ("authorization", "Bearer secret"),
        ("clusterid", "Kubernetes"),
        ("x-extra", "more"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(*heard.lock(), expected);
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_message() {
    let ca = Arc::new(TestCa::new());
    let (address, _, mut server) = control_plane(&ca, "localhost").await;
    let mut config = config(address, RootSource::Pem(ca.root_pem()));
    config.token = TokenSource::Static("stolen".to_owned());
    let error = beside(&mut server, sign(&config)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the CA refused (Unauthenticated): request authenticate failure"
    );
}

#[tokio::test]
async fn refuses_a_control_plane_that_is_not_ours() {
    let (ca, other) = (Arc::new(TestCa::new()), TestCa::new());
    let (address, _, mut server) = control_plane(&ca, "istiod.example").await;
    let ours = RootSource::Pem(ca.root_pem());
    for (root, alternative, expected) in [
        (
            RootSource::Pem(other.root_pem()),
            Some("istiod.example"),
            "UnknownIssuer",
        ),
        (RootSource::System, Some("istiod.example"), "UnknownIssuer"),
        (
            RootSource::File("/nowhere/root.pem".into()),
            None,
            "cannot read root file /nowhere/root.pem",
        ),
        (ours.clone(), None, "not valid for name"),
        (ours.clone(), Some("other.example"), "not valid for name"),
    ] {
        let mut config = config(address, root);
        config.alt_hostname = alternative.map(str::to_owned);
        let error = beside(&mut server, sign(&config)).await.unwrap_err();
        assert!(matches!(error, CaError::Unreachable(_)), "{error}");
        assert!(
            error.to_string().contains(expected),
            "`{expected}` not in `{error}`"
        );
    }
    let mut config = config(address, ours);
    config.alt_hostname = Some("istiod.example".to_owned());
    beside(&mut server, sign(&config)).await.unwrap();
}

#[tokio::test]
async fn roots_and_tokens_in_files_are_read_when_used() {
    let (ca, other) = (Arc::new(TestCa::new()), TestCa::new());
    let (address, heard, mut server) = control_plane(&ca, "localhost").await;
    let dir = tempfile::tempdir().unwrap();
    let (root, token) = (dir.path().join("root.pem"), dir.path().join("token"));
    let mut config = config(address, RootSource::from_setting(root.to_str().unwrap()));
    config.token = TokenSource::from_setting(token.to_str().unwrap());

    fs::write(&root, other.root_pem()).unwrap();
    let client = CaClient::new(&config).unwrap();
    let identity: Identity = WEB.parse().unwrap();
    let call = || async {
        let csr = csr::generate(&identity).unwrap().pem;
        client.sign(csr, &identity, Duration::from_secs(60)).await
    };
    let error = beside(&mut server, call()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot ask the CA: cannot read token file"),
        "{error}"
    );
    fs::write(&token, "one\n").unwrap();
    let error = beside(&mut server, call()).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    fs::write(&root, ca.root_pem()).unwrap();
    beside(&mut server, call()).await.unwrap();
    fs::write(&token, "two\n").unwrap();
    beside(&mut server, call()).await.unwrap();
    // A connection outlives the roots that it was made by, until they are said to have changed.
    fs::write(&root, other.root_pem()).unwrap();
    fs::write(&token, "three\n").unwrap();
    beside(&mut server, call()).await.unwrap();
    client.reconnect();
    let error = beside(&mut server, call()).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let tokens: Vec<String> = heard
        .lock()
        .iter()
        .filter(|h| h.0 == "authorization")
        .map(|h| h.1.clone())
        .collect();
    assert_eq!(tokens, ["Bearer one", "Bearer two", "Bearer three"]);
}

#[tokio::test]
async fn an_absent_control_plane_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = sign(&config(address, RootSource::System))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CaError::Unreachable(why) if why.contains("refused")),
        "{error}"
    );
}

type Change = fn(&mut ControlPlaneConfig);

#[tokio::test]
async fn refuses_settings_that_cannot_work() {
    let good = config("127.0.0.1:1".parse().unwrap(), RootSource::System);
    let cases: [(&str, Change); 5] = [
        ("scheme http is not https", |c| {
            c.address = "http://localhost:15012".to_owned()
        }),
        ("is not a control plane address", |c| {
            c.address = String::new()
        }),
        ("is not a DNS name", |c| {
            c.alt_hostname = Some("a b".to_owned())
        }),
        ("no usable root certificate", |c| {
            c.root = RootSource::Pem("nothing".to_owned())
        }),
        ("`bad name` is not a header", |c| {
            c.headers[0].0 = "bad name".to_owned()
        }),
    ];
    for (expected, change) in cases {
        let mut config = good.clone();
        change(&mut config);
        let result = channel(&config).and_then(|_| AuthInterceptor::new(&config).map(drop));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` not in `{error}`");
    }
}

#[test]
fn reads_addresses() {
    for (given, uri, host) in [
        (
            "https://istiod.istio-system.svc:15012",
            "https://istiod.istio-system.svc:15012",
            "istiod.istio-system.svc",
        ),
        ("localhost:15012", "https://localhost:15012", "localhost"),
        ("10.0.0.1:15012", "https://10.0.0.1:15012", "10.0.0.1"),
        (
            "https://[fd00::1]:15012",
            "https://[fd00::1]:15012",
            "fd00::1",
        ),
    ] {
        assert_eq!(address(given).unwrap(), (uri.to_owned(), host.to_owned()));
    }
}

#[test]
fn reads_settings_and_hides_tokens() {
    assert_eq!(RootSource::from_setting("SYSTEM"), RootSource::System);
    assert_eq!(
        RootSource::from_setting("./root.pem"),
        RootSource::File("./root.pem".into())
    );
    let pem = "-----BEGIN CERTIFICATE-----".to_owned();
    assert_eq!(RootSource::from_setting(&pem), RootSource::Pem(pem));
    assert_eq!(TokenSource::from_setting(""), TokenSource::None);
    assert_eq!(
        TokenSource::from_setting("/run/token"),
        TokenSource::File("/run/token".into())
    );
    let token = TokenSource::from_setting("abc.def");
    assert_eq!(token, TokenSource::Static("abc.def".to_owned()));
    assert!(!format!("{token:?}").contains("abc"));
}
