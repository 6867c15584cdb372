//! `waypoint [proxy [waypoint] [--flags]|version|help]`; the first form is how istiod starts a waypoint's container.

use std::process::ExitCode;

use leyline_runtime::env::OsEnv;

/// Returns memory to the system after a peak, and is faster under many threads than the C library's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "usage: waypoint [proxy [waypoint] [--domain DOMAIN] [...]|version|help]
  proxy    run the L7 proxy (default); told by its environment, see README.md
  version  print what was built
  help     this text
";

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's own output"
)]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        None | Some("proxy") => leyline_waypoint::run(&OsEnv, &domain(&args)),
        Some("version") => {
            println!("waypoint {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Some("help") => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => {
            eprint!("unknown command `{other}`\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("waypoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Flags are those of pilot-agent; of them only the domain says something that the environment does not.
fn domain(args: &[String]) -> String {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if let Some(domain) = arg.strip_prefix("--domain=") {
            return domain.to_owned();
        }
        if arg == "--domain" {
            return args.next().cloned().unwrap_or_default();
        }
    }
    String::new()
}
