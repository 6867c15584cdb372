//! A set of response flags, in Envoy's order and letters.

use std::fmt;

use super::reply::Flag;

/// What is told of a response besides its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    pub(crate) fn insert(&mut self, flag: Flag) {
        if flag.as_str() != "-" {
            self.0 |= bit(flag);
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn each(self) -> impl Iterator<Item = Flag> {
        Flag::ALL
            .into_iter()
            .filter(move |flag| self.0 & bit(*flag) != 0)
    }

    /// Whole words.
    pub(crate) fn long(self) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        self.each().map(Flag::long).collect::<Vec<_>>().join(",")
    }
}

fn bit(flag: Flag) -> u32 {
    let place = Flag::ALL.iter().position(|known| *known == flag);
    place.map_or(0, |place| 1 << place)
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (place, flag) in self.each().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_once_and_in_envoys_order() {
        let mut flags = Flags::default();
        assert_eq!((flags.to_string(), flags.long()), ("-".into(), "-".into()));
        for flag in [
            Flag::RetryLimit,
            Flag::None,
            Flag::UpstreamConnect,
            Flag::RetryLimit,
            Flag::Denied,
        ] {
            flags.insert(flag);
        }
        assert_eq!(flags.to_string(), "UF,URX");
        assert_eq!(
            flags.long(),
            "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"
        );
        let all = Flag::ALL.map(Flag::as_str);
        for (place, flag) in all.iter().enumerate() {
            assert!(!all[..place].contains(flag), "{flag}");
        }
    }
}
