//! How many rings of which size the limit on locked memory allows (`ulimit -l`). From Linux 6.13
//! on the kernel counts a ring's memory against it, for all processes of a user together, unless
//! they have CAP_IPC_LOCK; before, it did not.

use super::explain::explain_no_ring;
use super::failure;
use crate::config::Exit;
use crate::worker::{Rings, ring};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use tracing::warn;

/// The rings that are to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) workers: usize,
    /// Operations that each ring queues.
    pub(super) entries: u32,
}

impl Plan {
    /// As many workers of `wanted` as `limit_bytes` allow, at least one, with rings as large as
    /// they then can be.
    fn within(limit_bytes: u64, wanted: usize) -> Option<Self> {
        let fits = |entries| wanted as u64 * Rings::locked_bytes(entries) <= limit_bytes;
        let mut entries = ring::MAX_ENTRIES;
        while entries > ring::MIN_ENTRIES && !fits(entries) {
            entries /= 2;
        }
        let most = limit_bytes / Rings::locked_bytes(entries);
        let workers = wanted.min(usize::try_from(most).unwrap_or(usize::MAX));
        (workers > 0).then_some(Self { workers, entries })
    }
}

/// The plan for so many workers. Takes all the locked memory that this process may have.
///
/// # Errors
///
/// There is too little for one.
pub(super) fn plan(wanted: usize) -> Result<Plan, Exit> {
    let all = Plan { workers: wanted, entries: ring::MAX_ENTRIES };
    raise_limit();
    match limit_bytes() {
        Some(limit) if is_counted() => Plan::within(limit, wanted)
            .ok_or_else(|| failure(explain_no_ring(&io::Error::from_raw_os_error(libc::ENOMEM)))),
        _ => Ok(all),
    }
}

/// Says where `plan` stays behind what was wanted.
pub(super) fn warn_of(wanted: usize, plan: &Plan) {
    let Plan { workers, entries } = *plan;
    if workers == wanted && entries == ring::MAX_ENTRIES {
        return;
    }
    let err = format!(
        "{}, and --workers {wanted} would lock {} KiB; {}",
        show_limit(),
        wanted as u64 * Rings::locked_bytes(ring::MAX_ENTRIES) / 1024,
        MEND
    );
    if workers < wanted {
        warn!(from = wanted, to = workers, err, "workers_reduced");
    } else {
        warn!(from = ring::MAX_ENTRIES, to = entries, err, "rings_reduced");
    }
}

/// How the limit is raised.
pub(super) const MEND: &str = "raise it (ulimit -l; systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1), or lower \
     --workers";

/// What the limit is, in words.
pub(super) fn show_limit() -> String {
    match limit_bytes() {
        Some(bytes) => format!(
            "the limit on locked memory is {} KiB for all processes of this user",
            bytes / 1024
        ),
        None => "there is no limit on locked memory".to_owned(),
    }
}

/// Whether a ring could not be made because locked memory is short.
pub(super) fn is_short(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

fn limit_bytes() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// The soft limit up to the hard one, which takes no privilege.
fn raise_limit() {
    let limit = getrlimit(Resource::Memlock);
    // Where that is denied, what there is must do.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
}

/// Whether the kernel counts rings: whether it refuses a small one while nothing may be locked.
/// Where that cannot be tried, it is taken to.
fn is_counted() -> bool {
    let limit = getrlimit(Resource::Memlock);
    if setrlimit(Resource::Memlock, Rlimit { current: Some(0), ..limit }).is_err() {
        return true;
    }
    let tried = ring::probe();
    let _ = setrlimit(Resource::Memlock, limit);
    matches!(tried, Err(error) if is_short(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_shrink_before_workers_go() {
        let (large, small) =
            (Rings::locked_bytes(ring::MAX_ENTRIES), Rings::locked_bytes(ring::MIN_ENTRIES));
        assert!(small * 5 < large, "{small} {large}");
        let plan = |limit, wanted| Plan::within(limit, wanted).map(|p| (p.workers, p.entries));
        assert_eq!(plan(u64::MAX, 1024), Some((1024, 1024)));
        assert_eq!(plan(2 * large, 2), Some((2, 1024)));
        assert_eq!(plan(2 * large - 1, 2), Some((2, 512)));
        assert_eq!(plan(8 << 20, 64), Some((64, 512)));
        assert_eq!(plan(2 * small, 2), Some((2, 64)));
        assert_eq!(plan(2 * small - 1, 2), Some((1, 64)));
        assert_eq!(plan(64 << 10, 1), Some((1, 128)), "the limit of old distributions");
        assert_eq!(plan(small - 1, 1), None);
    }
}
