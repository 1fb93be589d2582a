//! A TCP relay in front of the API server that counts bytes, TLS and HTTP included.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A running relay. It ends with the runtime.
#[derive(Debug)]
pub(crate) struct Relay {
    addr: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Relay {
    /// Listens on a port of loopback and relays to `server`.
    pub(crate) async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let relay = Self { addr: listener.local_addr()?, bytes: Arc::default() };
        let bytes = Arc::clone(&relay.bytes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let bytes = Arc::clone(&bytes);
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
                    tokio::join!(copy(client_in, server_out, &bytes), copy(server_in, client_out, &bytes));
                });
            }
        });
        Ok(relay)
    }

    /// Returns its address.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the bytes so far, of both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, bytes: &AtomicU64) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
