//! The listening socket: a new one, or one that outlives the process.
//!
//! A supervisor may open the socket and pass it to the service (`LISTEN_FDS`, systemd's socket activation,
//! `sd_listen_fds(3)`). The next process then accepts on the same socket while the last one still serves, so no client sees
//! the restart.

use std::io;
use std::net::IpAddr;

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// Returns the inherited socket, or a new one bound to this address.
///
/// # Errors
/// If the address cannot be bound, or the inherited descriptor is not a TCP socket. The text names the settings.
pub(crate) async fn open(host: IpAddr, port: u16) -> Result<TcpListener, String> {
    let inherited = inherited().map_err(|error| format!("cannot listen on the socket in LISTEN_FDS: {error}"))?;
    if let Some(listener) = inherited {
        return Ok(listener);
    }
    let bound = TcpListener::bind((host, port)).await;
    bound.map_err(|error| format!("cannot listen on HOST={host} PORT={port}: {error}"))
}

fn inherited() -> io::Result<Option<TcpListener>> {
    let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? else { return Ok(None) };
    listener.set_nonblocking(true)?; // tokio requires it
    TcpListener::from_std(listener).map(Some)
}
