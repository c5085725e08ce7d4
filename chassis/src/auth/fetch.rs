//! Fetches the keys of an issuer over HTTP or HTTPS, with the certificate authorities of the system.
//!
//! This is the only call to the outside. The client of the peers has no TLS, so this is another one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use url::Url;

use super::keys::KeySet;
use crate::problem::chain;

/// Maximum bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Fetches the keys of one issuer.
pub(super) struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
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
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs); // none: then no TLS connection works
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("cannot set up TLS for the keys of the issuer: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
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

    /// Returns the body of a response, which must be 200 and not too large. A redirect is not followed.
    async fn get(&self, url: &Url) -> Result<Bytes, String> {
        let uri = url.as_str().parse::<Uri>().map_err(|error| error.to_string())?;
        let response = self.client.get(uri).await.map_err(|error| chain(&error))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(Collected::to_bytes).map_err(|error| error.to_string())
    }
}
