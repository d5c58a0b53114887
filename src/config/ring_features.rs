//! What the workers' rings ask of the kernel beyond what every kernel from 6.1 on has. A kernel
//! that lacks one is found out and does without; each can be switched off besides, for a kernel in
//! which it is at fault.

use std::fmt;

/// Which of them are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFeatures {
    /// The ring's descriptor is registered, so that a system call need not look it up.
    pub registered_ring: bool,
    /// A worker that waits is idle in the machine's statistics, not waiting for a disk (6.15).
    pub no_iowait: bool,
    /// A send that the kernel takes whole at once posts no completion.
    pub quick_sends: bool,
}

impl RingFeatures {
    /// All of them.
    pub const ALL: Self = Self { registered_ring: true, no_iowait: true, quick_sends: true };

    /// Their names, in the order in which they are shown, and which of them are wanted.
    #[must_use]
    pub fn named(&self) -> [(&'static str, bool); 3] {
        [
            ("registered-ring", self.registered_ring),
            ("no-iowait", self.no_iowait),
            ("quick-sends", self.quick_sends),
        ]
    }

    fn of_name(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "registered-ring" => &mut self.registered_ring,
            "no-iowait" => &mut self.no_iowait,
            "quick-sends" => &mut self.quick_sends,
            _ => return None,
        })
    }

    /// Those that are not wanted, as the flag has them.
    #[must_use]
    pub fn unwanted(&self) -> String {
        let unwanted = self.named().into_iter().filter(|(_, wanted)| !wanted);
        unwanted.map(|(name, _)| name).collect::<Vec<_>>().join(",")
    }
}

impl fmt::Display for RingFeatures {
    /// Those that are wanted, and those that are not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |is| self.named().into_iter().filter(move |(_, wanted)| *wanted == is);
        let names = |is| of(is).map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        match (names(true).as_str(), names(false).as_str()) {
            ("", without) => write!(f, "without {without}"),
            (with, "") => write!(f, "with {with}"),
            (with, without) => write!(f, "with {with}; without {without}"),
        }
    }
}

/// Reads those that are not wanted, separated by commas.
pub(super) fn without(text: &str) -> Result<RingFeatures, String> {
    let mut features = RingFeatures::ALL;
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match features.of_name(name) {
            Some(feature) => *feature = false,
            None => {
                let names = RingFeatures::ALL.named().map(|(name, _)| name).join(", ");
                return Err(format!("{name:?} is not one of {names}"));
            }
        }
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_switched_off_by_name() {
        assert_eq!(without(""), Ok(RingFeatures::ALL));
        for (name, _) in RingFeatures::ALL.named() {
            let features = without(name).unwrap();
            assert_eq!(features.unwanted(), name);
            assert_eq!(features.named().iter().filter(|(_, wanted)| *wanted).count(), 2);
        }
        let features = without("quick-sends, no-iowait").unwrap();
        assert_eq!(features.unwanted(), "no-iowait,quick-sends");
        assert!(without("speed").unwrap_err().contains("is not one of registered-ring, no-iowait"));
    }
}
