//! `ztunnel [proxy|explain|version|cleanup|help]`.

use std::process::ExitCode;

use leyline_runtime::env::OsEnv;

/// Returns memory to the system after a peak, and is faster under many threads than the C library's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "usage: ztunnel [proxy|explain|version|cleanup|help]
  proxy    run the node proxy (default); told by its environment, see help
  explain  --from NAMESPACE/POD --to ADDRESS:PORT [--json]: ask the ztunnel that runs here what would become of a
           connection: its route, the certificate, the policies, the verdict
  version  print what was built
  cleanup  remove every trace of this instance (LEYLINE_INSTANCE) from the kernel; only when it will not run again
  help     this text and the environment that proxy reads
";

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's own output"
)]
fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None | Some("proxy") => leyline_ztunnel::run(&OsEnv),
        Some("cleanup") => leyline_ztunnel::cleanup(&OsEnv),
        Some("explain") => leyline_ztunnel::explain(std::env::args().skip(2)).map(|answer| {
            print!("{answer}");
        }),
        Some("version") => {
            println!("{}", leyline_ztunnel::version_line());
            Ok(())
        }
        Some("help") => {
            print!("{USAGE}\n{}", leyline_ztunnel::variables());
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
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
