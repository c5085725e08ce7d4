//! For the services' tests: a client over an [`App`] without a network, and a peer that answers what it is told to.

mod fuzz;
mod plans;
pub mod postgres;
mod wait;

use std::path::Path;
use std::{env, fs};

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpListener;
use url::Url;

pub use self::fuzz::{Language, Random, fuzz};
pub use self::plans::{Plans, with_logged_plans};
pub use self::wait::{DEADLINE, eventually, with_timeout};
use chassis::App;

/// Stamps every case of a store's contract as a test of each store: first how each is made, in memory and over the
/// address of an empty database, then the cases, which are functions that take the store.
#[macro_export]
macro_rules! store_contract {
    (memory: $memory:expr; $($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                use super::*;
                super::$case(&$memory).await;
            })*
        }
    };
    (memory: $memory:expr; postgres: $postgres:expr; $($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                use super::*;
                super::$case(&$memory).await;
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                use super::*;
                if let Some(database) = $crate::postgres::database().await {
                    super::$case(&$postgres(database).await).await;
                }
            })*
        }

        /// All cases over PostgreSQL, one after the other, for what is to be seen of every one: each over a database that
        /// is empty, with these options.
        pub(super) async fn every_case(options: fn(&sqlx::postgres::PgConnectOptions) -> sqlx::postgres::PgConnectOptions) {
            $(if let Some(database) = $crate::postgres::database().await {
                $case(&$postgres(options(&database)).await).await;
            })*
        }
    };
}

/// A client that calls an app in the same process, through all its layers.
#[derive(Clone)]
pub struct Client(App);

/// A request to be sent.
#[must_use]
pub struct Sending {
    app: App,
    request: Request<Body>,
}

/// An answer that has come, whole.
#[derive(Debug)]
pub struct Received {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Client {
    /// A client of this app.
    pub fn new(app: App) -> Self {
        Self(app)
    }

    /// A request with this method to this path.
    pub fn request(&self, method: &str, path: &str) -> Sending {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = Request::builder().method(method).uri(path).header(header::HOST, "test").body(Body::empty());
        Sending { app: self.0.clone(), request: request.expect("a path") }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Received {
        self.request("GET", path).send().await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Received {
        self.request("DELETE", path).send().await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, json: Value) -> Received {
        self.request("POST", path).json(&json).send().await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, json: Value) -> Received {
        self.request("PUT", path).json(&json).send().await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, json: Value) -> Received {
        self.request("PATCH", path).json(&json).send().await
    }
}

impl Sending {
    /// With one more header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().append(name, value.parse().expect("a header value"));
        self
    }

    /// Without any header of this name.
    pub fn without(mut self, name: &str) -> Self {
        self.request.headers_mut().remove(name);
        self
    }

    /// With a JSON body.
    pub fn json(self, json: &Value) -> Self {
        self.bytes("application/json", json.to_string())
    }

    /// With a body of any kind.
    pub fn bytes(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut sending = self.header("content-type", content_type);
        *sending.request.body_mut() = Body::from(body.into());
        sending
    }

    /// Sends it and waits for the whole answer.
    pub async fn send(self) -> Received {
        let response = self.app.call(self.request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("an answer from memory").to_bytes();
        Received { status: parts.status, headers: parts.headers, body }
    }
}

impl Received {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of text"))
    }

    /// Checks the status; the message shows the whole answer.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self}");
        self
    }

    /// Checks that it is a problem of this kind, with every member that the contract promises, and gives its body.
    #[track_caller]
    pub fn expect_problem(self, status: u16, slug: &str) -> Value {
        let received = self.expect(status);
        let json = received.json();
        assert_eq!(received.header("content-type"), "application/problem+json", "{received}");
        assert_eq!(json["type"], format!("urn:problem-type:{slug}"), "{received}");
        assert_eq!(json["status"], status, "{received}");
        assert_eq!(json["error"], json["detail"], "{received}");
        assert!(json["title"].is_string() && json["detail"].is_string(), "{received}");
        assert_eq!(json["requestId"], received.header("x-request-id"), "{received}");
        assert_eq!(status == 503, received.headers.contains_key(header::RETRY_AFTER), "{received}");
        json
    }

    /// Checks that it is an `invalid-request` that blames exactly these pointers, in any order.
    #[track_caller]
    pub fn expect_invalid(self, pointers: &[&str]) {
        let json = self.expect_problem(400, "invalid-request");
        let errors = json["errors"].as_array().cloned().unwrap_or_default();
        let mut blamed: Vec<&str> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
        let mut expected = pointers.to_vec();
        blamed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(blamed, expected, "{json}");
    }
}

impl std::fmt::Display for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// Serves `router` as a peer on a free port, for as long as the test runs; its address.
///
/// # Panics
/// If there is no free port.
pub async fn stub_peer(router: axum::Router) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    tokio::spawn(async move { axum::serve(listener, router).await });
    Url::parse(&format!("http://{address}")).expect("an address is a URL")
}

/// The address of a peer that is not there: a port that was free a moment ago.
///
/// # Panics
/// If there is no free port.
pub async fn dead_peer() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    Url::parse(&format!("http://{address}")).expect("an address is a URL")
}

/// Checks that it is an `invalid-request` that blames exactly these parameters of the path, the query or the header.
///
/// # Panics
/// If it is another answer, or blames others.
#[track_caller]
pub fn expect_bad(received: Received, parameters: &[&str]) {
    let json = received.expect_problem(400, "invalid-request");
    let errors = json["errors"].as_array().cloned().unwrap_or_default();
    let blamed: Vec<&str> = errors.iter().filter_map(|error| error["parameter"].as_str()).collect();
    assert_eq!(blamed, parameters, "{json}");
}

/// The path and query of the next page; empty if there is none.
///
/// # Panics
/// If there is a `Link` that leads to no next page.
#[track_caller]
pub fn next_page(list: &Received) -> String {
    let link = list.header("link");
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    assert!(target.is_some() || link.is_empty(), "{link} is no link to a next page");
    target.unwrap_or_default().to_owned()
}

/// The seed of random tests: `TEST_SEED` in the environment, if that is a number, to repeat a failure or to look elsewhere.
pub fn seed() -> u64 {
    const USUAL: u64 = 42;
    env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(USUAL)
}

/// Checks that the committed file is the app's OpenAPI document, pretty printed, so that a change of the API is a diff.
/// With `UPDATE_OPENAPI=1` in the environment the file is written instead.
///
/// # Panics
/// If it is another, or has references to nowhere.
#[track_caller]
pub fn check_openapi(app: &App, committed: &Path) {
    let document = serde_json::to_value(app.document()).expect("a document is JSON");
    check_references(&document, &document);
    let served = app.document().to_pretty_json().expect("a document is JSON") + "\n";
    if env::var_os("UPDATE_OPENAPI").is_some_and(|value| value == "1") {
        fs::write(committed, served).expect("a file that can be written");
        return;
    }
    let kept = fs::read_to_string(committed).unwrap_or_default();
    let differing = (1..).zip(served.lines()).find(|&(number, line)| kept.lines().nth(number - 1) != Some(line));
    assert!(
        kept == served,
        "{} is not what is served, from here on: {differing:?}. If the change is meant, `make openapi` writes the file \
         (UPDATE_OPENAPI=1 with this test)",
        committed.display()
    );
}

/// Every `$ref` below `value` points into `document`.
#[track_caller]
fn check_references(document: &Value, value: &Value) {
    if let Some(reference) = value["$ref"].as_str() {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(target.is_some(), "{reference} is not in the document");
    }
    let members = value.as_object().into_iter().flat_map(|object| object.values());
    let items = value.as_array().into_iter().flatten();
    members.chain(items).for_each(|inner| check_references(document, inner));
}
