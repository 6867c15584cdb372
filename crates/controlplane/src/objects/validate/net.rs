//! Ports, addresses, address blocks.

use std::net::IpAddr;

use ipnet::IpNet;

/// 1 to 65535.
pub(super) fn port(number: i64) -> Result<(), String> {
    if (1..=65535).contains(&number) {
        Ok(())
    } else {
        Err(format!(
            "{number} is not a port, which is between 1 and 65535"
        ))
    }
}

/// An IP address.
pub(super) fn address(text: &str) -> Result<(), String> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not an IP address")),
    }
}

/// A block such as `10.0.0.0/8`, or an address that stands for itself alone.
pub(crate) fn parse_block(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    match text.parse::<IpNet>() {
        Ok(block) => Ok(block.trunc()),
        Err(_) => Err(format!(
            "`{text}` is not an address block, such as 10.0.0.0/8 or 2001:db8::/32"
        )),
    }
}
