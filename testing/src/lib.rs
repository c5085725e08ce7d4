//! What the tests of several crates share: an in-process client for an [`App`], stub peers, a throw-away PostgreSQL, plan
//! checks, random requests.

mod fuzz;
mod plans;
pub mod postgres;
mod sign_in;
pub mod tokens;
mod wait;

use std::collections::BTreeSet;
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
pub use self::sign_in::TestIssuer;
pub use self::wait::{DEADLINE, eventually, with_timeout};
use chassis::App;

/// Declares every case of a store's contract as a test of each store: in memory, in PostgreSQL, and in PostgreSQL behind PgBouncer.
///
/// The arguments: how to create each store, in memory and from the address of an empty database, then the cases, which are
/// functions that take the store.
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

        mod pgbouncer {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                use super::*;
                let Some(database) = $crate::postgres::database().await else { return };
                if let Some(database) = $crate::postgres::behind_pgbouncer(&database, "") {
                    super::$case(&$postgres(database).await).await;
                }
            })*
        }

        /// Runs all cases over PostgreSQL, one after the other, each with an empty database and these options.
        pub(super) async fn every_case(options: fn(&sqlx::postgres::PgConnectOptions) -> sqlx::postgres::PgConnectOptions) {
            $(if let Some(database) = $crate::postgres::database().await {
                $case(&$postgres(options(&database)).await).await;
            })*
        }
    };
}

/// Returns the calls of an OpenAPI document, such as `GET /users/{id}`.
///
/// # Panics
/// If it is no OpenAPI document.
pub fn documented_calls(document: &Value) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let methods = item.as_object().expect("operations").keys().filter(|key| *key != "servers");
        calls.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    calls
}

/// A client that calls an app in the same process, through the whole pipeline.
#[derive(Clone)]
pub struct Client(App);

/// A request that is not sent yet.
#[must_use]
pub struct Sending {
    app: App,
    request: Request<Body>,
}

/// A response with its whole body.
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
    /// Creates a client of this app.
    pub fn new(app: App) -> Self {
        Self(app)
    }

    /// Starts a request.
    pub fn request(&self, method: &str, path: &str) -> Sending {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = Request::builder().method(method).uri(path).header(header::HOST, "test").body(Body::empty());
        Sending { app: self.0.clone(), request: request.expect("a path") }
    }

    /// Sends `GET path`.
    pub async fn get(&self, path: &str) -> Received {
        self.request("GET", path).send().await
    }

    /// Sends `DELETE path`.
    pub async fn delete(&self, path: &str) -> Received {
        self.request("DELETE", path).send().await
    }

    /// Sends `POST path` with a JSON body.
    pub async fn post(&self, path: &str, json: Value) -> Received {
        self.request("POST", path).json(&json).send().await
    }

    /// Sends `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, json: Value) -> Received {
        self.request("PUT", path).json(&json).send().await
    }

    /// Sends `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, json: Value) -> Received {
        self.request("PATCH", path).json(&json).send().await
    }
}

impl Sending {
    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().append(name, value.parse().expect("a header value"));
        self
    }

    /// Sets the peer of the connection, as the server does.
    pub fn from_peer(mut self, peer: std::net::SocketAddr) -> Self {
        self.request.extensions_mut().insert(peer);
        self
    }

    /// Adds the access token of a caller.
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Removes every header of this name.
    pub fn without(mut self, name: &str) -> Self {
        self.request.headers_mut().remove(name);
        self
    }

    /// Sets a JSON body.
    pub fn json(self, json: &Value) -> Self {
        self.bytes("application/json", json.to_string())
    }

    /// Sets a body of any media type.
    pub fn bytes(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut sending = self.header("content-type", content_type);
        *sending.request.body_mut() = Body::from(body.into());
        sending
    }

    /// Sets a body that may arrive in parts.
    pub fn body(mut self, body: Body) -> Self {
        *self.request.body_mut() = body;
        self
    }

    /// Sends the request and returns the response.
    pub async fn send(self) -> Received {
        let response = self.app.call(self.request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        Received { status: parts.status, headers: parts.headers, body }
    }
}

impl Received {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Returns a header as text; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of text"))
    }

    /// Checks the status; the panic message shows the whole response.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self}");
        self
    }

    /// Checks that the response is a problem of this kind with every member that the contract promises, and returns the body.
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
        let is_temporary = [429, 503].contains(&status);
        assert_eq!(is_temporary, received.headers.contains_key(header::RETRY_AFTER), "{received}");
        json
    }

    /// Checks that the response is an `invalid-request` that names exactly these pointers, in any order.
    #[track_caller]
    pub fn expect_invalid(self, pointers: &[&str]) {
        let json = self.expect_problem(400, "invalid-request");
        let errors = json["errors"].as_array().cloned().unwrap_or_default();
        let mut named: Vec<&str> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
        let mut expected = pointers.to_vec();
        named.sort_unstable();
        expected.sort_unstable();
        assert_eq!(named, expected, "{json}");
    }
}

impl std::fmt::Display for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// Serves `router` as a peer on a free port while the test runs, and returns its address.
///
/// # Panics
/// If there is no free port.
pub async fn stub_peer(router: axum::Router) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    tokio::spawn(async move { axum::serve(listener, router).await });
    Url::parse(&format!("http://{address}")).expect("an address is a URL")
}

/// Returns the address of a peer that is down: a port on which nothing listens.
///
/// # Panics
/// If there is no free port.
pub async fn dead_peer() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    Url::parse(&format!("http://{address}")).expect("an address is a URL")
}

/// Checks that the response is an `invalid-request` that names exactly these parameters of the path, query or header.
///
/// # Panics
/// If the response is another one, or names others.
#[track_caller]
pub fn expect_bad(received: Received, parameters: &[&str]) {
    let json = received.expect_problem(400, "invalid-request");
    let errors = json["errors"].as_array().cloned().unwrap_or_default();
    let named: Vec<&str> = errors.iter().filter_map(|error| error["parameter"].as_str()).collect();
    assert_eq!(named, parameters, "{json}");
}

/// Returns the path and query of the next page; empty if the page is the last one.
///
/// # Panics
/// If there is a `Link` to something else.
#[track_caller]
pub fn next_page(list: &Received) -> String {
    let link = list.header("link");
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    assert!(target.is_some() || link.is_empty(), "{link} does not link to a next page");
    target.unwrap_or_default().to_owned()
}

/// Returns the seed of random tests: `TEST_SEED` from the environment, or a fixed one.
pub fn seed() -> u64 {
    const DEFAULT: u64 = 42;
    env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(DEFAULT)
}

/// Checks that the committed file is the app's OpenAPI document, so that a change of the API is a diff. With `UPDATE_OPENAPI=1`
/// in the environment it writes the file instead.
///
/// # Panics
/// If the file differs, or if a `$ref` has no target.
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
        "{} differs from the served document, first at {differing:?}. If the change is intended, run `make openapi`",
        committed.display()
    );
}

/// Checks that every `$ref` below `value` points into `document`.
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
