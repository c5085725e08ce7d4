//! Random requests to an app: every one gets a response, and none a 5xx.
//!
//! To get past the first checks, requests are built from what the service understands: its paths, queries and bodies, valid and
//! mutated, and ids and tags from its own responses. One seed always gives the same requests.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, header};
use bytes::Bytes;
use chassis::problem;
use futures_util::FutureExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::time;

use super::{Client, Received, Sending, seed};

/// Maximum time of one request: far more than any takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// Number of created entities that later requests refer to.
const MEMORY: usize = 16;

/// What a service understands, as material for requests.
#[derive(Clone, Copy, Debug)]
pub struct Language {
    /// Calls such as `GET /things/*`, where `*` stands for an id.
    pub calls: &'static [&'static str],
    /// Valid queries.
    pub queries: &'static [&'static str],
    /// Valid bodies.
    pub bodies: &'static [&'static str],
}

/// Sends random requests to an app, one after the other, and prints how often each status was the response.
///
/// # Panics
/// If a response is a 5xx or an error without a problem document, if a handler panics, or if there is no response; the message
/// has the request and the seed (`TEST_SEED=<number>` repeats the run). Also if no response had one of the statuses in `reached`:
/// then the requests do not get far enough.
pub async fn fuzz(service: &str, client: &Client, language: Language, requests: usize, reached: &[u16]) {
    let seed = seed();
    let mut generator = Generator { random: Random::new(seed), language, created: Vec::new() };
    let mut tally = BTreeMap::<u16, usize>::new();
    for number in 1..=requests {
        let request = generator.request();
        let received = send(client, request.clone()).await;
        let fail = |fault| panic!("{fault}: request {number}, TEST_SEED={seed}: {}", describe(&request));
        let received = received.unwrap_or_else(fail);
        generator.remember(&received);
        *tally.entry(received.status.as_u16()).or_default() += 1;
    }
    let figures = tally.iter().map(|(status, times)| format!(", {status} {times}")).collect::<String>();
    println!("fuzz: {service}: {requests} requests{figures}, seed {seed}");
    for status in reached {
        assert!(tally.contains_key(status), "no request was answered with {status}{figures}, TEST_SEED={seed}");
    }
}

/// Sends a request and returns the response, or what is wrong with it.
async fn send(client: &Client, (request, body): (Request<()>, Bytes)) -> Result<Received, String> {
    let sending = Sending { app: client.0.clone(), request: request.map(|()| Body::from(body)) };
    let response = time::timeout(DEADLINE, AssertUnwindSafe(sending.send()).catch_unwind()).await;
    let received = response.map_err(|_| "no response")?.map_err(|_| "a panic")?;
    let (status, kind) = (received.status, received.header("content-type"));
    if status.is_server_error() || (status.is_client_error() && kind != problem::CONTENT_TYPE) {
        return Err(received.to_string());
    }
    Ok(received)
}

/// Describes a request so that it can be repeated by hand.
fn describe((request, body): &(Request<()>, Bytes)) -> String {
    format!("{} {} {:?} body b\"{}\"", request.method(), request.uri(), request.headers(), body.escape_ascii())
}

/// Generates requests.
struct Generator {
    random: Random,
    language: Language,
    /// Ids and tags of created entities.
    created: Vec<(String, HeaderValue)>,
}

impl Generator {
    /// Returns the next request. Some random bytes make no valid request; these are skipped.
    fn request(&mut self) -> (Request<()>, Bytes) {
        loop {
            let call = self.random.one(self.language.calls);
            let (method, path) = call.split_once(' ').expect("a call is a method and a path");
            let (id, tag) = self.entity();
            let (method, target, body) = (self.method(method), self.target(path.replace('*', &id)), self.body());
            let mut request = Request::builder().method(&*method).uri(&*target);
            for (name, value) in self.headers(tag, &body) {
                request = request.header(name, value);
            }
            if let Ok(request) = request.body(()) {
                return (request, body.into());
            }
        }
    }

    /// Returns the id and the tag of a created entity, or others.
    fn entity(&mut self) -> (String, HeaderValue) {
        if self.created.is_empty() || self.random.hit(8) {
            return (self.random.below(10).to_string(), HeaderValue::from_static("*"));
        }
        self.random.one(&self.created)
    }

    fn method(&mut self, right: &str) -> Vec<u8> {
        const OTHERS: [&str; 11] =
            ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"];
        match self.random.below(20) {
            0 | 1 => self.random.one(&OTHERS).into(),
            2 => self.random.broken(right.as_bytes()),
            _ => right.into(),
        }
    }

    fn target(&mut self, path: String) -> Vec<u8> {
        let prefix = if self.random.hit(4) { "/api" } else { "" };
        let mut target = format!("{prefix}{path}").into_bytes();
        if self.random.hit(6) {
            target = self.random.broken(&target);
        }
        if self.random.hit(20) {
            target.push(b'/');
            target.extend(self.random.bytes(20));
        }
        if self.random.hit(4) {
            target.push(b'?');
            target.extend(self.query());
        }
        if self.random.hit(2) { target } else { percent_encoded(&target) }
    }

    fn query(&mut self) -> Vec<u8> {
        let query = self.random.one(self.language.queries).as_bytes();
        match self.random.below(4) {
            0 => self.random.broken(query),
            1 => self.random.bytes(30),
            2 => [query, b"&", self.random.one(self.language.queries).as_bytes()].concat(),
            _ => query.to_vec(),
        }
    }

    fn body(&mut self) -> Vec<u8> {
        let whole = self.random.one(self.language.bodies).as_bytes();
        match self.random.below(16) {
            0 => Vec::new(),
            1 => self.random.bytes(200),
            2 | 3 => self.random.soup(self.language.bodies),
            4 if self.random.hit(20) => vec![self.random.byte(); 70_000],
            4..=11 => self.random.broken(whole),
            _ => whole.to_vec(),
        }
    }

    fn headers(&mut self, tag: HeaderValue, body: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        let mut add = |name: &'static str, value: &[u8]| {
            headers.extend(HeaderValue::from_bytes(value).ok().map(|value| (HeaderName::from_static(name), value)));
        };
        if !self.random.hit(100) {
            add("host", b"test");
        }
        if !body.is_empty() && !self.random.hit(20) {
            add("content-type", b"application/json");
        }
        if self.random.hit(4) {
            add(self.random.one(&["if-match", "if-none-match"]), tag.as_bytes());
        }
        if self.random.hit(4) {
            add("idempotency-key", self.random.one(&["a", "b", "c", "d"]).as_bytes());
        }
        while self.random.hit(2) {
            let name = self.random.one(&NAMES);
            let value = self.random.one(&VALUES).as_bytes();
            let value = match self.random.below(4) {
                0 => self.random.bytes(40),
                1 => self.random.broken(value),
                _ => value.to_vec(),
            };
            add(name, &value);
        }
        if self.random.hit(50) {
            // No short deadline: a 503 would be the right response to it.
            let value = self.random.one(&["", "-1", "soon", "60000", "60000.5", "18446744073709551615", "1e99"]);
            add("x-deadline-ms", value.as_bytes());
        }
        if self.random.hit(200) {
            add("x-padding", &vec![b'x'; 20_000]);
        }
        headers
    }

    /// Keeps the id and the tag of a created entity for later requests.
    fn remember(&mut self, received: &Received) {
        let location = received.header("location");
        let Some((_, id)) = location.rsplit_once('/').filter(|_| received.status == 201) else { return };
        let Some(tag) = received.headers.get(header::ETAG) else { return };
        let entity = (id.to_owned(), tag.clone());
        match self.created.len() {
            MEMORY => {
                let index = self.random.below(MEMORY);
                self.created[index] = entity;
            }
            _ => self.created.push(entity),
        }
    }
}

/// Percent-encodes each byte that is not allowed in a URI.
fn percent_encoded(bytes: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'!'..=b'~' if !b"\"#<>\\^`{|}".contains(&byte) => text.push(char::from(byte)),
            _ => write!(text, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    text.into_bytes()
}

/// Random choices, the same for the same seed.
#[derive(Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// Starts with this seed.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// Returns true once in `times` calls, on average.
    pub fn hit(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Returns one of these.
    pub fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn byte(&mut self) -> u8 {
        self.0.random()
    }

    /// Returns at most `max` bytes; half of the time only bytes with a meaning in URIs or JSON.
    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        let length = self.below(max + 1);
        let any = self.hit(2);
        (0..length).map(|_| if any { self.byte() } else { self.one(SIGNS) }).collect()
    }

    /// Returns these bytes with one to four random edits.
    pub fn broken(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut broken = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let (from, to) = (self.below(broken.len() + 1), self.below(broken.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            let put = match self.below(6) {
                0 => Vec::new(),
                1 => broken[from..to].repeat(2),
                2 => vec![self.byte()],
                3 => self.one(&TOKENS).as_bytes().to_vec(),
                4 => self.bytes(4),
                _ => broken[from..to].iter().rev().copied().collect(),
            };
            // Most edits are small: bytes that are broken beyond recognition all take the same path.
            let to = if self.hit(4) { to } else { to.min(from + self.below(3)) };
            broken.splice(from..to, put);
        }
        broken
    }

    /// Returns pieces of JSON in random order.
    fn soup(&mut self, bodies: &[&str]) -> Vec<u8> {
        let mut soup = String::from(if self.hit(4) { "" } else { "{" });
        for _ in 0..self.below(20) {
            let names: Vec<&str> = self.one(bodies).split('"').skip(1).step_by(2).collect();
            match self.below(3) {
                0 if !names.is_empty() => {
                    write!(soup, "\"{}\":", self.one(&names)).expect("writing to a string cannot fail")
                }
                _ => soup.push_str(self.one(&TOKENS)),
            }
        }
        if !self.hit(4) {
            soup.push('}');
        }
        soup.into_bytes()
    }
}

/// Bytes with a meaning in URIs, headers or JSON.
const SIGNS: &[u8] = b"\0\t\r\n \"%&'*+,-./:;=?[\\]_`{|}09AZaz\x7f\xc3\xa9\xff";

/// Tokens with a meaning in JSON, numbers or text.
#[rustfmt::skip]
const TOKENS: [&str; 36] = [
    "{", "}", "[", "]", ",", ",", ":", "\"", "\"\"", "\\", "\\u0000", "\\ud800", "null", "true", "0", "-0", "-1", "1", "2",
    "0.1", "0.001", "1e0", "1e-400", "1e400", "1E+2", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1000000.01", "\"1\"", "\u{0}", "\u{202e}", "\u{1f600}", "e\u{301}", "\u{fb03}",
];

/// Headers that some part of the pipeline reads.
#[rustfmt::skip]
const NAMES: [&str; 18] = [
    "accept", "accept-encoding", "access-control-request-method", "authorization", "connection", "content-encoding",
    "content-length", "content-type", "cookie", "expect", "host", "if-match", "if-none-match", "idempotency-key", "origin",
    "traceparent", "tracestate", "x-request-id",
];

/// Values that some of these headers accept.
#[rustfmt::skip]
const VALUES: [&str; 18] = [
    "*", "*/*;q=0", "gzip", "identity;q=0", "br;q=1.0, gzip;q=0.8, *;q=0.1", "GET", "https://a.example", "application/json",
    "text/plain", "application/merge-patch+json; charset=utf-8", "100-continue", "\"0123456789abcdef\"", "W/\"0\", \"1\"",
    "a", "\"b\"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "0", "99999999999999999999",
];
