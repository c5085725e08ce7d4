//! user-service, as far as this service asks it.

use std::collections::HashSet;

use axum::http::StatusCode;
use chassis::client::{BatchEndpoint, BatchedCalls, Outcome, Peer, PeerError};
use chassis::config::PeerSettings;
use chassis::context::RequestContext;
use serde::Deserialize;
use shared::{Id, MAX_BATCH};
use url::Url;

/// A client of user-service.
pub struct Users {
    peer: Peer,
    exist: BatchedCalls<Exist>,
}

impl Users {
    /// The user-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn at(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        let peer = Peer::retrying("user-service", base, settings)?;
        Ok(Self { exist: BatchedCalls::new(&peer, Exist(peer.clone())), peer })
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether this user exists.
    ///
    /// # Errors
    /// If user-service says neither yes nor no.
    pub async fn exists(&self, id: Id, context: &RequestContext) -> Result<bool, PeerError> {
        self.exist.submit(id, context).await
    }
}

/// Does a user exist?
struct Exist(Peer);

/// All that is read of a user.
#[derive(Deserialize)]
struct Found {
    id: Id,
}

impl BatchEndpoint for Exist {
    type Item = Id;
    type Response = bool;

    const NAME: &'static str = "users";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = 4096;

    fn item_bytes(_: &Id) -> usize {
        "9223372036854775807,".len()
    }

    /// Nothing in the answer's body is relied on, so any service that keeps the path can stand in user-service's place.
    async fn call_one(&self, id: &Id, context: &RequestContext) -> Result<bool, PeerError> {
        let answer = self.0.get(&format!("/users/{id}"), context).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.0.unexpected(&answer, "neither a user nor none")),
        }
    }

    /// Who is in the list exists. Who is not is asked for alone, since another service may not know `ids` and answer some
    /// other list.
    async fn call_many(
        &self,
        ids: &[(&Id, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<bool>>, PeerError> {
        let list: Vec<String> = ids.iter().map(|(id, _)| id.to_string()).collect();
        let answer = self.0.get(&format!("/users?ids={}", list.join(",")), context).await?;
        if answer.status != StatusCode::OK {
            return Err(self.0.unexpected(&answer, "no list of users"));
        }
        let found: Vec<Found> = answer.json().map_err(|error| self.0.unexpected(&answer, error))?;
        let found: HashSet<Id> = found.into_iter().map(|user| user.id).collect();
        Ok(ids.iter().map(|(id, _)| found.contains(id).then_some(Ok(true))).collect())
    }
}
