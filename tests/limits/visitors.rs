//! Sockets before their upgrade, of all addresses together: they take no descriptor that somebody
//! else needs.

use super::common::{Raw, Relay, Request, SOON, limit_descriptors, wait_until};
use super::{count_logs, new_id, status, there};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};

/// As many as one address may have of the 300 connections that 600 descriptors allow.
const OF_EACH: usize = 75;

/// A socket that says nothing, from this address.
async fn silent(to: SocketAddr, address: IpAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    socket.connect(to).await
}

/// Keeps so many silent sockets from `address`, and dials anew for each that is ended.
async fn besiege(to: SocketAddr, address: IpAddr) {
    let mut besiegers = tokio::task::JoinSet::new();
    for _ in 0..OF_EACH {
        besiegers.spawn(async move {
            loop {
                if let Ok(socket) = silent(to, address).await {
                    // Until there is something to read, which is the end.
                    let _ = socket.readable().await;
                }
            }
        });
    }
    besiegers.join_all().await;
}

async fn relay_of_600_descriptors(args: &[&str]) -> Relay {
    let args = [&["--header-timeout", "60s"], args].concat();
    Relay::start_with(&args, |command| limit_descriptors(command, 600, 600)).await
}

#[tokio::test]
async fn silent_sockets_of_many_addresses_keep_nobody_out() {
    for workers in ["1", "2"] {
        let begun = Instant::now();
        let relay = relay_of_600_descriptors(&["--workers", workers]).await;
        let line = relay.wait_for_log("limits").await;
        assert!(line.get("err").unwrap().ends_with("before their upgrade at most 150 sockets"));
        let mut binary = Raw::binary(&relay, "established").await;
        let mut siege = tokio::task::JoinSet::new();
        for number in 0..8 {
            siege.spawn(besiege(relay.addr(), there(10 + number)));
        }
        relay.wait_for_log("conn_cap_reached").await;
        for number in 0..30 {
            // By the deadline of every answer, which is shorter than a silent socket's time.
            let request = Request::server(new_id());
            assert_eq!(status(&relay, there(100 + number % 4), request).await, 101);
            assert!(relay.descriptors() < 450, "{}", relay.descriptors());
        }
        binary.assert_quiet().await;
        // Nor is one of another address driven out before it has had its time to ask.
        let mut slow = Raw::connect_from(&relay, there(200)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        slow.send(Request::server(new_id())).await;
        assert_eq!(slow.response().await.status, 101);
        drop(siege);
        let lines = relay.logs();
        assert!(lines.iter().all(|line| line.event() != "accept_paused"));
        // Of each of the eight addresses the first twenty, and then one a minute.
        let minutes = 1 + begun.elapsed().as_secs() as usize / 60;
        let most = 8 * (20 + minutes);
        assert!((1..=most).contains(&count_logs(&relay, "conn_cap_reached")));
        let line = relay.wait_for_log("conn_cap_reached").await;
        assert!(line.get("remote").unwrap().starts_with("127.0.0.1"), "{}", line.raw);
        assert!(
            line.get("err").unwrap().contains("its address has the most of them"),
            "{}",
            line.raw
        );
    }
}

#[tokio::test]
async fn the_one_that_has_waited_longest_goes_of_the_address_that_has_most() {
    let relay = relay_of_600_descriptors(&["--workers", "1"]).await;
    // With an answer it has been accepted for sure, and is no less a visitor.
    let answered = async |address| {
        let mut raw = Raw::connect_from(&relay, address).await;
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
        raw
    };
    let mut alone = answered(there(2)).await;
    let mut first = answered(there(3)).await;
    let mut second = answered(there(3)).await;
    // Who is upgraded waits no longer.
    let mut asked = answered(there(3)).await.upgrade(Request::server("asked")).await;
    let mut others = Vec::new();
    for number in 0..147 {
        others.push(answered(there(if number < 72 { 3 } else { 4 + number % 2 })).await);
    }
    first.send(Request::get("/healthz")).await;
    assert_eq!(first.response().await.status, 200, "there was room for all of them");
    let mut newest = answered(there(9)).await;
    first.assert_ended().await;
    let _one_more = answered(there(9)).await;
    second.assert_ended().await;
    asked.assert_quiet().await;
    for raw in [&mut alone, &mut newest] {
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
    }
    drop(others);
    wait_until("they are gone", SOON, async || relay.descriptors() < 100).await;
}
