//! The accept loop, and the orderly end of a service.
//!
//! `axum::serve` sets no timer, so a client that is silent keeps its connection for ever; here hyper's own HTTP/1
//! builder has one. The listener and the signal to stop are handed in, so tests have the same server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
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

use crate::App;
use crate::http::pipeline;

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

/// The connections that are open, each a task, and the word that tells them to close.
#[derive(Default)]
struct Connections {
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Serves until `stop` says so, then ends in order: `/readyz` turns 503 and answers close their connections; after the
/// grace time nothing more is accepted; what runs is finished, within its limit. Answers what is left of that.
pub async fn serve(listener: TcpListener, app: &App, stop: impl Future<Output = Stop>) -> Duration {
    let connections = Connections::default();
    let settings = &app.pipeline.settings;
    let end = async {
        let stop = stop.await;
        app.pipeline.draining.begin();
        if stop == Stop::Gracefully {
            tracing::info!(
                seconds = settings.drain.as_secs_f64(),
                "asked to end: not ready any more, and serving on for now"
            );
            time::sleep(settings.drain).await;
        }
        stop
    };
    let stop = tokio::select! {
        never = accept(&listener, app, &connections) => match never {},
        stop = end => stop,
    };
    drop(listener);
    let began = Instant::now();
    if time::timeout(settings.shutdown, finish(stop, app, &connections)).await.is_err() {
        tracing::warn!(running = app.pipeline.running.len(), "some requests did not end in time");
    }
    settings.shutdown.saturating_sub(began.elapsed())
}

/// Ends the connections that are open. A request that has arrived is answered, however long that takes; for one that has
/// not, and for a client that does not take its answer, there is a moment and no more.
async fn finish(stop: Stop, app: &App, connections: &Connections) {
    connections.tasks.close();
    if stop == Stop::Gracefully {
        // The last to be accepted are about to send their request: closed now, they would see it fail.
        let _ = time::timeout(app.pipeline.settings.linger, connections.tasks.wait()).await;
    }
    connections.closing.cancel();
    loop {
        app.pipeline.running.wait().await;
        let all_ended = time::timeout(app.pipeline.settings.linger, connections.tasks.wait()).await.is_ok();
        if all_ended || app.pipeline.running.is_empty() {
            return;
        }
    }
}

async fn accept(listener: &TcpListener, app: &App, connections: &Connections) -> Infallible {
    let settings = &app.pipeline.settings;
    let places = Arc::new(Semaphore::new(room_for(settings.max_connections as usize)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout) // and the limit for an idle connection
        // Twice the limit, so that a header over it can be told so; hyper itself would only hang up.
        .max_buf_size((2 * settings.max_header_bytes as usize).max(MIN_BUFFER));
    let service = TowerToHyperService::new(pipeline::stack(Arc::clone(&app.pipeline)));
    loop {
        // A place first: what cannot be served waits in the kernel's queue, at no cost to us.
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let stream = TokioIo::new(impatient(stream, settings.header_timeout));
        let (http, service, closing) = (http.clone(), service.clone(), connections.closing.clone());
        let open = app.pipeline.metrics.connections.clone();
        open.inc();
        connections.tasks.spawn(async move {
            let mut connection = pin!(http.serve_connection(stream, service)); // made here: moved, it would be there twice
            // What breaks a connection is the client's doing: a reset, a time-out, something that is no HTTP.
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            tracing::trace!(?ended, "connection");
            open.dec();
            drop(place);
        });
    }
}

/// Whether a connection could not be accepted since its client has gone already. The next one can be.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// How many connections there can be: those wished for, but no more than three in four of the files that the system
/// lets a process open, for the rest is needed to call others. The soft limit, which is low for the sake of programs
/// that use `select(2)`, is raised to the hard one, as Go and Java do.
fn room_for(wished: usize) -> usize {
    let files = rlimit::increase_nofile_limit(u64::MAX).ok().and_then(|files| usize::try_from(files).ok());
    let room = files.map_or(wished, |files| wished.min(files / 4 * 3)).min(Semaphore::MAX_PERMITS);
    if room < wished {
        tracing::warn!(wished, room, "fewer connections than MAX_CONNECTIONS: the limit of open files is too low");
    }
    room
}

/// A connection to a client that is given up if the client takes nothing of its answer for this long. hyper has no limit
/// for that, and a few clients who never read would hold every place for ever.
fn impatient(stream: TcpStream, limit: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    let _ = stream.set_nodelay(true); // small answers go at once, also to a client that pipelines
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}
