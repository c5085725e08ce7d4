//! Fetches the keys of an issuer over HTTP.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use reqwest::redirect;
use serde::Deserialize;
use url::Url;

use super::keys::KeySet;

/// Maximum bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Fetches the keys of one issuer.
pub(super) struct Fetcher {
    client: reqwest::Client,
    issuer: String,
    jwks_url: Option<Url>,
    /// The address of the keys, once it is known. A failed fetch forgets it, unless it is a setting.
    discovered: Mutex<Option<Url>>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Fetcher {
    /// Returns the fetcher for the keys at `jwks_url`, or at the address that the discovery document of the issuer names.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub(super) fn new(issuer: &str, jwks_url: Option<Url>) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot set up the client for the keys of the issuer: {}", chain(&error)))?;
        Ok(Self { client, issuer: issuer.to_owned(), discovered: Mutex::new(jwks_url.clone()), jwks_url })
    }

    /// Returns the keys. The caller limits the time.
    ///
    /// # Errors
    /// If there is no answer with keys that can be used.
    pub(super) async fn fetch(self: Arc<Self>) -> Result<KeySet, String> {
        let known = self.lock().clone();
        self.lock().clone_from(&self.jwks_url);
        let url = match known {
            Some(url) => url,
            None => self.discover().await?,
        };
        let keys = KeySet::from_jwks(&self.get(&url).await?)?;
        *self.lock() = Some(url);
        Ok(keys)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Url>> {
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the address of the keys, from the issuer's document (OpenID Connect Discovery).
    async fn discover(&self) -> Result<Url, String> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| error.to_string())?;
        let document = serde_json::from_slice(&self.get(&url).await?);
        let Discovery { issuer, jwks_uri } = document.map_err(|_| "the answer is no discovery document")?;
        if issuer != self.issuer {
            return Err("the discovery document names another issuer than AUTH_ISSUER".to_owned());
        }
        let jwks_uri = Url::parse(&jwks_uri).map_err(|error| error.to_string())?;
        if url.scheme() == "https" && jwks_uri.scheme() != "https" {
            return Err("the discovery document names an address of keys without TLS".to_owned());
        }
        Ok(jwks_uri)
    }

    /// Returns the body of a response, which must be 200 and not too large.
    async fn get(&self, url: &Url) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() { "the answer took too long".to_owned() } else { chain(&error.without_url()) }
        };
        let mut response = self.client.get(url.clone()).send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Returns an error with its causes, because the text of reqwest's errors leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
