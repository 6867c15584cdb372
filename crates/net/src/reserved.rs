//! Ports of the proxy that the kernel must not give to outgoing connections of a namespace: one that has such a port when the
//! proxy wants to listen there keeps it from doing so. The usual range of such ports is far above; pods may widen it.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    io::{self, Read},
};

use crate::NetNs;

/// Of the namespace of the thread that looks.
const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Adds ports to those that are reserved in a namespace.
///
/// # Errors
/// When the namespace cannot be entered, or its settings not be written: in a container they are often read-only.
pub fn reserve_ports(netns: &NetNs, ports: &[u16]) -> io::Result<()> {
    change(netns, |reserved| reserved.extend(ports))
}

/// Takes ports out again.
///
/// # Errors
/// As [`reserve_ports`].
pub fn release_ports(netns: &NetNs, ports: &[u16]) -> io::Result<()> {
    change(netns, |reserved| {
        reserved.retain(|port| !ports.contains(port));
    })
}

fn change(netns: &NetNs, change: impl FnOnce(&mut BTreeSet<u16>)) -> io::Result<()> {
    netns.run(|| {
        let before = parse(&read()?)?;
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(());
        }
        fs::write(LIST, render(&after))
    })?
}

/// The kernel gives the list to one read and nothing to a second, so that the buffer must be large enough at once. All ports
/// that are not neighbours take less.
fn read() -> io::Result<String> {
    let mut buffer = vec![0; 256 << 10];
    let length = fs::File::open(LIST)?.read(&mut buffer)?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(io::Error::other)
}

/// `80,8000-8010`, with a line end.
fn parse(text: &str) -> io::Result<BTreeSet<u16>> {
    let number = |text: &str| text.parse::<u16>().map_err(io::Error::other);
    let mut ports = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ports.extend(number(first)?..=number(last)?);
    }
    Ok(ports)
}

fn render(ports: &BTreeSet<u16>) -> String {
    let mut text = String::new();
    let mut rest = ports.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while let Some(next) = rest.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        // Writing into a string does not fail.
        let _infallible = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
    }
    // An empty write would change nothing.
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_the_kernel_writes_them() {
        for text in ["\n", "80\n", "80,90\n", "1-3,8080,65534-65535\n"] {
            assert_eq!(render(&parse(text).unwrap()), text);
        }
        assert_eq!(render(&parse("3,1,2,2,80").unwrap()), "1-3,80\n");
        for bad in ["x", "80-", "1,,70000", "-"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
