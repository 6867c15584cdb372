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
    memory_mb(pid, "VmRSS:")
}

/// The most that it was since [`forget_peak`].
pub(super) fn peak_mb(pid: u32) -> Result<f64> {
    memory_mb(pid, "VmHWM:")
}

/// The peak is what it is now (proc(5), clear_refs).
pub(super) fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

fn memory_mb(pid: u32, field: &str) -> Result<f64> {
    let text = read(pid, "status")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|value| value.trim().strip_suffix("kB"))
        .with_context(|| format!("no {field} of process {pid}"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// Seconds that all cores have been at work, and been idle, since boot.
pub(super) fn machine_seconds() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let (busy, idle) = machine_ticks(&text).context("no times in /proc/stat")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")? as f64;
    Ok((busy as f64 / per_second, idle as f64 / per_second))
}

/// The first line: user, nice, system, idle, waiting, .. (proc_stat(5)). Guests are part of user.
fn machine_ticks(stat: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((ticks.iter().sum::<u64>() - idle, idle))
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
    fn the_machine_is_busy_or_idle() {
        let stat = "cpu  10 1 5 70 4 1 2 7 3 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_ticks(stat), Some((26, 74)));
        assert_eq!(machine_ticks("cpu"), None);
        assert!(machine_seconds().unwrap().1 > 0.0);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 500 0 0 0 12 30 0 0 20 0 3 0 100 1 2";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(resident_mb(std::process::id()).unwrap() > 0.5);
    }
}
