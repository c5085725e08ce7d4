//! The store: users by id and by their unique names.
//!
//! The trait and its comments are the contract. `contract` has the same as test cases, and runs them against both stores.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::Storage;
use jiff::Timestamp;
use shared::Id;

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
use crate::password::PasswordHash;
use crate::user::{CreateUser, UserRecord};

/// Users by id, and by the username and e-mail, which are unique. Each call is one atomic step.
#[async_trait]
pub trait UserStore: Send + Sync {
    /// Adds a user and assigns the next id. It is higher than every earlier id, those of removed users included.
    ///
    /// Fails if another user has the username or the e-mail, compared by [`crate::user::case_fold`]. If both are taken, the
    /// error is [`StoreError::UsernameTaken`].
    async fn insert(
        &self,
        user: CreateUser,
        password: Option<PasswordHash>,
        created_at: Timestamp,
    ) -> Result<Entity<UserRecord>, StoreError>;

    /// Returns the user with this id.
    async fn by_id(&self, id: Id) -> Result<Option<Entity<UserRecord>>, StoreError>;

    /// Returns the users with these ids, each once, by ascending id. Unknown ids are left out.
    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<UserRecord>>, StoreError>;

    /// Returns the user with this username, compared by [`crate::user::case_fold`].
    async fn by_username(&self, username: &str) -> Result<Option<Entity<UserRecord>>, StoreError>;

    /// Returns the user with this e-mail, compared in the same way.
    async fn by_email(&self, email: &str) -> Result<Option<Entity<UserRecord>>, StoreError>;

    /// Returns a page of all users by ascending id. The cost does not depend on the position of the page.
    async fn page(&self, page: Page<Id>) -> Result<Rows<Entity<UserRecord>>, StoreError>;

    /// Replaces the record with the id of `record`, if it is at `expected_version`.
    ///
    /// `None` if it does not exist or has another version. Fails like [`UserStore::insert`] if a name is taken. Names that the
    /// user gives up are free again.
    async fn replace(
        &self,
        expected_version: i64,
        record: UserRecord,
    ) -> Result<Option<Entity<UserRecord>>, StoreError>;

    /// Removes the user with this id, if it is at `expected_version`, and frees its names. Returns whether it was removed.
    async fn remove(&self, id: Id, expected_version: i64) -> Result<bool, StoreError>;

    /// Checks that the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Why a call to the store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another user has this username. Nothing changed.
    #[error("the username is taken")]
    UsernameTaken,
    /// Another user has this e-mail. Nothing changed.
    #[error("the e-mail is taken")]
    EmailTaken,
    /// The store did not answer. Nothing changed.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The store did not answer after a change. The change may or may not have been made.
    #[error("the store does not answer, and the change may have been made: {0}")]
    OutcomeUnknown(String),
}

/// Returns the store and its storage: the database of these settings, or memory if they name none. `seed` applies only to a
/// store in memory.
///
/// # Errors
/// If `DATABASE_URL` is invalid.
pub async fn open(settings: &DatabaseSettings, seed: bool) -> Result<(Arc<dyn UserStore>, Storage), String> {
    let Some(url) = settings.url()? else { return Ok((memory(seed).await?, Storage::Memory)) };
    let store = PostgresStore::new(&url, settings);
    let storage = store.storage();
    Ok((Arc::new(store), storage))
}

/// Returns a store in memory. With `seed`, it has the users of the tutorial.
///
/// # Errors
/// If a user cannot be added.
pub async fn memory(seed: bool) -> Result<Arc<dyn UserStore>, String> {
    let store = MemoryStore::default();
    for name in ["John Doe", "Jane Smith"].into_iter().filter(|_| seed) {
        store.insert(CreateUser::named(name), None, chassis::now()).await.map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(store))
}
