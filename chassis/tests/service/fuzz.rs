//! Random bytes on real connections: each comes to an end, without a 5xx and without a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};

use testing::{Random, seed};

use crate::tiny::{self, settings};
use crate::wire::Served;

const CONNECTIONS: usize = 5000;

/// What is broken in many ways.
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
async fn no_random_bytes_are_a_5xx() {
    let (seed, panics) = (seed(), panics_of_this_test());
    let served = Served::start(tiny::service(&settings()).0).await;
    let mut dice = Random::new(seed);
    let mut answered = 0;
    for number in 1..=CONNECTIONS {
        let sent = bytes(&mut dice);
        let mut connection = served.connect().await;
        connection.send(&sent).await;
        connection.end().await;
        let heard = connection.closed().await;
        let bad = heard.windows(10).any(|bytes| bytes == b"HTTP/1.1 5") || panics.load(Ordering::SeqCst) > 0;
        let said = || format!("connection {number}, TEST_SEED={seed}: b\"{}\"", sent.escape_ascii());
        assert!(!bad, "{}: {}", said(), heard.escape_ascii());
        answered += usize::from(!heard.is_empty());
    }
    let figures = served.get("/metrics").await.expect(200).to_string();
    for (status, there) in [("200", true), ("400", true), ("404", true), ("405", true), ("5", false)] {
        assert_eq!(figures.contains(&format!("status=\"{status}")), there, "{status}, TEST_SEED={seed}: {figures}");
    }
    println!("fuzz: bytes: {CONNECTIONS} connections, {answered} answered, seed {seed}");
}

fn bytes(dice: &mut Random) -> Vec<u8> {
    if dice.hit(10) {
        return dice.bytes(300);
    }
    let (first, second) = (dice.one(&REQUESTS), dice.one(&REQUESTS));
    let broken = dice.broken(first.as_bytes());
    if dice.hit(4) { [&broken, second.as_bytes()].concat() } else { broken }
}

/// How many panics there were: the server runs in this very thread, and would only hang up. (Other tests panic on purpose,
/// in theirs.)
fn panics_of_this_test() -> Arc<AtomicUsize> {
    let (panics, here, usual) = (Arc::new(AtomicUsize::new(0)), thread::current().id(), panic::take_hook());
    let counted = Arc::clone(&panics);
    panic::set_hook(Box::new(move |info| {
        counted.fetch_add(usize::from(thread::current().id() == here), Ordering::SeqCst);
        usual(info);
    }));
    panics
}
