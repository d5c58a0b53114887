//! What the kernel denies a child: system calls, descriptors, standard streams, and what of it
//! `/proc` shows afterwards.

use std::ffi::c_long;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// An address that no other test listens on, for a relay whose log cannot tell its address: all of
/// 127/8 is this machine, and the port is none that the kernel gives away by itself.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 64 | high & 63, low, NEXT.fetch_add(1, Ordering::Relaxed)], 17_680))
}

/// From its first instruction on, the child's system call `number` fails with `errno`; if
/// `argument` is given, only where it is the first argument of the call.
pub fn deny(command: &mut Command, number: c_long, argument: Option<u32>, errno: i32) {
    let number = u32::try_from(number).unwrap();
    let errno = u32::try_from(errno).unwrap();
    before_exec(command, move || deny_self(number, argument, errno));
}

/// The child may have so many descriptors: `soft` until it asks for more, at most `hard`.
pub fn limit_descriptors(command: &mut Command, soft: u64, hard: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
    before_exec(command, move || Ok(setrlimit(Resource::Nofile, limit)?));
}

/// The child may lock so many bytes of memory, together with all other processes of its user.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    before_exec(command, move || Ok(setrlimit(Resource::Memlock, limit)?));
}

/// The child starts without standard input, output and error.
#[allow(unsafe_code)]
pub fn close_standard_streams(command: &mut Command) {
    before_exec(command, || {
        for fd in 0..=2 {
            // SAFETY: nothing in the child uses these before it becomes another program.
            unsafe { libc::close(fd) };
        }
        Ok(())
    });
}

#[allow(unsafe_code)]
fn before_exec(command: &mut Command, does: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the callers' closures make plain system calls: they allocate nothing and take no
    // lock, as the time between fork and exec demands.
    unsafe { command.pre_exec(does) };
}

/// seccomp(2): a filter over `struct seccomp_data`, whose word at 0 is the call's number and whose
/// word at 16 is the lower half of its first argument on a little-endian machine.
#[allow(unsafe_code)]
fn deny_self(number: u32, argument: Option<u32>, errno: u32) -> io::Result<()> {
    let load = |offset| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0);
    let skip_unless =
        |value, skip| filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    let give = |verdict| filter(libc::BPF_RET | libc::BPF_K, verdict, 0);
    let mut program = [
        load(0),
        skip_unless(number, 3),
        load(16),
        skip_unless(argument.unwrap_or_default(), 1),
        give(libc::SECCOMP_RET_ERRNO | errno),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    if argument.is_none() {
        // The number decides alone.
        program[2] = give(libc::SECCOMP_RET_ERRNO | errno);
    }
    let program = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    // SAFETY: takes no pointer.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if no_new != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` and the filter that it points to outlive the call, which copies them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn filter(code: u32, k: u32, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf, k }
}
