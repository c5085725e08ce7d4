//! The listening socket: a new one, or one that outlives the process.
//!
//! Whoever starts a service may open its socket and hand it over (`LISTEN_FDS`, the protocol of systemd's socket
//! activation, `sd_listen_fds(3)`). Then the next process is started with the same socket while the last one still serves:
//! at no moment is there nobody who accepts, and no client sees the service restart.

use std::io;
use std::net::IpAddr;

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// The socket that was handed over; if there is none, a new one at this address.
///
/// # Errors
/// If the address cannot be listened on, or what was handed over is no TCP socket. The text names the settings to blame.
pub(crate) async fn open(host: IpAddr, port: u16) -> Result<TcpListener, String> {
    let inherited = inherited().map_err(|error| format!("cannot listen on what LISTEN_FDS names: {error}"))?;
    if let Some(listener) = inherited {
        return Ok(listener);
    }
    let bound = TcpListener::bind((host, port)).await;
    bound.map_err(|error| format!("cannot listen on HOST={host} PORT={port}: {error}"))
}

fn inherited() -> io::Result<Option<TcpListener>> {
    let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? else { return Ok(None) };
    listener.set_nonblocking(true)?; // as tokio's own are: else it would hang on it
    TcpListener::from_std(listener).map(Some)
}
