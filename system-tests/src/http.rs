//! A small HTTP client. Its failures show the whole response.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// The time limit of a request: longer than any limit of the services, so that their own response comes first.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the settings that all clients share.
pub(crate) fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().timeout(TIMEOUT)
}

/// Returns a client that opens a connection per request: a kept one may end at a process that was killed.
pub(crate) fn client() -> Result<reqwest::Client, String> {
    builder()
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|error| format!("cannot set up an HTTP client: {}", chain(&error)))
}

/// A request to be sent.
#[must_use]
pub struct Request {
    request: reqwest::RequestBuilder,
    line: String,
}

impl Request {
    pub(crate) fn new(http: &reqwest::Client, method: &str, url: String) -> Self {
        let line = format!("{method} {url}");
        let method = Method::from_bytes(method.as_bytes()).expect("tests use valid methods");
        Self { request: http.request(method, url), line }
    }

    /// Adds a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        Self { request: self.request.header(name, value), line: self.line }
    }

    /// Sets a JSON body.
    pub fn json(self, json: &Value) -> Self {
        Self { request: self.request.json(json), line: self.line }
    }

    /// Sends the request and waits for the whole response.
    ///
    /// # Errors
    /// If no response comes: the reason.
    pub async fn try_send(self) -> Result<Response, String> {
        let failed = |error: reqwest::Error| format!("{}: {}", self.line, chain(&error));
        let response = self.request.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.map_err(failed)?;
        Ok(Response { status, headers, text, request_line: self.line.clone() })
    }

    /// Sends the request and waits for the whole response.
    ///
    /// # Panics
    /// If no response comes.
    pub async fn send(self) -> Response {
        self.try_send().await.unwrap_or_else(|reason| panic!("{reason}"))
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
    request_line: String,
}

impl Response {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// If the body is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// Returns a header as text; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks the status. The message shows the whole response.
    ///
    /// # Panics
    /// If the status differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks that the response is a problem of this type, and returns its body.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn expect_problem(self, status: u16, slug: &str) -> Value {
        let response = self.expect(status);
        let json = response.json();
        assert_eq!(json["type"], format!("urn:problem-type:{slug}"), "{response}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{response}");
        assert_eq!(status == 503, !response.header("retry-after").is_empty(), "{response}");
        json
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response to {}: {} {:?} {}", self.request_line, self.status, self.headers, self.text)
    }
}

/// Returns an error with its causes, which reqwest's own text leaves out.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
