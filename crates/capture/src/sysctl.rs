//! Sysctls of a pod that capture needs, and their former values. All functions act on the namespace of the thread.

use std::{fs, io};

use leyline_ebpf_abi::SavedSysctl;

/// In the order of `Pod::sysctls`. With them the application's answers to the proxy carry the capture mark, and so go
/// back over loopback although the peer's address is remote.
const NEEDED: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];
const ON: i32 = 1;

/// Reads the values to go back to, keeping what an earlier process saved. IPv6 may be missing altogether.
pub(crate) fn save(saved: [SavedSysctl; 3]) -> io::Result<[SavedSysctl; 3]> {
    let mut all = saved;
    for (slot, path) in all.iter_mut().zip(NEEDED) {
        if slot.saved == 0
            && let Some(value) = read(path)?
        {
            *slot = SavedSysctl { saved: 1, value };
        }
    }
    Ok(all)
}

/// Turns on what capture needs.
pub(crate) fn apply(saved: &[SavedSysctl; 3]) -> io::Result<()> {
    for (slot, path) in saved.iter().zip(NEEDED) {
        if slot.saved == 1 {
            fs::write(path, ON.to_string())?;
        }
    }
    Ok(())
}

/// Writes the former values back.
pub(crate) fn restore(saved: &[SavedSysctl; 3]) -> io::Result<()> {
    for (slot, path) in saved.iter().zip(NEEDED) {
        if slot.saved == 1 {
            fs::write(path, slot.value.to_string())?;
        }
    }
    Ok(())
}

/// Whether IPv6 routes through loopback are possible.
pub(crate) fn has_ipv6() -> io::Result<bool> {
    Ok(read("/proc/sys/net/ipv6/conf/lo/disable_ipv6")? == Some(0))
}

fn read(path: &str) -> io::Result<Option<i32>> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
