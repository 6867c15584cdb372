//! `cargo xtask codegen` runs this: compiles `proto/proto` to `proto/src/gen` with protox, so that nobody needs protoc, and
//! Envoy's protos to descriptors. With `--check` nothing is written and a difference is an error.

mod envoy;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Parser;

const SOURCES: [&str; 7] = [
    "istio/workload.proto",
    "istio/authorization.proto",
    "istio/ca.proto",
    "istio/zds.proto",
    "leyline/enrolment.proto",
    "envoy/discovery.proto",
    "xds/ip_matcher.proto",
];

#[derive(Parser)]
struct Args {
    /// Write nothing, and fail when what is committed differs.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let Args { check } = Args::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let protos = root.join("proto/proto");
    let committed = root.join("proto/src/gen");
    let scratch = root.join("target/codegen");
    fs::create_dir_all(&scratch)?;
    for old in rust_files(&scratch)? {
        fs::remove_file(old)?;
    }

    envoy::run(&root, check)?;
    let descriptors = protox::compile(SOURCES, [&protos]).context("compiling the .proto files")?;
    tonic_prost_build::configure()
        .out_dir(&scratch)
        .compile_fds(descriptors)
        .context("generating Rust from the descriptors")?;

    let generated = rust_files(&scratch)?;
    if !check {
        fs::create_dir_all(&committed)?;
        for old in rust_files(&committed)? {
            fs::remove_file(old)?;
        }
        for file in &generated {
            fs::copy(file, committed.join(file_name(file)?))?;
        }
        return Ok(());
    }
    if names(&generated)? != names(&rust_files(&committed)?)? {
        bail!(
            "proto/src/gen holds other files than the .proto files give; run `cargo xtask codegen`"
        );
    }
    for file in &generated {
        let name = file_name(file)?;
        if fs::read(file)? != fs::read(committed.join(&name))? {
            bail!("proto/src/gen/{name} differs from its .proto source; run `cargo xtask codegen`");
        }
    }
    Ok(())
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn names(files: &[PathBuf]) -> Result<Vec<String>> {
    files.iter().map(|f| file_name(f)).collect()
}

fn file_name(path: &Path) -> Result<String> {
    Ok(path
        .file_name()
        .context("a file without a name")?
        .to_string_lossy()
        .into_owned())
}
