//! A served app, and a client that writes its requests by hand.

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

/// Long enough to hear of something that should not happen; well below the time limits of the tests.
const A_WHILE: Duration = Duration::from_millis(30);

/// An app that is being served. It ends at the latest with the test.
pub(crate) struct Served {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Shutdown>>,
    serving: JoinHandle<()>,
}

impl Served {
    /// Serves `app` on a free port.
    pub(crate) async fn start(app: App) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (stop, stopped) = oneshot::channel();
        let stopped = async { stopped.await.unwrap_or(Shutdown::Immediate) };
        let serving = tokio::spawn(async move {
            chassis::serve(listener, &app, stopped).await;
        });
        Self { address, stop: Some(stop), serving }
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Connection {
        Connection { stream: TcpStream::connect(self.address).await.expect("it listens"), read: BytesMut::new() }
    }

    /// Whether connections are taken.
    pub(crate) async fn listens(&self) -> bool {
        TcpStream::connect(self.address).await.is_ok()
    }

    /// The answer to `GET path` on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Received {
        self.connect().await.get(path).await
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self, how: Shutdown) {
        let stop = self.stop.take().expect("it is stopped once");
        stop.send(how).expect("it still serves");
    }

    /// Whether it ends within a while.
    pub(crate) async fn ends(&mut self) -> bool {
        time::timeout(A_WHILE, &mut self.serving).await.is_ok()
    }

    /// Until it has ended.
    pub(crate) async fn ended(self) {
        with_timeout("the end of the server", self.serving).await.expect("it ends without a panic");
    }
}

/// One connection of a client.
pub(crate) struct Connection {
    stream: TcpStream,
    read: BytesMut,
}

impl Connection {
    /// Sends these bytes, or as many of them as the server takes before it hangs up.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = with_timeout("room for what is sent", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn end(&mut self) {
        let _ = self.stream.shutdown().await; // the server may have hung up
    }

    /// Sends one byte more of something that drips, after a while; `false` once the server has answered or hung up.
    pub(crate) async fn drip(&mut self) -> bool {
        !self.hears_something().await && self.stream.write_all(b"x").await.is_ok()
    }

    /// Whether something comes from the server within a while.
    pub(crate) async fn hears_something(&self) -> bool {
        time::timeout(A_WHILE, self.stream.readable()).await.is_ok()
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// The answer to `GET path`.
    pub(crate) async fn get(&mut self, path: &str) -> Received {
        self.ask(path).await;
        self.answer().await
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Received {
        let mut received = self.head().await;
        let length = received.header("content-length").parse().unwrap_or(0);
        while self.read.len() < length {
            assert!(self.more().await, "closed within a body: {received} {:?}", self.read);
        }
        received.body = self.read.split_to(length).freeze();
        received
    }

    /// The next answer as far as its header.
    pub(crate) async fn head(&mut self) -> Received {
        const END: &[u8] = b"\r\n\r\n";
        loop {
            if let Some(at) = self.read.windows(END.len()).position(|window| window == END) {
                let head = self.read.split_to(at + END.len());
                return parse(std::str::from_utf8(&head).expect("a header of text"));
            }
            assert!(self.more().await, "closed without an answer: {:?}", self.read);
        }
    }

    /// What comes until the server closes the connection.
    pub(crate) async fn closed(mut self) -> Bytes {
        while self.more().await {}
        self.read.freeze()
    }

    /// Reads more; `false` if the connection is closed.
    async fn more(&mut self) -> bool {
        let read = with_timeout("more from the server", self.stream.read_buf(&mut self.read)).await;
        read.is_ok_and(|bytes| bytes > 0)
    }
}

fn parse(head: &str) -> Received {
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
