//! Users in memory, for as long as the process lives.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use chassis::table::Table;
use hashbrown::HashTable;
use jiff::Timestamp;
use shared::{Id, users};

use super::row::Kept;
use super::{Row, StoreError, UserStore};
use crate::user::{Draft, User, fold};

/// The store in memory. Who reads a row has a copy of it, which is hardly more work than to share it and takes less memory.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few look-ups at a time and never across an await. Nothing under it can panic half-way through a change,
    /// so a poisoned lock is taken all the same.
    tables: RwLock<Tables>,
}

struct Tables {
    users: Table<Kept>,
    usernames: Names,
    emails: Names,
    last_id: u32,
}

/// Who has which name, where no two may have the same. The names themselves are in the rows.
struct Names {
    owners: HashTable<Owner>,
    hasher: RandomState,
    /// The name of a user, folded, if it has one.
    of: fn(&Kept) -> Option<Cow<'_, str>>,
}

/// Who has a name, and its hash: when the table grows, to read and hash the names of half a million rows again would keep
/// everybody waiting for a third of a second.
struct Owner {
    number: u32,
    hash: u32,
}

impl Owner {
    /// As the table wants it: both ends of it are looked at.
    fn spread(hash: u32) -> u64 {
        u64::from(hash) << 32 | u64::from(hash)
    }
}

impl MemoryStore {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Tables {
    fn default() -> Self {
        let (usernames, emails) = (Names::by(Kept::username), Names::by(Kept::email));
        Self { users: Table::default(), usernames, emails, last_id: 0 }
    }
}

impl Tables {
    /// Puts a user in the place of the one of this number, if there is one. Refused if another has one of its names.
    fn put(&mut self, number: u32, kept: Kept) -> Result<(), StoreError> {
        let is_anothers = |names: &Names| names.owner(&self.users, (names.of)(&kept)).is_some_and(|of| of != number);
        if is_anothers(&self.usernames) {
            return Err(StoreError::UsernameTaken);
        }
        if is_anothers(&self.emails) {
            return Err(StoreError::EmailTaken);
        }
        self.take_out(number);
        self.users.put(number.into(), kept);
        self.usernames.add(&self.users, number);
        self.emails.add(&self.users, number);
        Ok(())
    }

    fn take_out(&mut self, number: u32) {
        self.usernames.remove(&self.users, number);
        self.emails.remove(&self.users, number);
        self.users.remove(number.into());
    }

    fn row(&self, id: Id) -> Option<Row> {
        Some(Row { id, kept: self.users.get(id.get())?.clone() })
    }

    /// The number of the user of this id, if it is at this version.
    fn at(&self, id: Id, version: i64) -> Option<u32> {
        let there = self.users.get(id.get()).is_some_and(|user| user.version() == version);
        u32::try_from(id.get()).ok().filter(|_| there)
    }
}

impl Names {
    fn by(of: fn(&Kept) -> Option<Cow<'_, str>>) -> Self {
        Self { owners: HashTable::new(), hasher: RandomState::new(), of }
    }

    fn hash(&self, name: &str) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    /// Who has this name.
    fn owner(&self, users: &Table<Kept>, name: Option<Cow<'_, str>>) -> Option<u32> {
        let hash = self.hash(name.as_ref()?);
        let is = |owner: &Owner| owner.hash == hash && users.get(owner.number.into()).and_then(self.of) == name;
        self.owners.find(Owner::spread(hash), is).map(|owner| owner.number)
    }

    fn add(&mut self, users: &Table<Kept>, number: u32) {
        let Some(name) = users.get(number.into()).and_then(self.of) else { return };
        let hash = self.hash(&name);
        self.owners.insert_unique(Owner::spread(hash), Owner { number, hash }, |owner| Owner::spread(owner.hash));
    }

    fn remove(&mut self, users: &Table<Kept>, number: u32) {
        let Some(name) = users.get(number.into()).and_then(self.of) else { return };
        if let Ok(entry) = self.owners.find_entry(Owner::spread(self.hash(&name)), |owner| owner.number == number) {
            entry.remove();
        }
    }
}

#[async_trait]
impl UserStore for MemoryStore {
    async fn insert(&self, draft: Draft, created_at: Timestamp) -> Result<Row, StoreError> {
        let mut tables = self.write();
        let next = tables.last_id.checked_add(1);
        let id = next.and_then(|next| Some((next, Id::new(next.into())?)));
        let (next, id) = id.ok_or_else(|| StoreError::Unavailable("out of ids".to_owned()))?;
        let Draft { name, username, email, password } = draft;
        let public = users::User { id, name, username, email, created_at };
        let row = Row::from(&User { public, password, version: 1 });
        tables.put(next, row.kept.clone())?;
        tables.last_id = next;
        Ok(row)
    }

    async fn by_id(&self, id: Id) -> Result<Option<Row>, StoreError> {
        Ok(self.read().row(id))
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Row>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let tables = self.read();
        Ok(ids.into_iter().filter_map(|id| tables.row(id)).collect())
    }

    async fn by_username(&self, username: &str) -> Result<Option<Row>, StoreError> {
        let tables = self.read();
        let number = tables.usernames.owner(&tables.users, Some(fold(username))).map(i64::from);
        Ok(number.and_then(Id::new).and_then(|id| tables.row(id)))
    }

    async fn page(&self, page: Page<Id>) -> Result<Rows<Row>, StoreError> {
        let tables = self.read();
        let rows = tables.users.after(page.after.map(Id::get));
        let rows = rows.filter_map(|(number, kept)| Some(Row { id: Id::new(number)?, kept: kept.clone() }));
        Ok(Rows::cut(rows, page.limit))
    }

    async fn replace(&self, version: i64, user: User) -> Result<Option<Row>, StoreError> {
        let row = Row::from(&user);
        let mut tables = self.write();
        let Some(number) = tables.at(row.id, version) else { return Ok(None) };
        tables.put(number, row.kept.clone())?;
        Ok(Some(row))
    }

    async fn remove(&self, id: Id, version: i64) -> Result<bool, StoreError> {
        let mut tables = self.write();
        let number = tables.at(id, version);
        if let Some(number) = number {
            tables.take_out(number);
        }
        Ok(number.is_some())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
