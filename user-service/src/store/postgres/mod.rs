//! Users in PostgreSQL. Each step is one statement.
//!
//! A read is repeated if its connection breaks. A write is repeated only if the database has certainly not executed it.
//! Otherwise the second try could fail because the first one took the name.

#[cfg(test)]
mod plans;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::{Failure, Pool, Storage};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use shared::Id;
use shared::users::User;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, Error, FromRow, Row};

use super::{StoreError, UserStore};
use crate::SERVICE;
use crate::password::PasswordHash;
use crate::user::{CreateUser, UserRecord, case_fold};

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

/// The store in PostgreSQL. Several replicas of the service may share one database.
pub struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Returns the store in the database at `url`. Its calls fail until the database is open.
    pub fn new(url: &PgConnectOptions, settings: &DatabaseSettings) -> Self {
        Self { pool: Pool::new(SERVICE, url, settings, &MIGRATIONS) }
    }

    /// Opens the database at `url`, then returns the store.
    ///
    /// # Errors
    /// If the database does not answer for 30 s, refuses access, or cannot be migrated.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        let store = Self::new(url, settings);
        store.pool.open().await?;
        Ok(store)
    }

    /// Returns the database of this store.
    pub fn storage(&self) -> Storage {
        Storage::Postgres(self.pool.clone())
    }

    /// Returns the reason why a write failed.
    ///
    /// If username and e-mail are both taken, PostgreSQL may report either. Then the error is always `UsernameTaken`.
    async fn to_store_error(&self, error: Error, id: Option<Id>, username: Option<&str>) -> StoreError {
        match StoreError::from(error) {
            StoreError::EmailTaken => match self.is_taken(username, id).await {
                Ok(false) => StoreError::EmailTaken,
                Ok(true) => StoreError::UsernameTaken,
                Err(error) => error.into(),
            },
            error => error,
        }
    }

    /// Returns the user for which `condition` holds with this name, folded.
    async fn by_name(
        &self,
        step: &'static str,
        condition: &'static str,
        name: &str,
    ) -> Result<Option<Entity<UserRecord>>, StoreError> {
        if name.contains('\0') {
            return Ok(None); // no name contains NUL, and PostgreSQL rejects it in a parameter
        }
        let name = case_fold(name);
        let by_name = || sqlx::query_as(select(condition)).bind(&name).fetch_optional(&self.pool);
        Ok(self.pool.retry_read(step, by_name).await?.map(Entity::new))
    }

    /// Returns whether another user than `id` has this folded username.
    async fn is_taken(&self, username: Option<&str>, id: Option<Id>) -> Result<bool, Error> {
        const SQL: &str = "select exists (select from users where folded_username = $1 and id is distinct from $2)";
        let select = || sqlx::query_scalar(SQL).bind(username).bind(id.map(Id::get)).fetch_one(&self.pool);
        self.pool.retry_read("is_taken", select).await
    }
}

#[async_trait]
impl UserStore for PostgresStore {
    async fn insert(
        &self,
        user: CreateUser,
        password: Option<PasswordHash>,
        created_at: Timestamp,
    ) -> Result<Entity<UserRecord>, StoreError> {
        const SQL: &str = r"
            insert into users
                (name, username, folded_username, email, folded_email, password_hash, created_at, version)
            values ($1, $2, $3, $4, $5, $6, $7, 1)
            returning id";
        let username = user.username.as_deref().map(case_fold);
        let email = user.email.as_deref().map(case_fold);
        let hash = password.as_ref().map(PasswordHash::expose);
        let insert = || sqlx::query_scalar(SQL).bind(&user.name).bind(&user.username).bind(&username);
        let insert = || insert().bind(&user.email).bind(&email).bind(hash);
        let insert = || insert().bind(created_at.to_sqlx()).fetch_one(&self.pool);
        match self.pool.retry_if_not_executed("insert", insert).await {
            Ok(id) => Ok(Entity::new(user.into_record(to_id(id)?, password, created_at))),
            Err(error) => Err(self.to_store_error(error, None, username.as_deref()).await),
        }
    }

    async fn by_id(&self, id: Id) -> Result<Option<Entity<UserRecord>>, StoreError> {
        let by_id = || sqlx::query_as(select("where id = $1")).bind(id.get()).fetch_optional(&self.pool);
        Ok(self.pool.retry_read("by_id", by_id).await?.map(Entity::new))
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<UserRecord>>, StoreError> {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let by_ids = || sqlx::query_as(select("where id = any ($1) order by id")).bind(&ids).fetch_all(&self.pool);
        Ok(self.pool.retry_read("by_ids", by_ids).await?.into_iter().map(Entity::new).collect())
    }

    async fn by_username(&self, username: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        self.by_name("by_username", "where folded_username = $1", username).await
    }

    async fn by_email(&self, email: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        self.by_name("by_email", "where folded_email = $1", email).await
    }

    async fn page(&self, page: Page<Id>) -> Result<Rows<Entity<UserRecord>>, StoreError> {
        let after = page.after.map_or(0, Id::get);
        // One more row than the page has shows whether more follow.
        let limit = i64::try_from(page.limit).map_or(i64::MAX, |limit| limit.saturating_add(1));
        let select = || sqlx::query_as(select("where id > $1 order by id limit $2")).bind(after).bind(limit);
        let found = self.pool.retry_read("page", || select().fetch_all(&self.pool)).await?;
        Ok(Rows::cut(found.into_iter().map(Entity::new), page.limit))
    }

    async fn replace(
        &self,
        expected_version: i64,
        record: UserRecord,
    ) -> Result<Option<Entity<UserRecord>>, StoreError> {
        const SQL: &str = r"
            update users
            set name = $3, username = $4, folded_username = $5, email = $6, folded_email = $7, password_hash = $8,
                created_at = $9, version = $10
            where id = $1 and version = $2";
        let user = &record.user;
        let username = user.username.as_deref().map(case_fold);
        let email = user.email.as_deref().map(case_fold);
        let hash = record.password.as_ref().map(PasswordHash::expose);
        let replace = || sqlx::query(SQL).bind(user.id.get()).bind(expected_version);
        let replace = || replace().bind(&user.name).bind(&user.username).bind(&username);
        let replace = || replace().bind(&user.email).bind(&email).bind(hash);
        let replace = || replace().bind(user.created_at.to_sqlx()).bind(record.version).execute(&self.pool);
        match self.pool.retry_if_not_executed("replace", replace).await {
            Ok(done) => Ok((done.rows_affected() == 1).then(|| Entity::new(record))),
            Err(error) => Err(self.to_store_error(error, Some(user.id), username.as_deref()).await),
        }
    }

    async fn remove(&self, id: Id, expected_version: i64) -> Result<bool, StoreError> {
        const SQL: &str = "delete from users where id = $1 and version = $2";
        let remove = || sqlx::query(SQL).bind(id.get()).bind(expected_version).execute(&self.pool);
        Ok(self.pool.retry_if_not_executed("remove", remove).await?.rows_affected() == 1)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

/// Returns the statement that reads the users for which `condition` holds.
///
/// It names the columns, because a prepared `select *` would fail when a newer replica adds a column.
fn select(condition: &'static str) -> AssertSqlSafe<String> {
    const COLUMNS: &str = "id, name, username, email, password_hash, version, created_at";
    AssertSqlSafe(format!("select {COLUMNS} from users {condition}")) // both parts are constants
}

impl FromRow<'_, PgRow> for UserRecord {
    fn from_row(row: &PgRow) -> Result<Self, Error> {
        let user = User {
            id: to_id(row.try_get("id")?)?,
            name: row.try_get("name")?,
            username: row.try_get("username")?,
            email: row.try_get("email")?,
            created_at: row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff(),
        };
        let password = row.try_get::<Option<String>, _>("password_hash")?.map(PasswordHash::stored);
        Ok(Self { user, password, version: row.try_get("version")? })
    }
}

/// Returns the id of a row. An error means that the row is damaged, because only this store writes here.
fn to_id(number: i64) -> Result<Id, Error> {
    Id::new(number).ok_or_else(|| Error::Decode("the id of a user is out of range".into()))
}

impl From<Error> for StoreError {
    /// Recognizes the constraints by the names that the migrations give them.
    ///
    /// The text of other errors contains no values of the statement, so no password hash can get into the log.
    fn from(error: Error) -> Self {
        match error.as_database_error().and_then(|error| error.constraint()) {
            Some("users_username_unique") => Self::UsernameTaken,
            Some("users_email_unique") => Self::EmailTaken,
            _ => match Failure::from(&error) {
                Failure::Unavailable(cause) => Self::Unavailable(cause),
                Failure::OutcomeUnknown(cause) => Self::OutcomeUnknown(cause),
            },
        }
    }
}
