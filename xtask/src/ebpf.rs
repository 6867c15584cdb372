//! `cargo xtask ebpf`: builds `ebpf/programs` to the committed object `ebpf/leyline.bpf.o`; with `--check` compares and
//! writes nothing. Installs the BPF toolchain where it is missing. An ordinary build needs none of this.
//!
//! The object is the same, byte for byte, wherever it is built with the same compiler, linker and lock file; what built
//! it is recorded next to it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Whether the committed object is written or compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Check,
}

const OBJECT: &str = "ebpf/leyline.bpf.o";
const RECORD: &str = "ebpf/leyline.bpf.txt";
const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler: the standard library's source must be exactly that of the compiler, and only Debian ships both
/// with an LLVM that bpf-linker can load.
const RUSTC: &str = "/usr/bin/rustc";
const RUSTC_VERSION: &str = "rustc 1.96.";
const RUST_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
const LIBLLVM_DIRS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
const LIBLLVM: &str = "libLLVM.so.22.1";
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Where an image for CI may hold bpf-linker.
const BPF_LINKER_DIR: &str = "/opt/bl/bin";

pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    let scratch = root.join("target/ebpf");
    fs::create_dir_all(&scratch)?;
    ensure_compiler()?;
    let linker = ensure_linker(&scratch)?;
    build(root, &scratch, &linker)?;
    let built = strip(&scratch)?;
    let object = fs::read(&built)?;
    let record = record(root, &linker, &object)?;
    match mode {
        Mode::Write => {
            fs::write(root.join(OBJECT), &object)?;
            fs::write(root.join(RECORD), record)?;
            Ok(())
        }
        Mode::Check => check(root, &object, &record),
    }
}

fn check(root: &Path, object: &[u8], record: &str) -> Result<()> {
    if fs::read(root.join(OBJECT)).unwrap_or_default() != object {
        bail!(
            "{OBJECT} is not what ebpf/programs gives; run `cargo xtask ebpf` and commit it.\ncommitted:\n{}\nbuilt:\n{record}",
            fs::read_to_string(root.join(RECORD)).unwrap_or_default()
        );
    }
    ensure!(
        fs::read_to_string(root.join(RECORD)).unwrap_or_default() == record,
        "{RECORD} does not describe {OBJECT}; run `cargo xtask ebpf`"
    );
    Ok(())
}

fn ensure_compiler() -> Result<()> {
    let present = || Path::new(RUST_SOURCE).is_dir() && output(RUSTC, &["--version"]).is_ok();
    if !present() {
        say(&format!("installing {}", DEBIAN_PACKAGES.join(", ")));
        succeed(Command::new("apt-get").args(["update", "-q"]))?;
        succeed(
            Command::new("apt-get")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(DEBIAN_PACKAGES),
        )
        .context("installing the compiler for BPF needs root and a Debian with rustc-web")?;
    }
    let version = output(RUSTC, &["--version"])?;
    ensure!(
        version.starts_with(RUSTC_VERSION),
        "{RUSTC} is `{version}`, but the object is built with {RUSTC_VERSION}*"
    );
    Ok(())
}

/// The directory that holds bpf-linker.
fn ensure_linker(scratch: &Path) -> Result<PathBuf> {
    let own = scratch.join("tools");
    for dir in [PathBuf::from(BPF_LINKER_DIR), own.join("bin")] {
        let version = output(dir.join("bpf-linker"), &["--version"]).unwrap_or_default();
        if version.ends_with(BPF_LINKER_VERSION) {
            return Ok(dir);
        }
    }
    say(&format!(
        "building bpf-linker {BPF_LINKER_VERSION} (about 90 s, once)"
    ));
    let llvm = LIBLLVM_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(LIBLLVM))
        .find(|library| library.exists())
        .with_context(|| format!("{LIBLLVM} is missing; it comes with rustc-web"))?;
    // bpf-linker's build wants a prefix with lib/libLLVM.so and nothing else of an LLVM installation.
    let prefix = scratch.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(llvm, link)?;
    succeed(
        cargo()
            .args(["install", "bpf-linker", "--locked", "--version"])
            .args([BPF_LINKER_VERSION, "--no-default-features"])
            .args(["--features", "llvm-22", "--root"])
            .arg(&own)
            .env("LLVM_PREFIX", prefix),
    )?;
    Ok(own.join("bin"))
}

fn build(root: &Path, scratch: &Path, linker: &Path) -> Result<()> {
    let sysroot = output(RUSTC, &["--print", "sysroot"])?;
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    // Paths would get into the object through BTF's line information. The last prefix that matches wins.
    let remapped = [
        (root, "/src"),
        (cargo_home.as_path(), "/cargo"),
        (Path::new(&sysroot), "/sysroot"),
        (scratch, "/target"),
    ];
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(remapped.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())));

    let mut path = OsString::from(linker);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    succeed(
        cargo()
            .args(["build", "--quiet", "--locked", "--release"])
            .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(scratch)
            .current_dir(root.join("ebpf/programs"))
            .env("PATH", path)
            .env("RUSTC", RUSTC)
            // -Zbuild-std with a stable compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.collect::<Vec<_>>().join("\x1f"),
            ),
    )
}

/// Drops DWARF; BTF, which the kernel reads, stays.
fn strip(scratch: &Path) -> Result<PathBuf> {
    let stripped = scratch.join("leyline.bpf.o");
    succeed(
        Command::new("objcopy")
            .args(["-I", "elf64-little", "--strip-debug"])
            .arg(scratch.join(TARGET).join("release/leyline"))
            .arg(&stripped),
    )
    .context("objcopy of binutils is needed")?;
    Ok(stripped)
}

fn record(root: &Path, linker: &Path, object: &[u8]) -> Result<String> {
    let lock = fs::read_to_string(root.join("ebpf/programs/Cargo.lock"))?;
    let aya = lock
        .split("[[package]]")
        .find(|package| package.contains("name = \"aya-ebpf\""))
        .and_then(|package| package.lines().find_map(|l| l.strip_prefix("version = ")))
        .context("aya-ebpf is not in ebpf/programs/Cargo.lock")?;
    let digest: String = Sha256::digest(object)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!(
        "Built by `cargo xtask ebpf` from ebpf/programs and ebpf/abi.\nrustc: {}\nlinker: {}\naya-ebpf: {}\nsha256: {digest}\n",
        output(RUSTC, &["--version"])?,
        output(linker.join("bpf-linker"), &["--version"])?,
        aya.trim_matches('"'),
    ))
}

/// Cargo without what the cargo that runs this command has set for it.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for variable in ["RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC", "RUSTC_WRAPPER"] {
        command.env_remove(variable);
    }
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(
        status.success(),
        "{} failed: {status}",
        command.get_program().display()
    );
    Ok(())
}

fn output(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<String> {
    let result = Command::new(program).args(args).output()?;
    ensure!(result.status.success(), "failed: {}", result.status);
    Ok(String::from_utf8(result.stdout)?.trim().to_owned())
}

#[expect(clippy::print_stderr, reason = "progress of a command for people")]
fn say(text: &str) {
    eprintln!("xtask ebpf: {text}");
}
