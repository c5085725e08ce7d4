//! A client of user-service.

use std::collections::HashSet;

use axum::http::StatusCode;
use chassis::auth::ServiceTokens;
use chassis::client::{Admission, BatchEndpoint, BatchedCalls, Outcome, Peer, PeerError};
use chassis::config::PeerSettings;
use chassis::context::RequestContext;
use serde::Deserialize;
use shared::{Id, MAX_BATCH};
use url::Url;

/// The name of the service, and the audience of tokens for it.
pub const USER_SERVICE: &str = "user-service";

/// A client of user-service.
pub struct Users {
    peer: Peer,
    lookups: BatchedCalls<UserLookup>,
}

impl Users {
    /// Returns a client of the user-service at this address. While sign-in is on, it sends these tokens.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(base: Url, settings: &PeerSettings, tokens: Option<ServiceTokens>) -> Result<Self, PeerError> {
        let peer = Peer::retrying(USER_SERVICE, base, settings)?.with_tokens(tokens);
        Ok(Self { lookups: BatchedCalls::new(&peer, UserLookup(peer.clone())), peer })
    }

    /// Returns the service that this client calls.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Admits one call of [`Self::exists`].
    ///
    /// # Errors
    /// If user-service cannot answer one more in time.
    pub async fn admit(&self, context: &RequestContext) -> Result<Admission, PeerError> {
        self.lookups.admit(context).await
    }

    /// Returns whether the user exists.
    ///
    /// # Errors
    /// If user-service does not give a clear answer.
    pub async fn exists(&self, id: Id, context: &RequestContext, admission: Admission) -> Result<bool, PeerError> {
        self.lookups.submit_admitted(id, context, admission).await
    }
}

/// Looks up whether users exist.
struct UserLookup(Peer);

/// The only member of a user that is read.
#[derive(Deserialize)]
struct FoundUser {
    id: Id,
}

impl BatchEndpoint for UserLookup {
    type Item = Id;
    type Response = bool;

    const NAME: &'static str = "users";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = 4096;

    fn item_bytes(_: &Id) -> usize {
        "9223372036854775807,".len()
    }

    /// Ignores the body of a 200, so any service with this path can replace user-service. A 404 without JSON is not the
    /// service's: a gateway answers so for a service that is down.
    async fn call_one(&self, id: &Id, context: &RequestContext) -> Result<bool, PeerError> {
        let response = self.0.get(&format!("/users/{id}"), context).await?;
        match response.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND if response.is_json() => Ok(false),
            _ => Err(self.0.unexpected(&response, "expected 200, or 404 with JSON")),
        }
    }

    /// A user in the list exists. A user who is missing is looked up alone, because another implementation may not
    /// support `ids` and return a list of other users.
    async fn call_many(
        &self,
        ids: &[(&Id, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<bool>>, PeerError> {
        let list: Vec<String> = ids.iter().map(|(id, _)| id.to_string()).collect();
        let response = self.0.get(&format!("/users?ids={}", list.join(",")), context).await?;
        if response.status != StatusCode::OK {
            return Err(self.0.unexpected(&response, "expected a list of users"));
        }
        let found: Vec<FoundUser> = response.json().map_err(|error| self.0.unexpected(&response, error))?;
        let found: HashSet<Id> = found.into_iter().map(|user| user.id).collect();
        Ok(ids.iter().map(|(id, _)| found.contains(id).then_some(Ok(true))).collect())
    }
}
