//! Users in memory, for as long as the process lives.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chassis::page::{Page, Rows};
use jiff::Timestamp;
use shared::Id;
use shared::users;

use super::{StoreError, UserStore};
use crate::user::{Draft, User, fold};

/// The store in memory. A row is shared with whoever reads it and replaced, never edited.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few map look-ups at a time and never across an await. Nothing under it can panic half-way through a
    /// change, so a poisoned lock is taken all the same.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    users: BTreeMap<Id, Arc<User>>,
    /// By folded name.
    usernames: HashMap<String, Id>,
    /// By folded address.
    emails: HashMap<String, Id>,
    last_id: i64,
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
    /// Refuses if another user than `id` has one of these names.
    fn check_free(&self, id: Option<Id>, username: Option<&str>, email: Option<&str>) -> Result<(), StoreError> {
        let is_anothers = |names: &HashMap<String, Id>, name: &str| names.get(name).is_some_and(|&o| Some(o) != id);
        if username.is_some_and(|name| is_anothers(&self.usernames, name)) {
            return Err(StoreError::UsernameTaken);
        }
        if email.is_some_and(|email| is_anothers(&self.emails, email)) {
            return Err(StoreError::EmailTaken);
        }
        Ok(())
    }

    fn put(&mut self, user: User) -> Result<Arc<User>, StoreError> {
        let id = user.public.id;
        let (username, email) = (user.public.username.as_deref().map(fold), user.public.email.as_deref().map(fold));
        self.check_free(Some(id), username.as_deref(), email.as_deref())?;
        self.take_out(id);
        self.usernames.extend(username.map(|name| (name, id)));
        self.emails.extend(email.map(|email| (email, id)));
        let user = Arc::new(user);
        self.users.insert(id, Arc::clone(&user));
        Ok(user)
    }

    fn take_out(&mut self, id: Id) {
        let Some(user) = self.users.remove(&id) else { return };
        if let Some(name) = &user.public.username {
            self.usernames.remove(&fold(name));
        }
        if let Some(email) = &user.public.email {
            self.emails.remove(&fold(email));
        }
    }

    fn is_at(&self, id: Id, version: i64) -> bool {
        self.users.get(&id).is_some_and(|user| user.version == version)
    }
}

#[async_trait]
impl UserStore for MemoryStore {
    async fn insert(&self, draft: Draft, created_at: Timestamp) -> Result<Arc<User>, StoreError> {
        let mut tables = self.write();
        let next = tables.last_id + 1;
        let id = Id::new(next).ok_or_else(|| StoreError::Unavailable("out of ids".to_owned()))?;
        let Draft { name, username, email, password } = draft;
        let public = users::User { id, name, username, email, created_at };
        let user = tables.put(User { public, password, version: 1 })?;
        tables.last_id = next;
        Ok(user)
    }

    async fn by_id(&self, id: Id) -> Result<Option<Arc<User>>, StoreError> {
        Ok(self.read().users.get(&id).cloned())
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<User>>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let tables = self.read();
        Ok(ids.iter().filter_map(|id| tables.users.get(id).cloned()).collect())
    }

    async fn by_username(&self, username: &str) -> Result<Option<Arc<User>>, StoreError> {
        let username = fold(username);
        let tables = self.read();
        Ok(tables.usernames.get(&username).and_then(|id| tables.users.get(id)).cloned())
    }

    async fn page(&self, page: Page<Id>) -> Result<Rows<Arc<User>>, StoreError> {
        let from = page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let tables = self.read();
        let rows = tables.users.range((from, Bound::Unbounded)).map(|(_, user)| Arc::clone(user));
        Ok(Rows::cut(rows, page.limit))
    }

    async fn replace(&self, version: i64, user: User) -> Result<Option<Arc<User>>, StoreError> {
        let mut tables = self.write();
        if !tables.is_at(user.public.id, version) {
            return Ok(None);
        }
        tables.put(user).map(Some)
    }

    async fn remove(&self, id: Id, version: i64) -> Result<bool, StoreError> {
        let mut tables = self.write();
        let there = tables.is_at(id, version);
        if there {
            tables.take_out(id);
        }
        Ok(there)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
