//! What an operator is told when the kernel refuses an address or a ring: whose fault it is, and how to
//! mend it.

use super::locked_memory;
use super::port_owner::PortOwner;
use std::fs;
use std::io;
use std::net::SocketAddr;

/// Why there is no listener for `flag` on `address`.
pub(super) fn explain_no_listener(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    let mend = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::AddrInUse, _) => match PortOwner::of(address) {
            PortOwner::Process(pid, name) => format!(
                "another process listens there, {name} with pid {pid}; stop it first if this relay \
                 is to replace it, or choose another port"
            ),
            PortOwner::Nobody | PortOwner::Unknown => {
                "another process listens there; stop it or choose another port".to_owned()
            }
        },
        (io::ErrorKind::PermissionDenied, _) => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose another port".to_owned()
        }
        (io::ErrorKind::AddrNotAvailable, _) => {
            "this machine has no such address; choose another".to_owned()
        }
        (_, Some(libc::EMFILE)) => MEND_DESCRIPTORS.to_owned(),
        _ => "choose another address".to_owned(),
    };
    format!("cannot listen on {address}: {error}: {mend} ({flag})")
}

/// How the limit on descriptors is raised.
pub(super) const MEND_DESCRIPTORS: &str = "raise the limit on descriptors (ulimit -n; systemd: \
     LimitNOFILE=1048576; docker: --ulimit nofile=1048576), or lower --workers";

/// Why there is no ring.
pub(super) fn explain_no_ring(error: &io::Error) -> String {
    let mend = mend_ring(error.raw_os_error(), Rules::observe());
    format!("io_uring is not available: {error}: {mend}")
}

/// What may forbid this process a ring.
#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// A seccomp filter is in force.
    seccomp: bool,
    /// `kernel.io_uring_disabled`: 1 forbids it to all but CAP_SYS_ADMIN and a group, 2 to all.
    sysctl: u8,
}

impl Rules {
    fn observe() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        Self {
            seccomp: seccomp.is_some_and(|mode| mode.trim() == "2"),
            sysctl: sysctl.trim().parse().unwrap_or_default(),
        }
    }
}

fn mend_ring(errno: Option<i32>, rules: Rules) -> String {
    let by_seccomp = "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp \
                      profile of this container or service (`pyrycode-relay seccomp` prints one \
                      for docker run --security-opt seccomp=FILE)";
    match (errno, rules) {
        (Some(libc::ENOSYS), Rules { seccomp: true, .. }) => {
            format!("a seccomp filter hides it; {by_seccomp}")
        }
        (Some(libc::ENOSYS), _) => "this kernel has no io_uring; use Linux 6.1 or later".to_owned(),
        (Some(libc::EPERM | libc::EACCES), Rules { sysctl: on @ 1.., .. }) => format!(
            "it is forbidden by kernel.io_uring_disabled, which is {on}; set it to 0 \
             (sysctl -w kernel.io_uring_disabled=0)"
        ),
        (Some(libc::EPERM | libc::EACCES), Rules { seccomp: true, .. }) => {
            format!("it is forbidden by a seccomp filter; {by_seccomp}")
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "it is forbidden by a security module (SELinux, AppArmor or the like); the kernel's \
             log tells which rule to change"
                .to_owned()
        }
        (Some(libc::EINVAL), _) => {
            "this kernel's io_uring is too old; use Linux 6.1 or later".to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            format!("{}; {}", locked_memory::show_limit(), locked_memory::MEND)
        }
        (Some(libc::EMFILE), _) => format!("descriptors have run out; {MEND_DESCRIPTORS}"),
        (Some(libc::ENFILE), _) => {
            "the whole machine has run out of descriptors; raise fs.file-max with sysctl".to_owned()
        }
        _ => "see io_uring_setup(2)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_and_rule_has_an_advice_of_its_own() {
        let filter = Rules { seccomp: true, sysctl: 0 };
        let switch = Rules { seccomp: true, sysctl: 2 };
        let none = Rules::default();
        for (errno, rules, says, not) in [
            (libc::EMFILE, none, "ulimit -n", "ulimit -l"),
            (libc::ENOMEM, none, "ulimit -l", "ulimit -n"),
            (libc::EPERM, filter, "seccomp profile", "sysctl"),
            (libc::EPERM, switch, "sysctl -w kernel.io_uring_disabled=0", "seccomp"),
            (libc::EPERM, none, "security module", "seccomp"),
            (libc::ENOSYS, filter, "seccomp profile", "Linux 6.1"),
            (libc::ENOSYS, none, "Linux 6.1", "seccomp"),
            (libc::EINVAL, none, "Linux 6.1", "seccomp"),
            (libc::ENFILE, none, "fs.file-max", "ulimit"),
        ] {
            let mend = mend_ring(Some(errno), rules);
            assert!(mend.contains(says) && !mend.contains(not), "{errno} {rules:?}: {mend}");
        }
    }
}
