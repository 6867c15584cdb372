//! Which addresses a pod owns, and what follows for its routes.

use std::net::IpAddr;

use leyline_ebpf_abi::maps::MAX_ADDRESSES;

use crate::{
    error::CaptureError,
    netlink::{FamilyRoutes, InterfaceAddress},
};

/// The addresses of a pod, those named by the control plane first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    pub(crate) all: Vec<IpAddr>,
    pub(crate) v4: Option<FamilyRoutes>,
    pub(crate) v6: Option<FamilyRoutes>,
}

/// Joins what the control plane says with what the namespace has: traffic of an address that only one of them knows is
/// captured too. A family without a usable address gets no routes, and the hooks then refuse it.
pub(crate) fn collect(
    cookie: u64,
    named: &[IpAddr],
    found: &[InterfaceAddress],
) -> Result<PodAddresses, CaptureError> {
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in named.iter().copied().chain(found.iter().map(|f| f.ip)) {
        let ip = ip.to_canonical();
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    if all.len() > MAX_ADDRESSES as usize {
        return Err(CaptureError::TooManyAddresses {
            cookie,
            count: all.len(),
            limit: MAX_ADDRESSES as usize,
        });
    }
    Ok(PodAddresses {
        v4: family(&all, found, IpAddr::is_ipv4),
        v6: family(&all, found, IpAddr::is_ipv6),
        all,
    })
}

fn family(
    all: &[IpAddr],
    found: &[InterfaceAddress],
    of: impl Fn(&IpAddr) -> bool,
) -> Option<FamilyRoutes> {
    // Only an address that the namespace has can be the source of a route.
    let source = *all
        .iter()
        .find(|ip| of(ip) && found.iter().any(|f| f.ip == **ip))?;
    let mut devices: Vec<InterfaceAddress> = Vec::new();
    for candidate in found.iter().filter(|f| of(&f.ip)) {
        match devices.iter_mut().find(|d| d.index == candidate.index) {
            // The primary address, when the interface has it, is the better source.
            Some(device) if candidate.ip == source => *device = *candidate,
            Some(_) => {}
            None => devices.push(*candidate),
        }
    }
    Some(FamilyRoutes { source, devices })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(index: u32, text: &str) -> InterfaceAddress {
        InterfaceAddress {
            index,
            ip: ip(text),
        }
    }

    #[test]
    fn joins_named_and_found() {
        let found = [
            at(2, "10.0.0.9"),
            at(2, "10.0.0.2"),
            at(3, "192.168.7.2"),
            at(2, "fd00::2"),
        ];
        let pod = collect(
            1,
            &[ip("10.0.0.2"), ip("::ffff:10.0.0.2"), ip("10.0.0.77")],
            &found,
        )
        .unwrap();
        assert_eq!(
            pod.all,
            [
                "10.0.0.2",
                "10.0.0.77",
                "10.0.0.9",
                "192.168.7.2",
                "fd00::2"
            ]
            .map(ip)
        );
        assert_eq!(
            pod.v4,
            Some(FamilyRoutes {
                source: ip("10.0.0.2"),
                devices: vec![at(2, "10.0.0.2"), at(3, "192.168.7.2")],
            })
        );
        assert_eq!(pod.v6.unwrap().source, ip("fd00::2"));
    }

    #[test]
    fn a_family_that_is_only_named_gets_no_routes() {
        let pod = collect(1, &[ip("10.0.0.2"), ip("fd00::2")], &[at(2, "10.0.0.2")]).unwrap();
        assert!(pod.all.contains(&ip("fd00::2")));
        assert_eq!(pod.v6, None);
    }

    #[test]
    fn refuses_more_addresses_than_the_map_holds() {
        let many: Vec<IpAddr> = (0..17).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert!(matches!(
            collect(9, &many, &[]),
            Err(CaptureError::TooManyAddresses {
                cookie: 9,
                count: 17,
                limit: 16
            })
        ));
    }
}
