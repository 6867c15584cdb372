use std::{process::Command, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyUsagePurpose};
use tempfile::TempDir;

use super::*;
use crate::{
    ca::{
        Follower,
        tests::{csr, directory, identity, now, open, p256},
    },
    state_dir::StateDir,
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(params(name), p256()).unwrap()
}

fn below(above: &Ca, params: CertificateParams) -> Ca {
    CertifiedIssuer::signed_by(params, p256(), above).unwrap()
}

/// Written as one state: certificate and key of `signer`, the chain, the roots.
fn write(directory: &Path, signer: &Ca, chain: &[&Ca], roots: &[&Ca]) {
    let text = |all: &[&Ca]| all.iter().map(|ca| ca.pem()).collect::<String>();
    for (file, text) in [
        (CERTIFICATE_FILE, signer.pem()),
        (KEY_FILE, signer.key().serialize_pem()),
        (CHAIN_FILE, text(chain)),
        (ROOT_FILE, text(roots)),
    ] {
        fs::write(directory.join(file), text).unwrap();
    }
}

fn take(directory: &TempDir) -> Result<Authority, String> {
    Authority::of_operator(directory.path(), now()).map_err(|error| error.to_string())
}

fn signed(authority: &Authority) -> Vec<String> {
    let signed = authority.sign(&csr(&p256()), &identity(), None, now());
    signed.unwrap()
}

/// What a peer does that has the roots only.
fn openssl_accepts(chain: &[String]) {
    let directory = TempDir::new().unwrap();
    let [leaf, intermediates @ .., roots] = chain else {
        panic!("{chain:?}")
    };
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
    openssl.arg(file("roots", roots));
    if !intermediates.is_empty() {
        let untrusted = file("intermediates", &intermediates.concat());
        openssl.arg("-untrusted").arg(untrusted);
    }
    let output = openssl.arg(file("leaf", leaf)).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
}

#[test]
fn an_intermediate_signs_and_its_chain_goes_with_the_leaf() {
    let directory = TempDir::new().unwrap();
    let (root, other) = (root("root"), root("other"));
    let upper = below(&root, params("upper"));
    let lower = below(&upper, params("lower"));
    // Istio's own makefile writes the signing certificate and the root into the chain; others write neither.
    for chain in [&[&lower, &root, &upper][..], &[&upper]] {
        write(directory.path(), &lower, chain, &[&other, &root]);
        let authority = take(&directory).unwrap();
        let signed = signed(&authority);
        let tail = [lower.pem(), upper.pem(), root.pem() + &other.pem()];
        let plain = |text: &String| text.replace("\r\n", "\n");
        assert_eq!(
            signed[1..].to_vec(),
            tail.iter().map(plain).collect::<Vec<_>>()
        );
        openssl_accepts(&signed);
    }
}

#[test]
fn a_root_signs_itself() {
    let directory = TempDir::new().unwrap();
    let root = root("root");
    write(directory.path(), &root, &[], &[&root]);
    fs::remove_file(directory.path().join(CHAIN_FILE)).unwrap();
    let signed = signed(&take(&directory).unwrap());
    assert_eq!(signed.len(), 2);
    openssl_accepts(&signed);
}

#[test]
fn an_rsa_key_of_openssl_signs() {
    let directory = TempDir::new().unwrap();
    let path = |file: &str| directory.path().join(file);
    let openssl = |args: &[&str], out: &str| {
        let mut command = Command::new("openssl");
        let output = command.args(args).arg("-out").arg(path(out)).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // As of old: PKCS#1, "BEGIN RSA PRIVATE KEY".
    openssl(&["genrsa", "-traditional"], KEY_FILE);
    let key = path(KEY_FILE);
    let self_signed = [
        "req",
        "-x509",
        "-subj",
        "/O=Istio/O=Again/CN=Root CA",
        "-days",
        "2",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-key",
        key.to_str().unwrap(),
    ];
    openssl(&self_signed, ROOT_FILE);
    fs::copy(path(ROOT_FILE), path(CERTIFICATE_FILE)).unwrap();
    // Two organisations are one too many for the library that signs: better told now than by every peer.
    let error = take(&directory).err().unwrap();
    assert!(error.contains("cannot be written"), "{error}");
    let one = self_signed.map(|arg| {
        if arg.starts_with("/O") {
            "/O=Istio/CN=Root CA"
        } else {
            arg
        }
    });
    openssl(&one, ROOT_FILE);
    fs::copy(path(ROOT_FILE), path(CERTIFICATE_FILE)).unwrap();
    openssl_accepts(&signed(&take(&directory).unwrap()));
}

// tidy: table
#[test]
fn what_peers_would_not_accept_is_refused() {
    let check = |what: &str, expected: &str, damage: &dyn Fn(&Path)| {
        let directory = TempDir::new().unwrap();
        let root = root("root");
        let intermediate = below(&root, params("intermediate"));
        write(directory.path(), &intermediate, &[&intermediate], &[&root]);
        assert!(take(&directory).is_ok(), "{what}");
        damage(directory.path());
        let error = take(&directory).err().expect(what);
        assert!(error.contains(expected), "{what}: {error}");
    };
    let one = root("root");
    check("another's key", "foreign", &|directory| {
        fs::write(directory.join(KEY_FILE), p256().serialize_pem()).unwrap();
    });
    check(
        "another root of the same name",
        "leads to none",
        &|directory| {
            fs::write(directory.join(ROOT_FILE), one.pem()).unwrap();
        },
    );
    check("no key", "cannot read", &|directory| {
        fs::remove_file(directory.join(KEY_FILE)).unwrap();
    });
    check("half a root", "cannot be used", &|directory| {
        let pem = one.pem();
        fs::write(directory.join(ROOT_FILE), &pem[..pem.len() / 2]).unwrap();
    });
    check("an empty file", "holds no certificate", &|directory| {
        fs::write(directory.join(CERTIFICATE_FILE), "").unwrap();
    });
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params("intermediate");
        change(&mut params);
        below(&one, params)
    };
    let replace = |ca: Ca| {
        let (one, chain) = (one.pem(), ca.pem());
        move |directory: &Path| {
            write(directory, &ca, &[], &[]);
            fs::write(directory.join(CHAIN_FILE), &chain).unwrap();
            fs::write(directory.join(ROOT_FILE), &one).unwrap();
        }
    };
    let leaf = with(&|params| params.is_ca = IsCa::ExplicitNoCa);
    check("a leaf", "not a CA", &replace(leaf));
    let old = with(&|params| params.not_after = now() - time::Duration::minutes(1));
    check("out of date", "expired", &replace(old));
    let young = with(&|params| params.not_before = now() + time::Duration::hours(1));
    check("not yet", "valid only from", &replace(young));
    let mute = with(&|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    check("may not sign", "key usage", &replace(mute));
    let short = with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let lower = below(&short, params("lower"));
    let short = short.pem();
    check("too long", "path length", &|directory| {
        replace(below(&one, params("x")))(directory);
        fs::write(directory.join(CERTIFICATE_FILE), lower.pem()).unwrap();
        fs::write(directory.join(KEY_FILE), lower.key().serialize_pem()).unwrap();
        fs::write(directory.join(CHAIN_FILE), &short).unwrap();
    });
}

#[test]
fn no_leaf_outlives_what_signs_it() {
    let directory = TempDir::new().unwrap();
    let root = root("root");
    let mut ends_soon = params("intermediate");
    ends_soon.not_after = now() + time::Duration::minutes(5);
    let intermediate = below(&root, ends_soon);
    write(directory.path(), &intermediate, &[], &[&root]);
    let signed = signed(&take(&directory).unwrap());
    let (_, pem) = x509_parser::pem::parse_x509_pem(signed[0].as_bytes()).unwrap();
    let end = pem.parse_x509().unwrap().validity().not_after.to_datetime();
    assert!(end <= now() + time::Duration::minutes(5), "{end}");
}

struct Rotation {
    directory: TempDir,
    state: StateDir,
    _kept: TempDir,
}

impl Rotation {
    fn start(signer: &Ca, roots: &[&Ca]) -> (Self, Follower, crate::ca::Current) {
        let directory = TempDir::new().unwrap();
        write(directory.path(), signer, &[signer], roots);
        let (kept, state) = super::super::tests::directory();
        let path = directory.path().to_owned();
        let (follower, current) = Follower::start(path, state.clone(), now()).unwrap();
        let rotation = Self {
            directory,
            state,
            _kept: kept,
        };
        (rotation, follower, current)
    }

    fn published(&self) -> String {
        fs::read_to_string(self.state.file(ROOT_FILE)).unwrap()
    }
}

#[test]
fn old_root_then_both_then_the_new_issuer_then_the_new_root() {
    let (old, new) = (root("root"), root("root"));
    let (first, second) = (below(&old, params("first")), below(&new, params("second")));
    let (rotation, mut follower, current) = Rotation::start(&first, &[&old]);
    let mut step = |signer: &Ca, roots: &[&Ca]| {
        write(rotation.directory.path(), signer, &[signer], roots);
        follower.look(now());
        // Might still be being written.
        follower.look(now());
        let chain = signed(&Arc::clone(&current.borrow()));
        openssl_accepts(&chain);
        assert_eq!(chain[1], signer.pem().replace("\r\n", "\n"));
        assert_eq!(chain[2], rotation.published());
        rotation.published()
    };
    let plain = |all: &[&Ca]| -> String {
        all.iter()
            .map(|ca| ca.pem().replace("\r\n", "\n"))
            .collect()
    };
    assert_eq!(step(&first, &[&new, &old]), plain(&[&old, &new]));
    // The issuer's root comes first, so that those who watch the roots learn of the issuer.
    assert_eq!(step(&second, &[&new, &old]), plain(&[&new, &old]));
    assert_eq!(step(&second, &[&new]), plain(&[&new]));
}

#[test]
fn files_that_do_not_fit_together_change_nothing() {
    let (old, new) = (root("old"), root("new"));
    let (rotation, mut follower, mut current) = Rotation::start(&old, &[&old]);
    current.borrow_and_update();
    let before = rotation.published();
    let file = |name: &str| rotation.directory.path().join(name);
    fs::write(file(KEY_FILE), new.key().serialize_pem()).unwrap();
    for _ in 0..3 {
        follower.look(now());
    }
    assert!(!current.has_changed().unwrap());
    assert_eq!(rotation.published(), before);
    fs::write(file(CERTIFICATE_FILE), new.pem()).unwrap();
    fs::write(file(CHAIN_FILE), "").unwrap();
    fs::write(file(ROOT_FILE), new.pem() + &old.pem()).unwrap();
    // Seen once: it may be half of what is to come.
    follower.look(now());
    assert!(!current.has_changed().unwrap());
    follower.look(now());
    assert!(current.has_changed().unwrap());
    assert_eq!(
        current.borrow_and_update().signing_root(),
        new.pem().trim().replace("\r\n", "\n")
    );
}

#[test]
fn two_authorities_are_one_too_many() {
    let directory = TempDir::new().unwrap();
    let ours = root("ours");
    write(directory.path(), &ours, &[], &[&ours]);
    let (_kept, state) = directory_with_authority();
    let error = Follower::start(directory.path().to_owned(), state.clone(), now()).err();
    assert!(matches!(error, Some(CaError::TwoAuthorities(_))));
    // As the message advises.
    fs::rename(state.file(KEY_FILE), directory.path().join(KEY_FILE)).unwrap();
    fs::copy(
        state.file(ROOT_FILE),
        directory.path().join(CERTIFICATE_FILE),
    )
    .unwrap();
    let before = fs::read_to_string(state.file(ROOT_FILE)).unwrap();
    fs::rename(state.file(ROOT_FILE), directory.path().join(ROOT_FILE)).unwrap();
    let started = Follower::start(directory.path().to_owned(), state.clone(), now());
    let (_follower, current) = started.unwrap();
    openssl_accepts(&signed(&Arc::clone(&current.borrow())));
    assert_eq!(
        fs::read_to_string(state.file(ROOT_FILE)).unwrap(),
        before.replace("\r\n", "\n")
    );
}

fn directory_with_authority() -> (TempDir, StateDir) {
    let (kept, state) = directory();
    open(&state).unwrap();
    (kept, state)
}
