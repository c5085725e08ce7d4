//! Malformed HTTP over real connections. The service answers with a 4xx or closes the connection; it never answers with a 5xx
//! and never hangs. A request that is smuggled behind a malformed one is not executed.

use std::time::Duration;

use futures_util::future::join_all;
use system_tests::{Launch, ORDERS, PRODUCTS, Service, System, USERS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;

/// The header and body timeouts of the services. Every connection is read to its end, so the whole table takes this long.
const READ_TIMEOUT: Duration = Duration::from_secs(6);
/// A connection that lasts longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What a client receives until its connection is closed.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// Nothing.
    Nothing,
    /// Responses with these statuses. Those from 400 on are problems.
    Responses(Vec<u16>),
    /// A response without a body: hyper itself rejected the bytes.
    Bare(u16),
    /// Something that is no response.
    Nonsense(String),
    /// The connection was not closed.
    Hanging,
}

use Received::{Bare, Nothing, Responses};

fn one(status: u16) -> Received {
    Responses(vec![status])
}

/// A name, the bytes sent on a new connection, and the expected response.
type Row = (&'static str, Vec<u8>, Received);

/// A service, with its collection.
struct Target<'a> {
    service: &'a Service,
    name: &'static str,
    /// The path of its collection.
    list: &'static str,
    /// A valid element.
    element: &'static str,
}

impl Target<'_> {
    /// Returns all rows for this service.
    fn table(&self) -> Vec<Row> {
        let tables =
            [self.heads(), self.targets(), self.lengths(), self.chunks(), self.expectations(), self.pipelines()];
        tables.into_iter().flatten().collect()
    }

    fn heads(&self) -> Vec<Row> {
        let with = |lines: &str| get("/livez", lines);
        let line = |line: &str| format!("{line}\r\nHost: test\r\n\r\n");
        vec![
            row("no Host", "GET /livez HTTP/1.1\r\n\r\n", one(400)),
            row("no Host, in HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\n", one(200)),
            row("two Hosts, in HTTP/1.0", line("GET /livez HTTP/1.0\r\nHost: test"), one(400)),
            row("two Hosts", with("Host: test\r\n"), one(400)),
            row("an empty Host", "GET /livez HTTP/1.1\r\nHost:\r\n\r\n", one(400)),
            row("an invalid Host", "GET /livez HTTP/1.1\r\nHost: test@test/\r\n\r\n", one(400)),
            row("HTTP/0.9", "GET /livez\r\n", Bare(400)),
            row("HTTP/1.2", line("GET /livez HTTP/1.2"), Bare(400)),
            row("HTTP/3.0", line("GET /livez HTTP/3.0"), Bare(400)),
            row("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Nothing),
            row("an upgrade to HTTP/2", with("Connection: Upgrade\r\nUpgrade: h2c\r\n"), one(200)),
            row("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\x17".as_slice(), Bare(400)),
            row("no bytes", "", Nothing),
            row("empty lines", "\r\n".repeat(1000), Nothing),
            row("a megabyte of empty lines", "\r\n".repeat(MIB), Bare(431)),
            row("TRACE", line("TRACE /livez HTTP/1.1"), one(405)),
            row("CONNECT", line("CONNECT test:80 HTTP/1.1"), one(404)),
            row("a method in lower case", line("get /livez HTTP/1.1"), one(405)),
            row("a method that is no token", line("GE(T /livez HTTP/1.1"), Bare(400)),
            row("a method of 1 KiB", line(&format!("{} /livez HTTP/1.1", "M".repeat(KIB))), one(405)),
            row("a method of 1 MiB", line(&format!("{} /livez HTTP/1.1", "M".repeat(MIB))), Bare(431)),
            row("tabs between the words", line("GET\t/livez\tHTTP/1.1"), Bare(400)),
            row("two blanks between the words", line("GET  /livez HTTP/1.1"), Bare(400)),
            row("a header of 20 KiB", with(&format!("X: {}\r\n", "x".repeat(20 * KIB))), one(431)),
            row("a header of 1 MiB", with(&format!("X: {}\r\n", "x".repeat(MIB))), Bare(431)),
            row("150 headers", with(&"X: y\r\n".repeat(150)), Bare(431)),
            row("a header on two lines", with("X: y\r\n z\r\n"), Bare(400)),
            row("a blank before the first name", "GET /livez HTTP/1.1\r\n Host: test\r\n\r\n", Bare(400)),
            row("a blank before the colon", with("X : y\r\n"), Bare(400)),
            row("no colon", with("X\r\n"), Bare(400)),
            row("no name", with(": y\r\n"), Bare(400)),
            row("a NUL in a name", with("X\0: y\r\n"), Bare(400)),
            row("a NUL in a value", with("X: y\0\r\n"), Bare(400)),
            row("a bare CR in a value", with("X: y\rZ: z\r\n"), Bare(400)),
            row("bare CRs", "GET /livez HTTP/1.1\rHost: test\r\r", Bare(400)),
            // RFC 9112 (2.2) allows it: hyper accepts a bare LF as the end of a line.
            row("bare LFs", "GET /livez HTTP/1.1\nHost: test\n\n", one(200)),
            row(
                "headers of ours that are not ASCII",
                with("X-Request-Id: \u{ff}\r\nAccept-Encoding: \u{ff}\r\n"),
                one(200),
            ),
        ]
    }

    fn targets(&self) -> Vec<Row> {
        let to = |target: &str| get(target, "");
        let below = |rest: &str| get(&format!("{}/{rest}", self.list), "");
        let raw = [b"GET ", self.list.as_bytes(), b"/\xff HTTP/1.1\r\nHost: test\r\n\r\n"].concat();
        vec![
            row("a whole URL, of another host", to("http://other/livez"), one(200)), // RFC 9112, 3.2.2: the host of the URL counts
            row("an asterisk", to("*"), one(404)),
            row("a host alone", to("test:80"), one(404)),
            row("no path", to("livez"), one(404)),
            row("two slashes", to("//livez"), one(404)),
            row("a URI of 64 KiB", to(&format!("/{}", "x".repeat(64 * KIB))), Bare(431)),
            row("a URI of 20 KiB", to(&format!("/{}", "x".repeat(20 * KIB))), one(431)),
            row("a query of 20 KiB", to(&format!("{}?q={}", self.list, "x".repeat(20 * KIB))), one(431)),
            row("a tab in the path", below("\t1"), Bare(400)),
            row("a blank in the path", below(" 1"), Bare(400)),
            row("a NUL in the path", below("\0"), Bare(400)),
            row("UTF-8 in the path", below("\u{e9}"), one(400)),
            row("invalid UTF-8 in the path", raw, Bare(400)),
            row("an invalid percent-encoding", below("%zz"), one(400)),
            row("half a percent-encoding", below("%"), one(400)),
            row("an encoded NUL", below("%00"), one(400)),
            row("encoded invalid UTF-8", below("%ff"), one(400)),
            row("an encoded overlong slash", below("%c0%af"), one(400)),
            row("an invalid percent-encoding in the query", get(&format!("{}?limit=%zz", self.list), ""), one(400)),
            row("a parent path", below("../livez"), one(404)),
            row("a path above the root", to("/docs/../../../etc/passwd"), one(404)),
            row("an encoded path above the root", to("/docs/%2e%2e/%2e%2e%2f%2e%2e/etc/passwd"), one(404)),
        ]
    }

    fn lengths(&self) -> Vec<Row> {
        let length = |length: &str| self.post(&format!("Content-Length: {length}\r\n"), "{}");
        let hidden = self.valid();
        let both = |lines: &[&str]| self.post(&lines.concat(), &format!("0\r\n\r\n{hidden}"));
        let content_length = format!("Content-Length: {}\r\n", hidden.len() + "0\r\n\r\n".len());
        vec![
            row("two lengths", self.post("Content-Length: 2\r\nContent-Length: 3\r\n", "{} "), Bare(400)),
            row("the same length twice", self.post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"), one(400)),
            row("a list of lengths", length("2, 3"), Bare(400)),
            row("a list of the same length", length("2, 2"), Bare(400)),
            row("a length with a plus", length("+2"), Bare(400)),
            row("a length below zero", length("-2"), Bare(400)),
            row("a length in base 16", length("0x2"), Bare(400)),
            row("an empty length", length(""), Bare(400)),
            row("a length beyond 64 bits", length("18446744073709551616"), Bare(400)),
            row("the greatest 64-bit length", length("18446744073709551615"), Bare(431)),
            row("a length of 63 bits", length("9223372036854775807"), one(413)),
            row("a length longer than the body", length("3"), one(408)),
            row("no length", self.post("", ""), one(400)),
            row("10 MiB", self.post(&format!("Content-Length: {}\r\n", 10 * MIB), &"x".repeat(10 * MIB)), one(413)),
            row("a length, then chunked", both(&[&content_length, CHUNKED]), one(400)),
            row("chunked, then a length", both(&[CHUNKED, &content_length]), one(400)),
            row("chunked in HTTP/1.0", both(&[CHUNKED]).replacen("/1.1", "/1.0", 1), Bare(400)),
            row("chunked, but not as the last coding", both(&["Transfer-Encoding: chunked, identity\r\n"]), Bare(400)),
            row("chunked twice", self.chunked_element("chunked, chunked"), one(400)),
            row("chunked on two lines", self.chunked_element("chunked\r\nTransfer-Encoding: chunked"), one(400)),
            row("compressed, then chunked", self.chunked_element("gzip, chunked"), one(400)),
            row("xchunked", both(&["Transfer-Encoding: xchunked\r\n"]), Bare(400)),
            row("chunked in quotes", both(&["Transfer-Encoding: \"chunked\"\r\n"]), Bare(400)),
            row("chunked before a blank and a colon", both(&["Transfer-Encoding : chunked\r\n"]), Bare(400)),
            row("chunked on the second line", both(&["Transfer-Encoding:\r\n chunked\r\n"]), Bare(400)),
        ]
    }

    fn chunks(&self) -> Vec<Row> {
        let chunked = |body: &str| self.post(CHUNKED, body);
        let long = "x".repeat(100 * KIB);
        vec![
            row("a size beyond 64 bits", chunked("10000000000000002\r\n{}\r\n0\r\n\r\n"), one(400)),
            row("the greatest 64-bit size", chunked("ffffffffffffffff\r\n{}\r\n0\r\n\r\n"), one(408)),
            row("a size below zero", chunked("-2\r\n{}\r\n0\r\n\r\n"), one(400)),
            row("a size with a plus", chunked("+2\r\n{}\r\n0\r\n\r\n"), one(400)),
            row("no size", chunked("\r\n{}\r\n0\r\n\r\n"), one(400)),
            row("a chunk without its end", chunked("2\r\n{}0\r\n\r\n"), one(400)),
            row("chunks with bare LFs", chunked("2\n{}\n0\n\n"), one(400)),
            row("no last chunk", chunked("2\r\n{}\r\n"), one(408)),
            row("no end of the last chunk", chunked("2\r\n{}\r\n0\r\n"), one(408)),
            row("an extension of 100 KiB", chunked(&format!("2;{long}\r\n{{}}\r\n0\r\n\r\n")), one(400)),
            row("extensions of 100 KiB", chunked(&"1;xxxxxxxxxx\r\n \r\n".repeat(10 * KIB)), one(400)),
            row("a bare LF in an extension", chunked("2;x\n{}\r\n0\r\n\r\n"), one(400)),
            row("a trailer of 100 KiB", chunked(&format!("2\r\n{{}}\r\n0\r\nX: {long}\r\n\r\n")), one(400)),
            row("20,000 trailers", chunked(&format!("2\r\n{{}}\r\n0\r\n{}\r\n", "X: y\r\n".repeat(20_000))), one(400)),
            row("10 MiB in a chunk", chunked(&format!("a00000\r\n{}\r\n0\r\n\r\n", "x".repeat(10 * MIB))), one(413)),
            row("10 MiB in chunks", chunked(&format!("400\r\n{}\r\n", "x".repeat(KIB)).repeat(10 * KIB)), one(413)),
            row("requests in a chunk too large", chunked(&format!("fffff\r\n{}", self.valid().repeat(1000))), one(413)),
        ]
    }

    fn expectations(&self) -> Vec<Row> {
        vec![
            row("an expectation without a body", get("/livez", EXPECT), one(200)),
            row("an expectation without a length", self.post(EXPECT, ""), one(400)),
            row(
                "an expectation with a body that is too large",
                self.post(&format!("{EXPECT}Content-Length: 70000\r\n"), ""),
                one(413),
            ),
            row(
                "an expectation whose body does not come",
                self.post(&format!("{EXPECT}Content-Length: 2\r\n"), ""),
                Responses(vec![100, 408]),
            ),
            row("an unknown expectation", get("/livez", "Expect: the-unexpected\r\n"), one(200)),
        ]
    }

    fn pipelines(&self) -> Vec<Row> {
        let mixed = [get("/livez", ""), get("/nowhere", ""), self.post("Content-Length: 2\r\n", "{}")].concat();
        vec![
            row("a thousand pipelined", get("/livez", "").repeat(1000), Responses(vec![200; 1000])),
            row("a thousand, valid and invalid", mixed.repeat(333), Responses([200, 404, 400].repeat(333))),
            row("a thousand without a Host", "GET /livez HTTP/1.1\r\n\r\n".repeat(1000), Responses(vec![400; 1000])),
            row("a thousand of an unknown version", "GET /livez HTTP/3.0\r\n\r\n".repeat(1000), Bare(400)),
            row("a valid one behind an invalid one", format!("GET /livez HTTP/3.0\r\n\r\n{}", self.valid()), Bare(400)),
        ]
    }

    fn post(&self, lines: &str, body: &str) -> String {
        let list = self.list;
        format!("POST {list} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{lines}\r\n{body}")
    }

    /// Returns a request that adds an element if a service executes it.
    fn valid(&self) -> String {
        self.post(&format!("Content-Length: {}\r\n", self.element.len()), self.element)
    }

    /// Returns the same request in chunks, with this list of codings.
    fn chunked_element(&self, codings: &str) -> String {
        let chunks = format!("{:x}\r\n{}\r\n0\r\n\r\n", self.element.len(), self.element);
        self.post(&format!("Transfer-Encoding: {codings}\r\n"), &chunks)
    }

    /// Sends all rows. Returns what is wrong with the responses, or with the service afterwards.
    async fn send_all(&self, rows: &[Row]) -> Vec<String> {
        let received = join_all(rows.iter().map(async |(_, sent, _)| {
            let received = time::timeout(DEADLINE, send(self.service, sent)).await;
            (received, self.service.request("GET", "/livez").try_send().await)
        }));
        // Parsed after all have arrived: parsing takes time in which other connections would time out.
        let results = rows.iter().zip(received.await);
        results
            .filter_map(|((what, _, expected), (received, well))| {
                let received = received.map_or(Received::Hanging, |bytes| read(&bytes));
                let well = well.is_ok_and(|answer| answer.status == 200);
                let fault = || format!("{what}: {} answers {received:?} and not {expected:?}; well: {well}", self.name);
                (received != *expected || !well).then(fault)
            })
            .collect()
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const EXPECT: &str = "Expect: 100-continue\r\n";

fn row(what: &'static str, sent: impl Into<Vec<u8>>, expected: Received) -> Row {
    (what, sent.into(), expected)
}

fn get(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n{lines}\r\n")
}

/// Sends these bytes. Returns everything that the service sends until it closes the connection.
async fn send(service: &Service, sent: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = TcpStream::connect(service.address()).await.expect("it listens").into_split();
    let mut received = Vec::new();
    // Both may fail: a service may close the connection before it has read everything.
    let _ = tokio::join!(to.write_all(sent), from.read_to_end(&mut received));
    received
}

fn read(bytes: &[u8]) -> Received {
    let nonsense = || Received::Nonsense(String::from_utf8_lossy(bytes).into_owned());
    if bytes.is_empty() { Nothing } else { responses(bytes).unwrap_or_else(nonsense) }
}

/// Parses one response after the other.
fn responses(mut bytes: &[u8]) -> Option<Received> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?.to_lowercase();
        let status = head.strip_prefix("http/1.")?.split(' ').nth(1)?.parse().ok()?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let length = field("content-length").map_or(Some(0), |length| length.parse().ok())?;
        let body = bytes[end + 4..].get(..length)?;
        if length == 0 && status >= 400 {
            return (statuses.is_empty() && bytes.len() == end + 4).then_some(Bare(status));
        }
        if status >= 400 {
            let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
            (field("content-type")? == "application/problem+json" && problem["status"] == status).then_some(())?;
        }
        statuses.push(status);
        bytes = &bytes[end + 4 + length..];
    }
    Some(Responses(statuses))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_malformed_http_with_4xx_or_closes_and_executes_nothing() {
    let read_timeout = READ_TIMEOUT.as_secs();
    let prepare =
        |launch: Launch| launch.env("HEADER_TIMEOUT_SECONDS", read_timeout).env("BODY_TIMEOUT_SECONDS", read_timeout);
    let system = System::start_as(prepare).await.unwrap();
    let targets = [
        Target { service: &system.users, name: USERS, list: "/users", element: r#"{"name":"Mallory"}"# },
        Target { service: &system.products, name: PRODUCTS, list: "/products", element: r#"{"name":"Contraband"}"# },
        Target {
            service: &system.orders,
            name: ORDERS,
            list: "/orders",
            element: r#"{"userId":1,"products":[{"productId":1,"quantity":1}]}"#,
        },
    ];
    join_all(targets.iter().map(async |target| {
        let before = target.service.get(target.list).await.expect(200).text;
        let rows = target.table();
        println!("protocol: {}: {} rows", target.name, rows.len());
        let wrong = target.send_all(&rows).await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(target.service.get(target.list).await.expect(200).text, before, "a request was executed");
        is_unharmed(target.service).await;
    }))
    .await;
    for request in [targets[0].valid(), targets[0].chunked_element("chunked")] {
        assert_eq!(
            read(&send(&system.users, request.as_bytes()).await),
            one(201),
            "the hidden request is valid on its own"
        );
    }
}

/// Checks that no request failed in the log and in the metrics.
async fn is_unharmed(service: &Service) {
    let log = service.log();
    let bad: Vec<&String> =
        log.iter().filter(|line| line.contains("panicked") || line.contains(r#""status":5"#)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(log.iter().any(|line| line.contains(r#""status":4"#)), "the log has statuses: {log:#?}");
    let metrics = service.get("/metrics").await.expect(200).text;
    assert!(metrics.contains("status=\"4") && !metrics.contains("status=\"5"), "{metrics}");
}
