//! What systemd is told, by the process that may tell it.

use super::common::SOON;
use super::common::certs::Folder;
use super::service::{Pair, Service, signal};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;

/// The socket of a supervisor, which sees who says something.
struct Supervisor {
    socket: UnixDatagram,
    folder: Folder,
}

impl Supervisor {
    fn new() -> Self {
        let folder = Folder::new();
        let socket = UnixDatagram::bind(folder.path("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
        Self { socket, folder }
    }

    /// The next thing that is said, and by whom.
    fn hear(&self) -> (u32, String) {
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, &mut into, &mut control, RecvFlags::empty());
        let length = received.expect("something is said").bytes;
        let from = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(who) => Some(who.pid),
            _ => None,
        });
        let pid = from.unwrap().as_raw_nonzero().get().cast_unsigned();
        (pid, String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// What this process says next that has this line.
    fn hear_from(&self, pid: u32, wanted: &str) -> String {
        loop {
            let (from, text) = self.hear();
            if from == pid && text.lines().any(|line| line == wanted) {
                return text;
            }
        }
    }

    async fn service(&self) -> Service {
        Service::start_with(&[], |command| {
            command.env("NOTIFY_SOCKET", self.folder.path("notify"));
            command.env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
        })
        .await
    }

    /// The process that is the main one now, as this one says.
    fn hears_of_an_heir(&self, pid: u32) -> u32 {
        loop {
            let (from, text) = self.hear();
            let mut lines = text.lines();
            if let Some(heir) = lines.find_map(|line| line.strip_prefix("MAINPID=")) {
                // systemd believes the main process alone.
                assert_eq!(from, pid, "{text}");
                assert!(text.lines().any(|line| line == "READY=1"), "{text}");
                return heir.parse().unwrap();
            }
        }
    }
}

#[tokio::test]
async fn sigusr2_upgrades_and_systemd_hears_of_the_new_main_process_and_its_watchdog() {
    let supervisor = Supervisor::new();
    let mut service = supervisor.service().await;
    let mut pair = Pair::new(&service.relay, "id").await;
    supervisor.hear_from(service.pid, "READY=1");
    for _ in 0..2 {
        let old = service.pid;
        pair.say().await;
        signal(old, Signal::USR2);
        service.pid = supervisor.hears_of_an_heir(old);
        assert_eq!(service.ended(old).await, Some(0));
        for _ in 0..3 {
            supervisor.hear_from(service.pid, "WATCHDOG=1");
        }
        pair.talk().await;
    }
    // A reload is a reload, and a stop is a stop.
    let pid = service.pid;
    signal(pid, Signal::HUP);
    let text = supervisor.hear_from(pid, "RELOADING=1");
    assert!(text.contains("MONOTONIC_USEC="), "{text}");
    supervisor.hear_from(pid, "READY=1");
    pair.talk().await;
    signal(pid, Signal::TERM);
    supervisor.hear_from(pid, "STOPPING=1");
    assert_eq!(pair.binary.closed().await.0, 1001);
    assert_eq!(pair.phone.closed().await.0, 1001);
    assert_eq!(service.ended(pid).await, Some(0));
}

#[tokio::test]
async fn systemd_hears_nothing_of_an_upgrade_that_fails() {
    let supervisor = Supervisor::new();
    let service = supervisor.service().await;
    let pid = service.pid;
    supervisor.hear_from(pid, "READY=1");
    service.fails(&["--program", "/bin/false"]).await;
    signal(pid, Signal::HUP);
    loop {
        let (from, text) = supervisor.hear();
        assert_eq!(from, pid, "{text}");
        match text.trim_end() {
            "WATCHDOG=1" => {}
            reload => break assert!(reload.starts_with("RELOADING=1"), "{text}"),
        }
    }
}
