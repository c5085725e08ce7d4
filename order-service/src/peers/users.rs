//! user-service, as far as this service asks it.

use axum::http::StatusCode;
use chassis::client::{Peer, PeerError};
use chassis::config::PeerSettings;
use chassis::context::Context;
use shared::Id;
use url::Url;

/// A client of user-service.
#[derive(Clone, Debug)]
pub struct Users(Peer);

impl Users {
    /// The user-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn at(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        Peer::retrying("user-service", base, settings).map(Self)
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.0
    }

    /// Whether this user exists. Nothing in the answer's body is relied on, so any service that keeps the path can
    /// stand in user-service's place.
    ///
    /// # Errors
    /// If user-service says neither yes nor no.
    pub async fn exists(&self, id: Id, context: &Context) -> Result<bool, PeerError> {
        let answer = self.0.get(&format!("/users/{id}"), context).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.0.unexpected(&answer, "neither a user nor none")),
        }
    }
}
