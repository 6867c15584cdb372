//! What must hold before a mesh is brought up.

use anyhow::{Result, ensure};
pub use leyline_devtools::machine::check as check_machine;

use crate::run;

/// Says in one sentence what is missing to run a mesh with the id `id` here.
pub fn check(id: &str) -> Result<()> {
    check_machine()?;
    ensure!(
        !run::exists(id),
        "a mesh with the id `{id}` is already up; `cargo xtask demo --down --id {id}` removes it"
    );
    Ok(())
}
