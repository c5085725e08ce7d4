//! A running server, and a client that writes its requests byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::{Bytes, BytesMut};
use chassis::{App, Shutdown};
use testing::{Received, with_timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time;

/// Long enough to notice something that must not happen, and much shorter than the timeouts of the tests.
const A_WHILE: Duration = Duration::from_millis(30);

/// A running server. It stops with its test at the latest.
pub(crate) struct Server {
    address: SocketAddr,
    shutdown: Option<oneshot::Sender<Shutdown>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `app` on a free port.
    pub(crate) async fn start(app: App) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (shutdown, requested) = oneshot::channel();
        let requested = async { requested.await.unwrap_or(Shutdown::Immediate) };
        let task = tokio::spawn(async move {
            chassis::serve(listener, &app, requested).await;
        });
        Self { address, shutdown: Some(shutdown), task }
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Connection {
        Connection { stream: TcpStream::connect(self.address).await.expect("it listens"), buffer: BytesMut::new() }
    }

    /// Returns whether the port is open.
    pub(crate) async fn is_listening(&self) -> bool {
        TcpStream::connect(self.address).await.is_ok()
    }

    /// Returns the response to `GET path` on a new connection.
    pub(crate) async fn get(&self, path: &str) -> Received {
        self.connect().await.get(path).await
    }

    /// Requests a shutdown.
    pub(crate) fn request_shutdown(&mut self, shutdown: Shutdown) {
        let sender = self.shutdown.take().expect("one shutdown per test");
        sender.send(shutdown).expect("the server is running");
    }

    /// Returns whether the server stops within a while.
    pub(crate) async fn stops_soon(&mut self) -> bool {
        time::timeout(A_WHILE, &mut self.task).await.is_ok()
    }

    /// Waits until the server has stopped.
    pub(crate) async fn stopped(self) {
        with_timeout("the end of the server", self.task).await.expect("it stops without a panic");
    }
}

/// One connection of a client.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    /// Takes over an open connection.
    pub(crate) fn from_std(stream: std::net::TcpStream) -> Self {
        stream.set_nonblocking(true).expect("an open socket");
        Self { stream: TcpStream::from_std(stream).expect("a runtime"), buffer: BytesMut::new() }
    }

    /// Sends these bytes, or fewer if the server closes the connection.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = with_timeout("the server to read", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Closes the sending side of the connection.
    pub(crate) async fn close_sending_side(&mut self) {
        let _ = self.stream.shutdown().await; // the server may have closed the connection
    }

    /// Waits a while and sends one byte. Returns `false` once the server has responded or closed the connection.
    pub(crate) async fn send_byte_slowly(&mut self) -> bool {
        !self.receives_something().await && self.stream.write_all(b"x").await.is_ok()
    }

    /// Returns whether the server sends something, or closes the connection, within a while.
    pub(crate) async fn receives_something(&self) -> bool {
        time::timeout(A_WHILE, self.stream.readable()).await.is_ok()
    }

    /// Sends `GET path`.
    pub(crate) async fn send_get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Sends `GET path` and returns the response.
    pub(crate) async fn get(&mut self, path: &str) -> Received {
        self.send_get(path).await;
        self.response().await
    }

    /// Reads the next response.
    pub(crate) async fn response(&mut self) -> Received {
        let mut received = self.response_head().await;
        let length = received.header("content-length").parse().unwrap_or(0);
        while self.buffer.len() < length {
            assert!(self.read_more().await, "closed within a body: {received} {:?}", self.buffer);
        }
        received.body = self.buffer.split_to(length).freeze();
        received
    }

    /// Reads the status line and the headers of the next response.
    pub(crate) async fn response_head(&mut self) -> Received {
        const END: &[u8] = b"\r\n\r\n";
        loop {
            if let Some(end) = self.buffer.windows(END.len()).position(|window| window == END) {
                let head = self.buffer.split_to(end + END.len());
                return parse_head(std::str::from_utf8(&head).expect("a header of text"));
            }
            assert!(self.read_more().await, "closed without a response: {:?}", self.buffer);
        }
    }

    /// Waits until the server closes the connection. Returns what was still received.
    pub(crate) async fn closed(mut self) -> Bytes {
        while self.read_more().await {}
        self.buffer.freeze()
    }

    /// Reads into the buffer. Returns `false` if the connection is closed.
    async fn read_more(&mut self) -> bool {
        let read = with_timeout("more from the server", self.stream.read_buf(&mut self.buffer)).await;
        read.is_ok_and(|bytes| bytes > 0)
    }
}

fn parse_head(head: &str) -> Received {
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let field = |line: &str| -> (HeaderName, HeaderValue) {
        let (name, value) = line.split_once(": ").expect("a header field");
        (name.parse().expect("a name"), value.parse().expect("a value"))
    };
    let status: StatusCode = status.parse().expect("a status code");
    let headers: HeaderMap = lines.map(field).collect();
    Received { status, headers, body: Bytes::new() }
}
