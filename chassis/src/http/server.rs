//! The accept loop, and the graceful shutdown of a service.
//!
//! `axum::serve` sets no timer, so a silent client would keep its connection for ever. hyper's HTTP/1 builder has one.
//! The listener and the shutdown signal are arguments, so that tests use the same server.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{self, Instant};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::pipeline::{self, Pipeline};

/// Pause after an accept error. The usual cause, no free file descriptors, lasts a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// hyper's minimum for the buffer of a connection, in bytes.
const MIN_BUFFER: usize = 8192;

/// How a service shuts down. Both ways finish the requests that are running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGTERM: `/readyz` returns 503 for a while before the listener closes, so that load balancers send no more requests.
    Drain,
    /// Ctrl-C: the listener closes immediately.
    Immediate,
}

/// The open connections, each a task, and the signal that closes them.
#[derive(Default)]
struct Connections {
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Implements [`crate::serve`].
pub(crate) async fn serve(
    listener: TcpListener,
    pipeline: &Arc<Pipeline>,
    shutdown: impl Future<Output = Shutdown>,
) -> Duration {
    let connections = Connections::default();
    let settings = &pipeline.settings;
    let drained = async {
        let shutdown = shutdown.await;
        pipeline.draining.begin();
        if shutdown == Shutdown::Drain {
            tracing::info!(seconds = settings.drain.as_secs_f64(), "shutdown requested; draining");
            if !settings.drain.is_zero() {
                time::sleep(settings.drain).await;
            }
        }
        shutdown
    };
    let shutdown = accept(listener, pipeline, &connections, drained).await;
    let closed_at = Instant::now();
    if time::timeout(settings.shutdown, finish(shutdown, pipeline, &connections)).await.is_err() {
        let running = pipeline.running.len();
        tracing::warn!(running, "shutdown timed out; some requests are unfinished");
    }
    settings.shutdown.saturating_sub(closed_at.elapsed())
}

/// Closes the open connections. A request whose body was read gets its response, however long that takes. An incomplete
/// request, and a client that does not read its response, get the linger time.
async fn finish(shutdown: Shutdown, pipeline: &Arc<Pipeline>, connections: &Connections) {
    let linger = pipeline.settings.linger;
    connections.tasks.close();
    if shutdown == Shutdown::Drain {
        // The clients of the latest connections are about to send a request. It would fail if they were closed now.
        let _ = time::timeout(linger, connections.tasks.wait()).await;
    }
    connections.closing.cancel();
    loop {
        pipeline.running.wait().await;
        let all_closed = time::timeout(linger, connections.tasks.wait()).await.is_ok();
        if all_closed || pipeline.running.is_empty() {
            return;
        }
    }
}

/// Accepts connections until `shutdown`, then closes the listener.
async fn accept(
    listener: TcpListener,
    pipeline: &Arc<Pipeline>,
    connections: &Connections,
    shutdown: impl Future<Output = Shutdown>,
) -> Shutdown {
    let settings = &pipeline.settings;
    let permits = Arc::new(Semaphore::new(connection_limit(settings.max_connections as usize)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout) // also the limit for an idle connection
        // A client that closes its sending side still gets its response. In TCP, a client that disconnects looks the same, so
        // the handler of such a client runs to its end.
        .half_close(true)
        // Twice the limit, so that the pipeline can respond to a header over it. hyper would only close the connection.
        .max_buf_size((2 * settings.max_header_bytes as usize).max(MIN_BUFFER));
    let serve = |stream, peer: SocketAddr, permit| {
        let stream = TokioIo::new(with_write_timeout(stream, settings.header_timeout));
        let service = TowerToHyperService::new(pipeline::service(Arc::clone(pipeline), Some(peer)));
        let (http, closing) = (http.clone(), connections.closing.clone());
        let open = pipeline.metrics.connections.clone();
        open.inc();
        connections.tasks.spawn(async move {
            // Built inside the task, because a connection that is moved into a task takes its memory twice.
            let mut connection = pin!(http.serve_connection(stream, service));
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            // Only clients cause errors here: a reset, a timeout, bytes that are not HTTP.
            tracing::trace!(?result, "connection closed");
            open.dec();
            drop(permit);
        });
    };
    let accept = async {
        loop {
            // The permit comes first. So connections over the limit wait in the kernel's queue and cost this process nothing.
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => serve(stream, peer, permit),
                Err(error) if is_client_disconnect(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    let shutdown = tokio::select! {
        never = accept => match never {},
        shutdown = shutdown => shutdown,
    };
    // The kernel resets the connections in its queue when the listener closes. Their clients may have sent a request already.
    // (tokio's `accept` does not see a connection that arrived after its last poll.)
    let queued = listener.into_std().and_then(|listener| {
        while let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            match listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    serve(TcpStream::from_std(stream)?, peer, permit);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_client_disconnect(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    if let Err(error) = queued {
        tracing::warn!(%error, "cannot accept the last connections");
    }
    shutdown
}

/// Returns whether `accept` failed because the client has already disconnected. Then the next connection can be accepted.
fn is_client_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Returns the maximum number of connections: `requested`, but at most three quarters of the files that this process may
/// open. The rest is for calls to peers and the database.
///
/// Raises the soft limit of open files to the hard limit, as Go and Java do. The soft limit is low only for programs that
/// use `select(2)`.
fn connection_limit(requested: usize) -> usize {
    let files = rlimit::increase_nofile_limit(u64::MAX).ok().and_then(|files| usize::try_from(files).ok());
    let limit = files.map_or(requested, |files| requested.min(files / 4 * 3)).min(Semaphore::MAX_PERMITS);
    if limit < requested {
        tracing::warn!(requested, limit, "MAX_CONNECTIONS reduced: the limit of open files is too low");
    }
    limit
}

/// Closes the connection when the client reads nothing of a response for `limit`. hyper has no such timeout, so clients that
/// never read would hold their permits for ever.
fn with_write_timeout(stream: TcpStream, limit: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    let _ = stream.set_nodelay(true); // otherwise small responses to pipelined requests are delayed
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}
