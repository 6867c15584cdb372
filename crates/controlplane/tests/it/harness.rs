//! A control plane with its directories, and clients for it.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leyline_controlplane::{
    Caller, ControlPlane, ROOT_FILE, ServerConfig, StateDir, TokenKey, translate::MeshSettings,
};
use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
};
use leyline_runtime::Drain;
use leyline_tls::control_plane::{
    AuthInterceptor, ControlPlaneConfig, RootSource, TokenSource, channel,
};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, service::interceptor::InterceptedService, transport::Channel};

/// An edit must arrive within this time.
pub(crate) const WITHIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type Service = InterceptedService<Channel, AuthInterceptor>;

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) server: Option<(ControlPlane, Drain)>,
}

impl Fixture {
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("config")).unwrap();
        let mut fixture = Self {
            directory,
            server: None,
        };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture.restart().await;
        fixture
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let drain = Drain::new();
        let config = ServerConfig {
            config_dirs: vec![self.directory.path().join("config")],
            state_dir: self.state(),
            ca_dir: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: Some("127.0.0.1:0".parse().unwrap()),
            names: vec!["controlplane.example".to_owned()],
            mesh: MeshSettings::default(),
        };
        let server = ControlPlane::start(config, Arc::new(String::new), &drain)
            .await
            .unwrap();
        self.server = Some((server, drain));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((_, drain)) = self.server.take() {
            let outcome = drain.run(Duration::from_secs(2)).await;
            assert_eq!(outcome, leyline_runtime::DrainOutcome::Finished);
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.state().join(ROOT_FILE)
    }

    /// As a careful editor does: written aside, then renamed.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let config = self.directory.path().join("config");
        fs::write(config.join(".new"), text).unwrap();
        fs::rename(config.join(".new"), config.join(name)).unwrap();
    }

    pub(crate) fn token(&self, namespace: &str, account: &str, node: Option<&str>) -> String {
        let key = TokenKey::open(&StateDir::open(&self.state()).unwrap()).unwrap();
        let caller = Caller {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            node: node.map(ToOwned::to_owned),
            pod: None,
        };
        key.issue(&caller, Duration::from_secs(60), SystemTime::now())
    }

    pub(crate) fn node_token(&self, node: &str) -> String {
        self.token("istio-system", "ztunnel", Some(node))
    }

    /// A channel that brings `token` with each call.
    pub(crate) fn service(&self, token: Option<String>) -> Service {
        let (server, _) = self.server.as_ref().unwrap();
        let config = ControlPlaneConfig {
            address: format!("https://localhost:{}", server.address().port()),
            root: RootSource::File(self.root()),
            alt_hostname: None,
            token: token.map_or(TokenSource::None, TokenSource::Static),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        };
        InterceptedService::new(
            channel(&config).unwrap(),
            AuthInterceptor::new(&config).unwrap(),
        )
    }

    pub(crate) async fn subscriber(&self, node: &str) -> Subscriber {
        Subscriber::connect(self.service(Some(self.node_token(node))))
            .await
            .unwrap()
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        let (server, _) = self.server.as_ref().unwrap();
        let body = get(server.admin_address().unwrap(), "/status").await;
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until the status says so.
    pub(crate) async fn status_until(
        &self,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{status:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The body of an HTTP answer.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    #[expect(clippy::disallowed_methods, reason = "a test client of the admin page")]
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A delta ADS stream.
pub(crate) struct Subscriber {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Subscriber {
    pub(crate) async fn connect(service: Service) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(service);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    pub(crate) async fn subscribe(&self, type_url: &str, known: &[(String, String)]) {
        self.send(DeltaDiscoveryRequest {
            node: Some(Node {
                id: "ztunnel~127.0.0.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
                ..Node::default()
            }),
            type_url: type_url.to_owned(),
            initial_resource_versions: known.iter().cloned().collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next response, not yet acknowledged.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        timeout(PATIENCE, self.responses.message())
            .await
            .expect("a response")
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn error(&mut self) -> tonic::Status {
        timeout(PATIENCE, self.responses.message())
            .await
            .expect("an end")
            .unwrap_err()
    }

    /// Waits until the stream is over, however.
    pub(crate) async fn ends(&mut self) {
        let over = async { while matches!(self.responses.message().await, Ok(Some(_))) {} };
        timeout(PATIENCE, over).await.expect("an end");
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_quiet(&mut self, during: Duration) -> bool {
        timeout(during, self.responses.message()).await.is_err()
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| leyline_proto::google::rpc::Status {
                message: message.to_owned(),
                ..Default::default()
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// Subscribes to both types and acknowledges both first responses.
    pub(crate) async fn synchronise(&mut self) -> Vec<DeltaDiscoveryResponse> {
        self.subscribe(ADDRESS_TYPE, &[]).await;
        self.subscribe(AUTHORIZATION_TYPE, &[]).await;
        let mut first = Vec::new();
        for _ in 0..2 {
            let response = self.next().await;
            self.ack(&response).await;
            first.push(response);
        }
        first
    }
}

/// Names in a response, removed ones with a minus.
pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let changed = response
        .resources
        .iter()
        .map(|resource| resource.name.clone());
    changed
        .chain(
            response
                .removed_resources
                .iter()
                .map(|name| format!("-{name}")),
        )
        .collect()
}
