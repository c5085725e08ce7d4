//! Users in memory. They live as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::Id;

use super::{StoreError, UserStore};
use crate::password::PasswordHash;
use crate::user::{CreateUser, UserRecord, case_fold};

/// The store in memory.
#[derive(Default)]
pub struct MemoryStore {
    /// Locked for a few map look-ups and never across an await. No code can panic in the middle of a change while it holds
    /// the lock. So a poisoned lock is used like any other.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    users: BTreeMap<Id, Entity<UserRecord>>,
    last_id: i64,
    /// The user of each username, in the form of [`case_fold`].
    usernames: HashMap<String, Id>,
    /// The user of each e-mail, in the same form.
    emails: HashMap<String, Id>,
}

impl MemoryStore {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Adds the record, or replaces the one with its id. Fails if another user has its username or its e-mail.
    fn put(&mut self, record: UserRecord) -> Result<Entity<UserRecord>, StoreError> {
        let id = record.user.id;
        let (username, email) = unique_names(&record);
        let is_taken = |names: &HashMap<String, Id>, name: &Option<String>| {
            name.as_ref().and_then(|name| names.get(name)).is_some_and(|owner| *owner != id)
        };
        if is_taken(&self.usernames, &username) {
            return Err(StoreError::UsernameTaken);
        }
        if is_taken(&self.emails, &email) {
            return Err(StoreError::EmailTaken);
        }
        self.remove(id);
        self.usernames.extend(username.map(|username| (username, id)));
        self.emails.extend(email.map(|email| (email, id)));
        let entity = Entity::new(record);
        self.users.insert(id, entity.clone());
        Ok(entity)
    }

    fn remove(&mut self, id: Id) {
        let Some(record) = self.users.remove(&id) else { return };
        let (username, email) = unique_names(&record);
        username.and_then(|username| self.usernames.remove(&username));
        email.and_then(|email| self.emails.remove(&email));
    }

    fn has_version(&self, id: Id, version: i64) -> bool {
        self.users.get(&id).is_some_and(|record| record.version == version)
    }
}

/// Returns the username and the e-mail in the form in which they are unique.
fn unique_names(record: &UserRecord) -> (Option<String>, Option<String>) {
    let fold = |name: &String| case_fold(name).into_owned();
    (record.user.username.as_ref().map(fold), record.user.email.as_ref().map(fold))
}

#[async_trait]
impl UserStore for MemoryStore {
    async fn insert(
        &self,
        user: CreateUser,
        password: Option<PasswordHash>,
        created_at: Timestamp,
    ) -> Result<Entity<UserRecord>, StoreError> {
        let mut tables = self.write();
        let id = tables.last_id.checked_add(1).and_then(Id::new);
        let id = id.ok_or_else(|| StoreError::Unavailable("all ids are used".to_owned()))?;
        let inserted = tables.put(user.into_record(id, password, created_at))?;
        tables.last_id = id.get();
        Ok(inserted)
    }

    async fn by_id(&self, id: Id) -> Result<Option<Entity<UserRecord>>, StoreError> {
        Ok(self.read().users.get(&id).cloned())
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<UserRecord>>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let tables = self.read();
        Ok(ids.iter().filter_map(|id| tables.users.get(id).cloned()).collect())
    }

    async fn by_username(&self, username: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        let username = case_fold(username);
        let tables = self.read();
        let id = tables.usernames.get(username.as_ref());
        Ok(id.and_then(|id| tables.users.get(id)).cloned())
    }

    async fn by_email(&self, email: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        let tables = self.read();
        let id = tables.emails.get(case_fold(email).as_ref());
        Ok(id.and_then(|id| tables.users.get(id)).cloned())
    }

    async fn page(&self, page: Page<Id>) -> Result<Rows<Entity<UserRecord>>, StoreError> {
        let start = page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let tables = self.read();
        let rows = tables.users.range((start, Bound::Unbounded)).map(|(_, record)| record.clone());
        Ok(Rows::cut(rows, page.limit))
    }

    async fn replace(
        &self,
        expected_version: i64,
        record: UserRecord,
    ) -> Result<Option<Entity<UserRecord>>, StoreError> {
        let mut tables = self.write();
        if !tables.has_version(record.user.id, expected_version) {
            return Ok(None);
        }
        tables.put(record).map(Some)
    }

    async fn remove(&self, id: Id, expected_version: i64) -> Result<bool, StoreError> {
        let mut tables = self.write();
        let is_expected = tables.has_version(id, expected_version);
        if is_expected {
            tables.remove(id);
        }
        Ok(is_expected)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
