//! When to renew, and when to try again.

use crate::control::certificates::Validity;
use std::time::{Duration, SystemTime};

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// The longest that the relay waits of its own accord.
const LONGEST_WAIT: Duration = Duration::from_secs(4 * 3600);
/// The longest that an ACME server can make it wait.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// When to renew: with a third of the lifetime left, and up to a thirtieth earlier, so that not all
/// relays come at once. `chance` is from 0 to 1.
pub(super) fn renewal(validity: Validity, chance: f64) -> SystemTime {
    let lifetime = validity.lifetime();
    let before = lifetime / 3 + (lifetime / 30).mul_f64(chance.clamp(0.0, 1.0));
    validity.not_after.checked_sub(before).unwrap_or(validity.not_before)
}

/// How long to wait after `failures` in a row, of which the last came with a Retry-After: twice as
/// long each time, up to four hours, give or take a fifth. `chance` is from 0 to 1.
pub(super) fn wait(failures: u32, retry_after: Option<Duration>, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    let wait = wait.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0));
    wait.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn renewal_leaves_a_third() {
        let not_before = UNIX_EPOCH + DAY;
        let validity = Validity { not_before, not_after: not_before + DAY * 90 };
        assert_eq!(renewal(validity, 0.0), not_before + DAY * 60);
        assert_eq!(renewal(validity, 1.0), not_before + DAY * 57);
        let reversed = Validity { not_before, not_after: UNIX_EPOCH };
        assert_eq!(renewal(reversed, 1.0), UNIX_EPOCH);
    }

    #[test]
    fn waits_double_up_to_hours() {
        let seconds = |failures| wait(failures, None, 0.5).as_secs();
        assert_eq!([1, 2, 3, 4].map(seconds), [60, 120, 240, 480]);
        assert_eq!([9, 100, u32::MAX].map(seconds), [4 * 3600; 3]);
        assert_eq!(wait(1, None, 0.0).as_secs(), 48);
        assert_eq!(wait(1, None, 1.0).as_secs(), 72);
    }

    #[test]
    fn retry_after_is_honoured() {
        assert_eq!(wait(1, Some(DAY), 0.5), DAY);
        assert_eq!(wait(1, Some(Duration::from_secs(5)), 0.5), FIRST_WAIT);
        assert_eq!(wait(1, Some(Duration::MAX), 0.5), DAY * 7);
    }
}
