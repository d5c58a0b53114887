//! The same tests over TLS: with `RELAY_OVER_TLS=1` a relay is started with a certificate, and
//! peers reach it by a bridge that puts TLS around whatever they send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::certs::{Authority, Folder, client_config};

/// What the kernel holds for a bridge, on each side and each way: little, so that a peer that does
/// not read is soon felt.
const BUFFER_BYTES: u32 = 8 * 1024;

/// What a bridge needs, and the files that its relay serves with.
pub struct OverTls {
    authority: Authority,
    _folder: Folder,
    pub cert: String,
    pub key: String,
}

impl OverTls {
    /// If that is asked for.
    pub fn asked() -> Option<Self> {
        std::env::var_os("RELAY_OVER_TLS")?;
        let (authority, folder) = (Authority::new(), Folder::new());
        let leaf = authority.leaf("relay.test");
        let cert = folder.write("cert.pem", &leaf.chain);
        let key = folder.write("key.pem", &leaf.key);
        Some(Self { authority, _folder: folder, cert, key })
    }

    /// A bridge to `relay`, for as long as the test's process lives.
    pub fn bridge(&self, relay: SocketAddr) -> SocketAddr {
        let connector = TlsConnector::from(Arc::new(client_config(self.authority.roots())));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(BUFFER_BYTES as usize).unwrap();
        socket2::SockRef::from(&listener).set_send_buffer_size(BUFFER_BYTES as usize).unwrap();
        let addr = listener.local_addr().unwrap();
        // A thread of its own: tests block theirs.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((peer, _)) = listener.accept().await {
                    tokio::spawn(carry(peer, relay, connector.clone()));
                }
            });
        });
        addr
    }
}

/// Carries bytes both ways until either side has ended. An end without a close_notify is passed on
/// as a reset, and so is a reset.
async fn carry(mut peer: TcpStream, relay: SocketAddr, connector: TlsConnector) {
    peer.set_nodelay(true).unwrap();
    let reset = |peer: &TcpStream| {
        let _ = socket2::SockRef::from(peer).set_linger(Some(std::time::Duration::ZERO));
    };
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
    socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
    let Ok(tcp) = socket.connect(relay).await else { return reset(&peer) };
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("relay.test").unwrap();
    let Ok(tls) = connector.connect(name, tcp).await else { return reset(&peer) };
    let (mut from_relay, mut to_relay) = tokio::io::split(tls);
    let (mut from_peer, mut to_peer) = peer.split();
    let up = async {
        copy(&mut from_peer, &mut to_relay).await?;
        to_relay.shutdown().await
    };
    let down = async {
        copy(&mut from_relay, &mut to_peer).await?;
        to_peer.shutdown().await
    };
    if tokio::try_join!(up, down).is_err() {
        reset(&peer);
    }
}
