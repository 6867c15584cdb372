//! How long an edit takes from the file to a proxy, in a mesh of some size:
//! `cargo run --release -p leyline-controlplane --example scale -- 5000`.
//!
//! A control plane runs in this process; a proxy follows it over TLS. All pods are in one namespace with all services
//! (the worst case for selectors), once in one file and once in a file each. Reported is the slowest of some edits.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement, which prints and may fail"
)]

use std::{
    fmt::Write,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leyline_controlplane::{
    Caller, ControlPlane, ROOT_FILE, ServerConfig, StateDir, TokenKey, translate::MeshSettings,
};
use leyline_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use leyline_runtime::Drain;
use leyline_tls::control_plane::{
    AuthInterceptor, ControlPlaneConfig, RootSource, TokenSource, channel,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, service::interceptor::InterceptedService};

const SERVICES: usize = 200;
const POLICIES: usize = 100;
const EDITS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
enum Layout {
    OneFile,
    FileEach,
}

struct Config<'a> {
    directory: &'a Path,
    layout: Layout,
    documents: Vec<(String, String)>,
}

impl Config<'_> {
    fn put(&mut self, name: &str, text: String) {
        let known = self.documents.iter_mut().find(|(known, _)| known == name);
        match known {
            Some((_, known)) => *known = text,
            None => panic!("no document {name}"),
        }
        match self.layout {
            Layout::OneFile => self.write_all(),
            Layout::FileEach => self.write(name),
        }
    }

    fn write_all(&self) {
        match self.layout {
            Layout::OneFile => {
                let all: Vec<&str> = self.documents.iter().map(|(_, text)| &**text).collect();
                self.replace("all.yaml", &all.join("---\n"));
            }
            Layout::FileEach => self.documents.iter().for_each(|(name, _)| self.write(name)),
        }
    }

    fn write(&self, name: &str) {
        let text = &self
            .documents
            .iter()
            .find(|(known, _)| known == name)
            .unwrap()
            .1;
        self.replace(&format!("{name}.yaml"), text);
    }

    fn replace(&self, name: &str, text: &str) {
        fs::write(self.directory.join(".new"), text).unwrap();
        fs::rename(self.directory.join(".new"), self.directory.join(name)).unwrap();
    }
}

fn pod(n: usize, label: &str) -> String {
    let service = n % SERVICES;
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{n}\n  namespace: shop\n  labels: {{app: app-{service}, \
         edit: '{label}', app.kubernetes.io/name: app-{service}}}\nspec:\n  nodeName: node-{}\n  serviceAccountName: \
         sa-{service}\n  containers:\n  - name: main\n    image: registry.example/app:{n}\n    ports: \
         [{{containerPort: 8080, name: http}}]\n    resources: {{limits: {{cpu: 1, memory: 64Mi}}}}\n",
        n % 50
    )
}

fn status(n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{n}, namespace: shop}}\nstatus:\n  phase: Running\n  podIPs: \
         [{{ip: 10.{}.{}.{}}}]\n  conditions: [{{type: Ready, status: 'True'}}]\n",
        n / 62_500,
        n / 250 % 250,
        n % 250 + 1
    )
}

fn service(n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: app-{n}, namespace: shop}}\nspec:\n  clusterIP: 10.200.0.{}\n  \
         selector: {{app: app-{n}}}\n  ports: [{{name: http, port: 80, targetPort: http}}]\n",
        n + 1
    )
}

fn policy(n: usize, port: usize) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{n}, namespace: \
         shop}}\nspec:\n  selector: {{matchLabels: {{app: app-{n}}}}}\n  rules:\n  - from: [{{source: {{principals: \
         [cluster.local/ns/shop/sa/sa-{n}]}}}}]\n    to: [{{operation: {{ports: ['{port}']}}}}]\n"
    )
}

fn documents(pods: usize) -> Vec<(String, String)> {
    let mut all = vec![(
        "ns".to_owned(),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n"
            .to_owned(),
    )];
    all.extend((0..pods).map(|n| (format!("pod-{n}"), pod(n, "0"))));
    all.extend((0..pods).map(|n| (format!("status-{n}"), status(n))));
    all.extend((0..SERVICES).map(|n| (format!("service-{n}"), service(n))));
    all.extend((0..POLICIES).map(|n| (format!("policy-{n}"), policy(n, 80))));
    all
}

struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    async fn connect(address: std::net::SocketAddr, state: &Path) -> Self {
        let key = TokenKey::open(&StateDir::open(state).unwrap()).unwrap();
        let caller = Caller {
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            node: Some("node-0".to_owned()),
            pod: None,
        };
        let token = key.issue(&caller, Duration::from_secs(3600), SystemTime::now());
        let config = ControlPlaneConfig {
            address: format!("https://localhost:{}", address.port()),
            root: RootSource::File(state.join(ROOT_FILE)),
            alt_hostname: None,
            token: TokenSource::Static(token),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        };
        let service = InterceptedService::new(
            channel(&config).unwrap(),
            AuthInterceptor::new(&config).unwrap(),
        );
        let (requests, receiver) = mpsc::channel(8);
        let mut client =
            AggregatedDiscoveryServiceClient::new(service).max_decoding_message_size(1 << 28);
        let stream = client.delta_aggregated_resources(ReceiverStream::new(receiver));
        let responses = stream.await.unwrap().into_inner();
        let mut proxy = Self {
            requests,
            responses,
        };
        for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            let type_url = type_url.to_owned();
            let first = DeltaDiscoveryRequest {
                type_url,
                ..DeltaDiscoveryRequest::default()
            };
            proxy.requests.send(first).await.unwrap();
        }
        for _ in 0..2 {
            proxy.next().await;
        }
        proxy
    }

    /// Waits for a response, acknowledges it, and says how many resources it had.
    async fn next(&mut self) -> usize {
        let response = timeout(PATIENCE, self.responses.message())
            .await
            .expect("a response");
        let response = response.unwrap().unwrap();
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
        response.resources.len()
    }
}

/// The slowest of some edits of labels and of policies.
async fn edit(config: &mut Config<'_>, proxy: &mut Proxy) -> [Duration; 2] {
    let mut slowest = [Duration::ZERO; 2];
    for n in 0..EDITS {
        let app = n + 1;
        for (kind, (name, text)) in [
            (
                format!("pod-{n}"),
                pod(n, "1").replace(&format!("app: app-{n}"), &format!("app: app-{app}")),
            ),
            (format!("policy-{n}"), policy(n, 81)),
        ]
        .into_iter()
        .enumerate()
        {
            let start = Instant::now();
            config.put(&name, text);
            let resources = proxy.next().await;
            slowest[kind] = slowest[kind].max(start.elapsed());
            assert_eq!(resources, 1, "only what changed is sent");
        }
    }
    slowest
}

async fn measure(pods: usize, layout: Layout) {
    let directory = tempfile::TempDir::new().unwrap();
    let config_dir = directory.path().join("config");
    fs::create_dir(&config_dir).unwrap();
    let mut config = Config {
        directory: &config_dir,
        layout,
        documents: documents(pods),
    };
    config.write_all();
    let state = directory.path().join("state");
    let drain = Drain::new();
    let start = Instant::now();
    let server = ControlPlane::start(
        ServerConfig {
            config_dirs: vec![config_dir.clone()],
            state_dir: state.clone(),
            ca_dir: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: None,
            names: Vec::new(),
            mesh: MeshSettings::default(),
        },
        Arc::new(String::new),
        &drain,
    )
    .await
    .unwrap();
    let loaded = start.elapsed();
    let start = Instant::now();
    let mut proxy = Proxy::connect(server.address(), &state).await;
    let first = start.elapsed();

    let slowest = edit(&mut config, &mut proxy).await;
    drain.run(Duration::from_secs(5)).await;
    let mut line = format!(
        "{pods} pods, {}: ",
        match layout {
            Layout::OneFile => "one file",
            Layout::FileEach => "a file each",
        }
    );
    for (what, time) in [
        ("load", loaded),
        ("first push", first),
        ("label edit", slowest[0]),
        ("policy edit", slowest[1]),
    ] {
        write!(line, "{what} {:.0} ms  ", time.as_secs_f64() * 1e3).unwrap();
    }
    println!("{line}");
}

#[tokio::main]
async fn main() {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .map(|size| size.parse().unwrap())
        .collect();
    for pods in if sizes.is_empty() {
        vec![1000, 5000]
    } else {
        sizes
    } {
        for layout in [Layout::OneFile, Layout::FileEach] {
            measure(pods, layout).await;
        }
    }
}
