//! What a process uses, from /proc.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time that a process has used so far, all threads, in seconds.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = read(pid, "stat")?;
    let ticks = ticks(&text).with_context(|| format!("no times in `{text}`"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(ticks as f64 / per_second as f64)
}

/// Resident memory of a process, in MB (2^20 bytes).
pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    let text = read(pid, "status")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().strip_suffix("kB"))
        .with_context(|| format!("no VmRSS of process {pid}"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

/// User and system time: fields 14 and 15 (proc_pid_stat(5)), counted after the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(14)? + field(15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 500 0 0 0 12 30 0 0 20 0 3 0 100 1 2";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(resident_mb(std::process::id()).unwrap() > 0.5);
    }
}
