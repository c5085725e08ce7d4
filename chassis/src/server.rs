//! The accept loop, and the orderly end of a service.
//!
//! `axum::serve` sets no timer, so a client that is silent keeps its connection for ever; here hyper's own HTTP/1
//! builder has one. The listener and the signal to stop are handed in, so tests have the same server.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_io_timeout::TimeoutStream;

use crate::{App, layers};

/// How long to leave the listener alone when it cannot accept: out of descriptors, most likely, which takes a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// hyper's own minimum for a connection's buffer.
const MIN_BUFFER: usize = 8192;

/// Why a service is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: a supervisor has to learn first that no more requests should come.
    Gracefully,
    /// Ctrl-C: someone waits.
    Now,
}

/// Serves until `stop` says so, then ends in order: `/readyz` turns 503 and answers close their connections; after the
/// grace time nothing more is accepted; what runs is finished, within its limit.
pub async fn serve(listener: TcpListener, app: &App, stop: impl Future<Output = Stop>) {
    let connections = GracefulShutdown::new();
    let settings = &app.edge.settings;
    let end = async {
        let stop = stop.await;
        app.edge.draining.begin();
        if stop == Stop::Gracefully {
            time::sleep(settings.drain).await;
        }
    };
    tokio::select! {
        () = accept(&listener, app, &connections) => {}
        () = end => {}
    }
    drop(listener);
    let open = connections.count();
    if time::timeout(settings.shutdown, connections.shutdown()).await.is_err() {
        tracing::warn!(open, "some connections did not end in time");
    }
}

async fn accept(listener: &TcpListener, app: &App, connections: &GracefulShutdown) {
    let settings = &app.edge.settings;
    let places = Arc::new(Semaphore::new(settings.max_connections as usize));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout) // and the limit for an idle connection
        // Twice the limit, so that a header over it can be told so; hyper itself would only hang up.
        .max_buf_size((2 * settings.max_header_bytes as usize).max(MIN_BUFFER));
    let service = TowerToHyperService::new(layers::stack(Arc::clone(&app.edge)));
    loop {
        // A place first: what cannot be served waits in the kernel's queue, at no cost to us.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match next(listener).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = connections
            .watch(http.serve_connection(TokioIo::new(impatient(stream, settings.header_timeout)), service.clone()));
        tokio::spawn(async move {
            // What breaks a connection is the client's doing: a reset, a time-out, something that is no HTTP.
            let ended = connection.await;
            tracing::trace!(?ended, "connection");
            drop(place);
        });
    }
}

async fn next(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?; // small answers go at once, also to a client that pipelines
    Ok(stream)
}

/// A connection to a client that is given up if the client takes nothing of its answer for this long. hyper has no limit
/// for that, and a few clients who never read would hold every place for ever.
fn impatient(stream: TcpStream, limit: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}
