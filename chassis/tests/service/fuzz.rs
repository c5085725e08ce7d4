//! Random bytes over real connections: each connection is closed, without a 5xx and without a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};

use testing::{Random, seed};

use crate::raw_http::Server;
use crate::sample_service::{self, settings};

const CONNECTIONS: usize = 5000;

/// Valid requests, which the test mutates.
const REQUESTS: [&str; 8] = [
    "GET /numbers/7 HTTP/1.1\r\nHost: test\r\n\r\n",
    "GET /api/numbers/7?a=b HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\n\r\n",
    "HEAD http://test:80/nowhere HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "GET /id HTTP/1.1\r\nHost: test\r\nX-Request-Id: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: test\r\n\r\n",
];

#[tokio::test]
async fn never_returns_5xx_to_random_bytes() {
    let (seed, panics) = (seed(), panics_of_this_test());
    let server = Server::start(sample_service::service(&settings()).0).await;
    let mut random = Random::new(seed);
    let mut answered = 0;
    for number in 1..=CONNECTIONS {
        let sent = bytes(&mut random);
        let mut connection = server.connect().await;
        connection.send(&sent).await;
        connection.close_sending_side().await;
        let received = connection.closed().await;
        let failed = received.windows(10).any(|bytes| bytes == b"HTTP/1.1 5") || panics.load(Ordering::SeqCst) > 0;
        let description = || format!("connection {number}, TEST_SEED={seed}: b\"{}\"", sent.escape_ascii());
        assert!(!failed, "{}: {}", description(), received.escape_ascii());
        answered += usize::from(!received.is_empty());
    }
    let metrics = server.get("/metrics").await.expect(200).to_string();
    for (status, expected) in [("200", true), ("400", true), ("404", true), ("405", true), ("5", false)] {
        assert_eq!(metrics.contains(&format!("status=\"{status}")), expected, "{status}, TEST_SEED={seed}: {metrics}");
    }
    println!("fuzz: bytes: {CONNECTIONS} connections, {answered} answered, seed {seed}");
}

/// Returns random bytes, or a mutated request, perhaps followed by a valid one.
fn bytes(random: &mut Random) -> Vec<u8> {
    if random.hit(10) {
        return random.bytes(300);
    }
    let (first, second) = (random.one(&REQUESTS), random.one(&REQUESTS));
    let broken = random.broken(first.as_bytes());
    if random.hit(4) { [&broken, second.as_bytes()].concat() } else { broken }
}

/// Counts panics in this thread, where the server runs. The server itself would only close the connection. Other tests panic
/// on purpose, in their own threads.
fn panics_of_this_test() -> Arc<AtomicUsize> {
    let (panics, this_thread, default_hook) =
        (Arc::new(AtomicUsize::new(0)), thread::current().id(), panic::take_hook());
    let counted = Arc::clone(&panics);
    panic::set_hook(Box::new(move |info| {
        counted.fetch_add(usize::from(thread::current().id() == this_thread), Ordering::SeqCst);
        default_hook(info);
    }));
    panics
}
