//! A small HTTP client, whose failures show the whole answer.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// How long any answer may take: longer than any limit of the services, so that their own answer comes first.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What every client here has.
pub(crate) fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().timeout(TIMEOUT)
}

/// Every request has a connection of its own: none is sent into one that a killed process has left behind.
pub(crate) fn client() -> Result<reqwest::Client, String> {
    builder()
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|error| format!("cannot set up an HTTP client: {}", chain(&error)))
}

/// A request to be sent.
#[must_use]
pub struct Sending {
    request: reqwest::RequestBuilder,
    what: String,
}

impl Sending {
    pub(crate) fn new(http: &reqwest::Client, method: &str, url: String) -> Self {
        let what = format!("{method} {url}");
        let method = Method::from_bytes(method.as_bytes()).expect("tests use methods that there are");
        Self { request: http.request(method, url), what }
    }

    /// With one more header.
    pub fn header(self, name: &str, value: &str) -> Self {
        Self { request: self.request.header(name, value), what: self.what }
    }

    /// With a JSON body.
    pub fn json(self, json: &Value) -> Self {
        Self { request: self.request.json(json), what: self.what }
    }

    /// Sends it and waits for the whole answer, if one comes.
    ///
    /// # Errors
    /// If none comes: why.
    pub async fn try_send(self) -> Result<Received, String> {
        let failed = |error: reqwest::Error| format!("{}: {}", self.what, chain(&error));
        let response = self.request.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.map_err(failed)?;
        Ok(Received { status, headers, text, asked: self.what.clone() })
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Panics
    /// If none comes.
    pub async fn send(self) -> Received {
        self.try_send().await.unwrap_or_else(|reason| panic!("{reason}"))
    }
}

/// An answer that has come, whole.
#[derive(Clone, Debug)]
pub struct Received {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
    asked: String,
}

impl Received {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks the status; the message shows the whole answer.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks that it is a problem of this kind, and gives its body.
    ///
    /// # Panics
    /// If it is another, or none.
    #[track_caller]
    pub fn expect_problem(self, status: u16, slug: &str) -> Value {
        let received = self.expect(status);
        let json = received.json();
        assert_eq!(json["type"], format!("urn:problem-type:{slug}"), "{received}");
        assert_eq!(received.header("content-type"), "application/problem+json", "{received}");
        assert_eq!(status == 503, !received.header("retry-after").is_empty(), "{received}");
        json
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer to {}: {} {:?} {}", self.asked, self.status, self.headers, self.text)
    }
}

/// An error and its causes: reqwest's own text leaves out the one that matters.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
