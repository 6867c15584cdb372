//! Names of network interfaces.

use std::{fmt, str::FromStr};

/// `IFNAMSIZ` of Linux less its closing zero.
const MAX_LENGTH: usize = 15;

/// The name of a network interface of a pod, as Linux takes it. Loopback is none: what it carries does not leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// Why a text is not the name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    /// Linux allows 1 to 15 bytes.
    #[error("it must have 1 to 15 bytes")]
    Length,
    /// Linux allows none of these.
    #[error("`/`, `:` and white space are not allowed in it, and `.` and `..` are no names")]
    Form,
    /// Nothing comes from outside by it.
    #[error("it is the loopback interface")]
    Loopback,
}

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(InterfaceNameError::Length);
        }
        let is_allowed = |c: char| !matches!(c, '/' | ':') && !c.is_whitespace() && !c.is_control();
        if matches!(text, "." | "..") || !text.chars().all(is_allowed) {
            return Err(InterfaceNameError::Form);
        }
        if text == "lo" {
            return Err(InterfaceNameError::Loopback);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_linux_takes_is_a_name() {
        let check = |text: &str, expected: Result<(), InterfaceNameError>| {
            let parsed = text.parse::<InterfaceName>();
            let name = parsed.map(|name| name.as_str().to_owned());
            assert_eq!(name, expected.map(|()| text.to_owned()), "{text:?}");
        };
        for good in ["k6t-eth0", "eth0.100", "tap0", "fifteen-bytes-x", "..."] {
            check(good, Ok(()));
        }
        for (bad, why) in [
            ("", InterfaceNameError::Length),
            ("sixteen-bytes-xx", InterfaceNameError::Length),
            (".", InterfaceNameError::Form),
            ("..", InterfaceNameError::Form),
            ("a/b", InterfaceNameError::Form),
            ("eth0:1", InterfaceNameError::Form),
            ("a b", InterfaceNameError::Form),
            ("a\0b", InterfaceNameError::Form),
            ("lo", InterfaceNameError::Loopback),
        ] {
            check(bad, Err(why));
        }
    }
}
