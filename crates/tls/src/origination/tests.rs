use std::io::Write;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A root, and files of what it has signed.
struct Pki {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self {
            dir: TempDir::new().unwrap(),
            issuer,
        };
        pki.write("root.pem", &pki.issuer.pem());
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut file = fs::File::create(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Chain and key for names; URIs are those with a scheme.
    fn leaf(&self, names: &[&str]) -> (String, String) {
        let hosts: Vec<String> = names
            .iter()
            .filter(|name| !name.contains("://"))
            .map(|name| (*name).to_owned())
            .collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let uris = names.iter().filter(|name| name.contains("://"));
        params
            .subject_alt_names
            .extend(uris.map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    fn config(&self) -> OriginationConfig {
        OriginationConfig {
            trust: Trust::Roots(Pem::File(self.path("root.pem"))),
            revoked: None,
            client: None,
            server_name: Some("shop.example".to_owned()),
            subject_alt_names: Vec::new(),
            alpn: vec!["h2".to_owned()],
        }
    }
}

/// A handshake with a server of these names; whether it was made, and which name the server was asked for.
async fn shake(
    client: &Arc<Origination>,
    (chain, key): &(String, String),
    clients: Option<&Pki>,
) -> (bool, Option<String>) {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pki) => {
            let roots = Pem::File(pki.path("root.pem")).certificates().unwrap();
            let roots = pem::roots(roots).unwrap();
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let mut server = builder.with_single_cert(chain.unwrap(), key).unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let (near, far) = tokio::io::duplex(64 << 10);
    let accepting = TlsAcceptor::from(Arc::new(server)).accept(far);
    let connecting = client.connect(near, None, Duration::from_secs(10));
    let (accepted, connected) = tokio::join!(accepting, connecting);
    let asked = accepted.as_ref().ok().and_then(|stream| {
        let (_, session) = stream.get_ref();
        session.server_name().map(str::to_owned)
    });
    (accepted.is_ok() && connected.is_ok(), asked)
}

fn sent(text: &str) -> Pem {
    Pem::Sent(text.as_bytes().into())
}

#[tokio::test]
async fn revoked_servers_are_not_believed() {
    let pki = Pki::new();
    let leaf = pki.leaf(&["shop.example"]);
    let serial = {
        let der = sent(&leaf.0).certificates().unwrap().remove(0);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        certificate.raw_serial().to_vec()
    };
    for (serial, expected) in [(serial, false), (vec![1, 2, 3], true)] {
        let now = ::time::OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::from_secs(3600),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&pki.issuer).unwrap().pem().unwrap();
        let mut config = pki.config();
        config.revoked = Some(sent(&list));
        let client = Arc::new(Origination::new(config));
        assert_eq!(shake(&client, &leaf, None).await.0, expected);
    }
}

#[tokio::test]
async fn servers_are_believed_by_root_and_name() {
    let (pki, other) = (Pki::new(), Pki::new());
    let leaf = pki.leaf(&["shop.example", "spiffe://td/ns/a/sa/b", "10.1.2.3"]);
    let with = |change: &dyn Fn(&mut OriginationConfig)| {
        let mut config = pki.config();
        change(&mut config);
        config
    };
    let names = |names: &'static [&'static str]| {
        with(&|config| config.subject_alt_names = names.iter().map(|it| (*it).into()).collect())
    };
    for (what, config, expected) in [
        ("its name", pki.config(), true),
        (
            "another name",
            with(&|config| config.server_name = Some("other.example".into())),
            false,
        ),
        (
            "another root",
            with(&|config| config.trust = Trust::Roots(Pem::File(other.path("root.pem")))),
            false,
        ),
        (
            "no file",
            with(&|config| config.trust = Trust::Roots(Pem::File(pki.path("none")))),
            false,
        ),
        (
            "the root as it was sent",
            with(&|config| config.trust = Trust::Roots(sent(&pki.issuer.pem()))),
            true,
        ),
        (
            "roots that have not come",
            with(&|config| config.trust = Trust::Roots(Pem::Awaited("roots".into()))),
            false,
        ),
        (
            "lists that have not come",
            with(&|config| config.revoked = Some(Pem::Awaited("lists".into()))),
            false,
        ),
        (
            "lists that are none",
            with(&|config| config.revoked = Some(sent("nothing"))),
            false,
        ),
        (
            "anybody",
            with(&|config| {
                config.trust = Trust::Anybody;
                config.server_name = Some("other.example".into());
            }),
            true,
        ),
        (
            "one of the names",
            names(&["no.example", "shop.example"]),
            true,
        ),
        ("a uri", names(&["spiffe://td/ns/a/sa/b"]), true),
        ("an address", names(&["10.1.2.3"]), true),
        (
            "none of the names",
            names(&["no.example", "spiffe://td/ns/a/sa/c", "10.1.2.4"]),
            false,
        ),
        ("no name at all", names(&["", "://"]), false),
    ] {
        let client = Arc::new(Origination::new(config));
        let (made, asked) = shake(&client, &leaf, None).await;
        assert_eq!(made, expected, "{what}");
        if made && client.config().trust != Trust::Anybody {
            assert_eq!(asked.as_deref(), Some("shop.example"), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_is_shown_and_read_again_when_it_changes() {
    let (pki, other) = (Pki::new(), Pki::new());
    let leaf = pki.leaf(&["shop.example"]);
    let write = |pki_of: &Pki| {
        let (chain, key) = pki_of.leaf(&["client.example"]);
        pki.write("chain.pem", &chain);
        pki.write("key.pem", &key);
    };
    assert!(
        !shake(&Arc::new(Origination::new(pki.config())), &leaf, Some(&pki))
            .await
            .0
    );
    let mut config = pki.config();
    config.client = Some((
        Pem::File(pki.path("chain.pem")),
        Pem::File(pki.path("key.pem")),
    ));
    let client = Arc::new(Origination::new(config));
    assert!(
        !shake(&client, &leaf, Some(&pki)).await.0,
        "there is no file"
    );
    write(&other);
    assert!(
        !shake(&client, &leaf, Some(&pki)).await.0,
        "signed by a stranger"
    );
    write(&pki);
    // File systems tell times apart that are some milliseconds apart.
    let later = SystemTime::now() + Duration::from_secs(2);
    let file = fs::File::options()
        .append(true)
        .open(pki.path("key.pem"))
        .unwrap();
    file.set_modified(later).unwrap();
    tokio::time::advance(LOOK_INTERVAL).await;
    assert!(shake(&client, &leaf, Some(&pki)).await.0, "renewed");
}
