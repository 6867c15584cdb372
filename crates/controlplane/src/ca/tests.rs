use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use tempfile::TempDir;
use x509_parser::{extensions::GeneralName, prelude::ParsedExtension};

use super::*;

pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub(super) fn directory() -> (TempDir, StateDir) {
    let directory = TempDir::new().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    (directory, state)
}

pub(super) fn open(state: &StateDir) -> Result<Authority, CaError> {
    Authority::open(state, &TrustDomain::default(), now())
}

pub(super) fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

pub(super) fn csr(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    // What a request claims does not matter.
    params.subject_alt_names = vec![SanType::DnsName("evil.example".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serialize_request(key).unwrap().pem().unwrap()
}

pub(super) fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

#[test]
fn the_root_is_made_once_and_only_its_owner_can_read_the_key() {
    let (directory, state) = directory();
    let first = open(&state).unwrap();
    let second = open(&state).unwrap();
    assert_eq!(first.roots_pem(), second.roots_pem());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(state.file(KEY_FILE)), 0o600);
    assert_eq!(mode(directory.path().join("state")), 0o700);
    assert_eq!(
        fs::read_to_string(state.file(ROOT_FILE)).unwrap(),
        first.roots_pem()
    );
    // Nothing temporary stays.
    assert_eq!(
        fs::read_dir(directory.path().join("state"))
            .unwrap()
            .count(),
        2
    );
}

#[test]
fn a_leaf_has_the_identity_and_nothing_of_the_request_but_its_key() {
    let (_directory, state) = directory();
    let authority = open(&state).unwrap();
    let key = p256();
    let start = now();
    let chain = authority
        .sign(
            &csr(&key),
            &identity(),
            Some(Duration::from_secs(3600)),
            start,
        )
        .unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], authority.roots_pem());
    let pem = first_pem(&chain[0]).unwrap();
    let leaf = pem.parse_x509().unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.subject().iter().count(), 0);
    let validity = leaf.validity();
    let seconds = |time: x509_parser::time::ASN1Time| time.timestamp() - start.unix_timestamp();
    assert_eq!(
        (seconds(validity.not_before), seconds(validity.not_after)),
        (-120, 3600)
    );
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]
    );
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert_eq!((usage.critical, usage.value.flags), (true, 1));
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let has_authority_key = |e: &x509_parser::extensions::X509Extension<'_>| {
        matches!(
            e.parsed_extension(),
            ParsedExtension::AuthorityKeyIdentifier(_)
        )
    };
    assert!(leaf.extensions().iter().any(has_authority_key));
    let root = first_pem(authority.roots_pem()).unwrap();
    leaf.verify_signature(Some(root.parse_x509().unwrap().public_key()))
        .unwrap();
}

#[test]
fn openssl_accepts_the_chain() {
    let (directory, state) = directory();
    let authority = open(&state).unwrap();
    let chain = authority
        .sign(&csr(&p256()), &identity(), None, now())
        .unwrap();
    let leaf = directory.path().join("leaf.pem");
    fs::write(&leaf, &chain[0]).unwrap();
    for purpose in ["sslclient", "sslserver"] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .arg(state.file(ROOT_FILE))
            .arg(&leaf)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn lifetimes_are_capped() {
    let (_directory, state) = directory();
    let authority = open(&state).unwrap();
    let lasts = |wanted: Option<Duration>, at: OffsetDateTime| {
        let chain = authority
            .sign(&csr(&p256()), &identity(), wanted, at)
            .unwrap();
        let pem = first_pem(&chain[0]).unwrap();
        let end = pem.parse_x509().unwrap().validity().not_after.timestamp();
        end - at.unix_timestamp()
    };
    assert_eq!(lasts(None, now()), 24 * 3600);
    assert_eq!(
        lasts(Some(Duration::from_secs(u64::MAX / 2)), now()),
        90 * 24 * 3600
    );
    // Never beyond the root.
    let late = now() + time::Duration::days(3649);
    assert!(lasts(None, late) <= 24 * 3600);
    let last_minute = now() + ROOT_LIFETIME - time::Duration::minutes(1);
    assert!(lasts(None, last_minute) <= 60);
}

#[test]
fn requests_that_are_not_signed() {
    let (_directory, state) = directory();
    let authority = open(&state).unwrap();
    let good = csr(&p256());
    let pem = first_pem(&good).unwrap();
    // Another key under the same signature: the last byte of the public key changes.
    let mut forged = pem.contents.clone();
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    let key = request
        .certification_request_info
        .subject_pki
        .subject_public_key
        .data
        .to_vec();
    let at = forged
        .windows(key.len())
        .position(|window| window == key)
        .unwrap()
        + key.len()
        - 1;
    forged[at] ^= 1;
    let forged = pem_text("CERTIFICATE REQUEST", &forged);
    let sign = |csr: &str| authority.sign(csr, &identity(), None, now()).unwrap_err();
    assert!(matches!(
        sign(&forged),
        CsrError::Signature | CsrError::Key(_)
    ));
    assert!(matches!(sign(""), CsrError::Malformed));
    assert!(matches!(
        sign("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        CsrError::Malformed
    ));
    assert!(matches!(sign(authority.roots_pem()), CsrError::Malformed));
    assert!(matches!(sign(&"x".repeat(20_000)), CsrError::TooLarge));
}

fn pem_text(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

#[test]
fn an_authority_that_cannot_be_trusted_is_refused() {
    let refused = |damage: &dyn Fn(&StateDir)| {
        let (_directory, state) = directory();
        open(&state).unwrap();
        damage(&state);
        open(&state).err().expect("refused").to_string()
    };
    let other = || {
        let (_directory, state) = directory();
        open(&state).unwrap();
        (
            fs::read(state.file(KEY_FILE)).unwrap(),
            fs::read(state.file(ROOT_FILE)).unwrap(),
        )
    };
    let foreign = refused(&|state| fs::write(state.file(KEY_FILE), other().0).unwrap());
    assert!(foreign.contains("foreign"), "{foreign}");
    let foreign = refused(&|state| fs::write(state.file(ROOT_FILE), other().1).unwrap());
    assert!(foreign.contains("foreign"), "{foreign}");
    let mode = refused(&|state| {
        fs::set_permissions(state.file(KEY_FILE), fs::Permissions::from_mode(0o644)).unwrap();
    });
    assert!(mode.contains("0644"), "{mode}");
    let unreadable = refused(&|state| {
        fs::remove_file(state.file(KEY_FILE)).unwrap();
        fs::create_dir(state.file(KEY_FILE)).unwrap();
        fs::set_permissions(state.file(KEY_FILE), fs::Permissions::from_mode(0o700)).unwrap();
    });
    assert!(unreadable.contains("cannot read"), "{unreadable}");
    let garbage = refused(&|state| fs::write(state.file(ROOT_FILE), "garbage").unwrap());
    assert!(garbage.contains("cannot be used"), "{garbage}");
    let missing = refused(&|state| fs::remove_file(state.file(ROOT_FILE)).unwrap());
    assert!(missing.contains("without root-cert.pem"), "{missing}");
    let missing = refused(&|state| fs::remove_file(state.file(KEY_FILE)).unwrap());
    assert!(missing.contains("without ca-key.pem"), "{missing}");
}

#[test]
fn a_root_outside_its_time_is_refused() {
    let (_directory, state) = directory();
    open(&state).unwrap();
    let at = |time| Authority::open(&state, &TrustDomain::default(), time).err();
    assert!(matches!(
        at(now() + ROOT_LIFETIME),
        Some(CaError::Expired(..))
    ));
    assert!(matches!(
        at(now() - time::Duration::days(1)),
        Some(CaError::NotYetValid(..))
    ));
    assert!(at(now()).is_none());
}

#[test]
fn a_state_directory_with_secrets_that_others_can_enter_is_refused() {
    let (directory, state) = directory();
    open(&state).unwrap();
    let path = directory.path().join("state");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = StateDir::open(&path).err().unwrap().to_string();
    assert!(error.contains("0755"), "{error}");
    // An empty one is closed.
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    StateDir::open(&empty).unwrap();
    assert_eq!(
        fs::metadata(&empty).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn weak_and_strange_keys_get_no_certificate() {
    let (directory, state) = directory();
    let authority = open(&state).unwrap();
    let request = |algorithm: &[&str]| {
        let output = Command::new("openssl")
            .args(["req", "-new", "-nodes", "-subj", "/CN=x", "-keyout"])
            .arg(directory.path().join("key"))
            .args(algorithm)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let sign = |algorithm: &[&str]| authority.sign(&request(algorithm), &identity(), None, now());
    let curve = |name: &'static str| sign(&["-newkey", "ec", "-pkeyopt", name]);
    assert!(sign(&["-newkey", "rsa:2048"]).is_ok());
    assert!(curve("ec_paramgen_curve:P-256").is_ok());
    assert!(curve("ec_paramgen_curve:P-384").is_ok());
    for (what, refused) in [
        ("RSA 1024", sign(&["-newkey", "rsa:1024"])),
        ("RSA 4608", sign(&["-newkey", "rsa:4608"])),
        ("secp256k1", curve("ec_paramgen_curve:secp256k1")),
        ("Ed25519", sign(&["-newkey", "ed25519"])),
        ("SHA-1", sign(&["-newkey", "rsa:2048", "-sha1"])),
    ] {
        let error = refused.expect_err(what);
        assert!(
            matches!(error, CsrError::Key(_) | CsrError::Signature),
            "{what}: {error}"
        );
    }
}

#[test]
fn a_state_directory_of_somebody_else_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("state");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    // Only root can give a directory away; others meet only directories that they cannot enter.
    if std::os::unix::fs::chown(&path, Some(65534), None).is_err() {
        return;
    }
    let error = StateDir::open(&path).err().unwrap().to_string();
    assert!(error.contains("belongs to user 65534"), "{error}");
    // Nor does a link to it help.
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(StateDir::open(&link).is_err());
}
