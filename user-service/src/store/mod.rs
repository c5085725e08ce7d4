//! What is kept. The trait and its comments are the contract; `contract` is the same, to be run against each store.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;
mod row;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::Id;

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
pub use self::row::Row;
use crate::user::{Draft, User};

/// What the start-up line says of the store in memory.
pub const MEMORY: &str = "memory (a restart forgets everything)";
/// What it says of the store in PostgreSQL.
pub const POSTGRES: &str = "PostgreSQL";

/// Users by id, and by the names that are unique. Each call is one atomic step.
#[async_trait]
pub trait UserStore: Send + Sync {
    /// Adds a user under the next id, which is higher than any before, also than those that were removed. Refused if its
    /// username or e-mail is another's, compared by [`crate::user::fold`]; then no id is shown and nothing has changed.
    async fn insert(&self, draft: Draft, created_at: Timestamp) -> Result<Row, StoreError>;

    /// The user of this id.
    async fn by_id(&self, id: Id) -> Result<Option<Row>, StoreError>;

    /// The users of these ids that there are, each once, by ascending id.
    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Row>, StoreError>;

    /// The user of this username, compared by [`crate::user::fold`].
    async fn by_username(&self, username: &str) -> Result<Option<Row>, StoreError>;

    /// A page of all users by ascending id. It costs the same wherever it is in the list.
    async fn page(&self, page: Page<Id>) -> Result<Rows<Row>, StoreError>;

    /// Puts `user` in the place of the one of its id, if that is still at `version`; `None` if it has changed since or is
    /// gone. Names are unique as in [`UserStore::insert`], and those it no longer has are free.
    async fn replace(&self, version: i64, user: User) -> Result<Option<Row>, StoreError>;

    /// Removes the user of this id, if it is still at `version`, and frees its names. Whether it did.
    async fn remove(&self, id: Id, version: i64) -> Result<bool, StoreError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Why a store refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another user has this username.
    #[error("the username is taken")]
    UsernameTaken,
    /// Another user has this e-mail.
    #[error("the e-mail is taken")]
    EmailTaken,
    /// The store does not answer. What became of the call is unknown.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
}

/// Opens the store that the settings ask for, and what the start-up line says of it. Only the one in memory is seeded: a
/// database keeps what it has.
///
/// # Errors
/// If the database does not answer or cannot be migrated.
pub async fn open(settings: &DatabaseSettings, seed: bool) -> Result<(Arc<dyn UserStore>, &'static str), String> {
    match settings.url()? {
        Some(url) => Ok((Arc::new(PostgresStore::open(&url, settings).await?), POSTGRES)),
        None => Ok((memory(seed).await?, MEMORY)),
    }
}

/// A store in memory, with the users of the tutorial in it if `seed`.
///
/// # Errors
/// If the users cannot be added.
pub async fn memory(seed: bool) -> Result<Arc<dyn UserStore>, String> {
    let store = MemoryStore::default();
    for name in ["John Doe", "Jane Smith"].into_iter().filter(|_| seed) {
        let draft = Draft { name: name.to_owned(), username: None, email: None, password: None };
        store.insert(draft, chassis::now()).await.map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(store))
}
