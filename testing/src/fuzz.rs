//! Random requests to an app: whatever comes, it is answered, and never with a 5xx.
//!
//! They are made of what a service understands, so that they come far: its own paths, queries and bodies, whole and
//! broken, and what it has answered before (addresses, tags). The same seed throws the same dice.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, header};
use bytes::Bytes;
use futures_util::FutureExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::time;

use super::{Client, Received, Sending, seed};
use chassis::problem;

/// No request takes nearly as long.
const DEADLINE: Duration = Duration::from_secs(30);
/// So many things are remembered.
const MEMORY: usize = 16;

/// What a service understands.
#[derive(Clone, Copy, Debug)]
pub struct Language {
    /// Its calls: `GET /things/*`, where `*` stands for the id of a thing.
    pub calls: &'static [&'static str],
    /// Queries that it takes.
    pub queries: &'static [&'static str],
    /// Bodies that it takes.
    pub bodies: &'static [&'static str],
}

/// Sends an app so many random requests, one after the other, and prints how many had which answer.
///
/// # Panics
/// If one is answered with a 5xx, with an error that is no problem, by a panic or not at all; the message has the request
/// and the seed (`TEST_SEED=<number>` in the environment repeats it). Or if one of the statuses of `reached` was no answer to
/// any of them: then the requests are no good.
pub async fn fuzz(service: &str, client: &Client, language: Language, requests: usize, reached: &[u16]) {
    let seed = seed();
    let mut speaker = Speaker { dice: Random::new(seed), language, made: Vec::new() };
    let mut tally = BTreeMap::<u16, usize>::new();
    for number in 1..=requests {
        let request = speaker.request();
        let received = answer(client, request.clone()).await;
        let told = |fault| panic!("{fault}: request {number}, TEST_SEED={seed}: {}", tell(&request));
        let received = received.unwrap_or_else(told);
        speaker.remember(&received);
        *tally.entry(received.status.as_u16()).or_default() += 1;
    }
    let figures = tally.iter().map(|(status, times)| format!(", {status} {times}")).collect::<String>();
    println!("fuzz: {service}: {requests} requests{figures}, seed {seed}");
    for status in reached {
        assert!(tally.contains_key(status), "no request was answered with {status}{figures}, TEST_SEED={seed}");
    }
}

/// The answer to a request, or what is wrong with it.
async fn answer(client: &Client, (request, body): (Request<()>, Bytes)) -> Result<Received, String> {
    let sending = Sending { app: client.0.clone(), request: request.map(|()| Body::from(body)) };
    let answered = time::timeout(DEADLINE, AssertUnwindSafe(sending.send()).catch_unwind()).await;
    let received = answered.map_err(|_| "no answer")?.map_err(|_| "a panic")?;
    let (status, kind) = (received.status, received.header("content-type"));
    if status.is_server_error() || (status.is_client_error() && kind != problem::CONTENT_TYPE) {
        return Err(received.to_string());
    }
    Ok(received)
}

/// A request as it can be typed in again.
fn tell((request, body): &(Request<()>, Bytes)) -> String {
    format!("{} {} {:?} body b\"{}\"", request.method(), request.uri(), request.headers(), body.escape_ascii())
}

/// Who makes the requests.
struct Speaker {
    dice: Random,
    language: Language,
    /// The ids and tags of things that were made.
    made: Vec<(String, HeaderValue)>,
}

impl Speaker {
    /// The next request: the next one that is one, for of some bytes none can be made.
    fn request(&mut self) -> (Request<()>, Bytes) {
        loop {
            let call = self.dice.one(self.language.calls);
            let (method, path) = call.split_once(' ').expect("a call is a method and a path");
            let (id, tag) = self.thing();
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

    /// The id and the tag of something that was made, or of something else.
    fn thing(&mut self) -> (String, HeaderValue) {
        if self.made.is_empty() || self.dice.hit(8) {
            return (self.dice.below(10).to_string(), HeaderValue::from_static("*"));
        }
        self.dice.one(&self.made)
    }

    fn method(&mut self, right: &str) -> Vec<u8> {
        const OTHERS: [&str; 11] =
            ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"];
        match self.dice.below(20) {
            0 | 1 => self.dice.one(&OTHERS).into(),
            2 => self.dice.broken(right.as_bytes()),
            _ => right.into(),
        }
    }

    fn target(&mut self, path: String) -> Vec<u8> {
        let prefix = if self.dice.hit(4) { "/api" } else { "" };
        let mut target = format!("{prefix}{path}").into_bytes();
        if self.dice.hit(6) {
            target = self.dice.broken(&target);
        }
        if self.dice.hit(20) {
            target.push(b'/');
            target.extend(self.dice.bytes(20));
        }
        if self.dice.hit(4) {
            target.push(b'?');
            target.extend(self.query());
        }
        if self.dice.hit(2) { target } else { percent_encoded(&target) }
    }

    fn query(&mut self) -> Vec<u8> {
        let query = self.dice.one(self.language.queries).as_bytes();
        match self.dice.below(4) {
            0 => self.dice.broken(query),
            1 => self.dice.bytes(30),
            2 => [query, b"&", self.dice.one(self.language.queries).as_bytes()].concat(),
            _ => query.to_vec(),
        }
    }

    fn body(&mut self) -> Vec<u8> {
        let whole = self.dice.one(self.language.bodies).as_bytes();
        match self.dice.below(16) {
            0 => Vec::new(),
            1 => self.dice.bytes(200),
            2 | 3 => self.dice.soup(self.language.bodies),
            4 if self.dice.hit(20) => vec![self.dice.byte(); 70_000],
            4..=11 => self.dice.broken(whole),
            _ => whole.to_vec(),
        }
    }

    fn headers(&mut self, tag: HeaderValue, body: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        let mut add = |name: &'static str, value: &[u8]| {
            headers.extend(HeaderValue::from_bytes(value).ok().map(|value| (HeaderName::from_static(name), value)));
        };
        if !self.dice.hit(100) {
            add("host", b"test");
        }
        if !body.is_empty() && !self.dice.hit(20) {
            add("content-type", b"application/json");
        }
        if self.dice.hit(4) {
            add(self.dice.one(&["if-match", "if-none-match"]), tag.as_bytes());
        }
        if self.dice.hit(4) {
            add("idempotency-key", self.dice.one(&["a", "b", "c", "d"]).as_bytes());
        }
        while self.dice.hit(2) {
            let name = self.dice.one(&NAMES);
            let value = self.dice.one(&VALUES).as_bytes();
            let value = match self.dice.below(4) {
                0 => self.dice.bytes(40),
                1 => self.dice.broken(value),
                _ => value.to_vec(),
            };
            add(name, &value);
        }
        if self.dice.hit(50) {
            // No short time: then 503 would be right, and that is not what is looked for.
            let value = self.dice.one(&["", "-1", "soon", "60000", "60000.5", "18446744073709551615", "1e99"]);
            add("x-deadline-ms", value.as_bytes());
        }
        if self.dice.hit(200) {
            add("x-padding", &vec![b'x'; 20_000]);
        }
        headers
    }

    /// What was made is asked for again.
    fn remember(&mut self, received: &Received) {
        let location = received.header("location");
        let Some((_, id)) = location.rsplit_once('/').filter(|_| received.status == 201) else { return };
        let Some(tag) = received.headers.get(header::ETAG) else { return };
        let thing = (id.to_owned(), tag.clone());
        match self.made.len() {
            MEMORY => {
                let place = self.dice.below(MEMORY);
                self.made[place] = thing;
            }
            _ => self.made.push(thing),
        }
    }
}

/// The same with a code for each byte that may not stand in a URI.
fn percent_encoded(bytes: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'!'..=b'~' if !b"\"#<>\\^`{|}".contains(&byte) => text.push(char::from(byte)),
            _ => write!(text, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    text.into_bytes()
}

/// Chance, the same for the same seed.
#[derive(Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// Once in so many times.
    pub fn hit(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn byte(&mut self) -> u8 {
        self.0.random()
    }

    /// Any bytes, at most so many; often ones that stand for something.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        let any = self.hit(2);
        (0..length).map(|_| if any { self.byte() } else { self.one(SIGNS) }).collect()
    }

    /// These bytes, with one to three things done to them.
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
            // Mostly little of it: what is broken beyond knowing is all the same.
            let to = if self.hit(4) { to } else { to.min(from + self.below(3)) };
            broken.splice(from..to, put);
        }
        broken
    }

    /// Pieces of JSON, in any order.
    fn soup(&mut self, bodies: &[&str]) -> Vec<u8> {
        let mut soup = String::from(if self.hit(4) { "" } else { "{" });
        for _ in 0..self.below(20) {
            let names: Vec<&str> = self.one(bodies).split('"').skip(1).step_by(2).collect();
            match self.below(3) {
                0 if !names.is_empty() => write!(soup, "\"{}\":", self.one(&names)).expect("a string takes everything"),
                _ => soup.push_str(self.one(&TOKENS)),
            }
        }
        if !self.hit(4) {
            soup.push('}');
        }
        soup.into_bytes()
    }
}

/// Bytes that stand for something somewhere.
const SIGNS: &[u8] = b"\0\t\r\n \"%&'*+,-./:;=?[\\]_`{|}09AZaz\x7f\xc3\xa9\xff";

/// What means something in JSON, in numbers or in text.
#[rustfmt::skip]
const TOKENS: [&str; 36] = [
    "{", "}", "[", "]", ",", ",", ":", "\"", "\"\"", "\\", "\\u0000", "\\ud800", "null", "true", "0", "-0", "-1", "1", "2",
    "0.1", "0.001", "1e0", "1e-400", "1e400", "1E+2", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1000000.01", "\"1\"", "\u{0}", "\u{202e}", "\u{1f600}", "e\u{301}", "\u{fb03}",
];

/// Headers that somebody on the way looks at.
#[rustfmt::skip]
const NAMES: [&str; 18] = [
    "accept", "accept-encoding", "access-control-request-method", "authorization", "connection", "content-encoding",
    "content-length", "content-type", "cookie", "expect", "host", "if-match", "if-none-match", "idempotency-key", "origin",
    "traceparent", "tracestate", "x-request-id",
];

/// What one of them takes.
#[rustfmt::skip]
const VALUES: [&str; 18] = [
    "*", "*/*;q=0", "gzip", "identity;q=0", "br;q=1.0, gzip;q=0.8, *;q=0.1", "GET", "https://a.example", "application/json",
    "text/plain", "application/merge-patch+json; charset=utf-8", "100-continue", "\"0123456789abcdef\"", "W/\"0\", \"1\"",
    "a", "\"b\"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "0", "99999999999999999999",
];
