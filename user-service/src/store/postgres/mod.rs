//! Users in PostgreSQL. Each call is one statement, so it is atomic, and no transaction stays open.

#[cfg(test)]
mod plans;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use chassis::postgres::{self, Pool};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use shared::Id;
use shared::users;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Error, query, query_as, query_scalar};

use super::{Row, StoreError, UserStore};
use crate::SERVICE;
use crate::password::PasswordHash;
use crate::user::{Draft, User, fold};

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

const INSERT: &str = "insert into users \
    (name, username, username_folded, email, email_folded, password_hash, created_at, version) \
    values ($1, $2, $3, $4, $5, $6, $7, $8) returning id";

const REPLACE: &str = "update users \
    set name = $1, username = $2, username_folded = $3, email = $4, email_folded = $5, password_hash = $6, \
        created_at = $7, version = $8 \
    where id = $9 and version = $10";

/// The statement that reads whole users.
macro_rules! select {
    ($which:literal) => {
        concat!("select id, name, username, email, password_hash, version, created_at from users ", $which)
    };
}

/// A user as [`select`] reads it.
type Columns = (i64, String, Option<String>, Option<String>, Option<String>, i64, jiff_sqlx::Timestamp);

/// The store in a PostgreSQL database. A read is repeated if its connection breaks. A change is not: nobody knows what
/// became of it, and who repeats it may find it made and take it for another's.
pub struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Over the database at `url`, which is brought to the latest schema.
    ///
    /// # Errors
    /// If it does not answer or cannot be migrated.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        Ok(Self { pool: postgres::open(SERVICE, url, settings, &MIGRATIONS).await? })
    }

    /// What a failed change is told as. If username and e-mail are both taken it is the username, and not whichever
    /// PostgreSQL happened to look at first.
    async fn refusal(&self, error: Error, id: Option<Id>, username: Option<&str>) -> StoreError {
        match StoreError::from(error) {
            StoreError::EmailTaken => match self.is_anothers(id, username).await {
                Ok(false) => StoreError::EmailTaken,
                Ok(true) => StoreError::UsernameTaken,
                Err(error) => error.into(),
            },
            refusal => refusal,
        }
    }

    /// Whether another user than `id` has this folded username.
    async fn is_anothers(&self, id: Option<Id>, username: Option<&str>) -> Result<bool, Error> {
        let sql = "select exists (select from users where username_folded = $1 and id is distinct from $2)";
        self.pool
            .retry_idempotent("is_anothers", || {
                query_scalar(sql).bind(username).bind(id.map(Id::get)).fetch_one(&self.pool)
            })
            .await
    }
}

#[async_trait]
impl UserStore for PostgresStore {
    async fn insert(&self, draft: Draft, created_at: Timestamp) -> Result<Row, StoreError> {
        const FIRST: i64 = 1;
        let Draft { name, username, email, password } = draft;
        let (username_folded, email_folded) = (username.as_deref().map(fold), email.as_deref().map(fold));
        let insert = || {
            let insert = query_scalar(INSERT).bind(&name).bind(&username).bind(&username_folded);
            let insert = insert.bind(&email).bind(&email_folded).bind(password.as_ref().map(PasswordHash::expose));
            insert.bind(created_at.to_sqlx()).bind(FIRST).fetch_one(&self.pool)
        };
        match self.pool.retry_if_not_executed("insert", insert).await {
            Ok(id) => {
                let public = users::User { id: to_id(id)?, name, username, email, created_at };
                Ok(Row::from(&User { public, password, version: FIRST }))
            }
            Err(error) => Err(self.refusal(error, None, username_folded.as_deref()).await),
        }
    }

    async fn by_id(&self, id: Id) -> Result<Option<Row>, StoreError> {
        let row = self
            .pool
            .retry_idempotent("by_id", || query_as(select!("where id = $1")).bind(id.get()).fetch_optional(&self.pool))
            .await?;
        Ok(row.map(to_user).transpose()?)
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Row>, StoreError> {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let select = || query_as(select!("where id = any($1) order by id")).bind(&ids).fetch_all(&self.pool);
        to_users(self.pool.retry_idempotent("by_ids", select).await?)
    }

    async fn by_username(&self, username: &str) -> Result<Option<Row>, StoreError> {
        if username.contains('\0') {
            return Ok(None); // nobody can be called so, and PostgreSQL does not even take the question
        }
        let username = fold(username);
        let select = || query_as(select!("where username_folded = $1")).bind(&username).fetch_optional(&self.pool);
        Ok(self.pool.retry_idempotent("by_username", select).await?.map(to_user).transpose()?)
    }

    async fn page(&self, page: Page<Id>) -> Result<Rows<Row>, StoreError> {
        let after = page.after.map_or(0, Id::get);
        let limit = i64::try_from(page.limit).map_or(i64::MAX, |limit| limit.saturating_add(1)); // do more follow?
        let sql = select!("where id > $1 order by id limit $2");
        let rows =
            self.pool.retry_idempotent("page", || query_as(sql).bind(after).bind(limit).fetch_all(&self.pool)).await?;
        Ok(Rows::cut(to_users(rows)?.into_iter(), page.limit))
    }

    async fn replace(&self, version: i64, user: User) -> Result<Option<Row>, StoreError> {
        let User { public, password, .. } = &user;
        let (username, email) = (public.username.as_deref().map(fold), public.email.as_deref().map(fold));
        let replace = || {
            let replace = query(REPLACE).bind(&public.name).bind(&public.username).bind(&username);
            let replace = replace.bind(&public.email).bind(&email).bind(password.as_ref().map(PasswordHash::expose));
            let replace = replace.bind(public.created_at.to_sqlx()).bind(user.version);
            replace.bind(public.id.get()).bind(version).execute(&self.pool)
        };
        match self.pool.retry_if_not_executed("replace", replace).await {
            Ok(done) => Ok((done.rows_affected() == 1).then(|| Row::from(&user))),
            Err(error) => Err(self.refusal(error, Some(public.id), username.as_deref()).await),
        }
    }

    async fn remove(&self, id: Id, version: i64) -> Result<bool, StoreError> {
        let sql = "delete from users where id = $1 and version = $2";
        let done = self
            .pool
            .retry_if_not_executed("remove", || query(sql).bind(id.get()).bind(version).execute(&self.pool))
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

impl From<Error> for StoreError {
    /// By the names that the migrations give. The text of a failure has no values in it, so no hash of a password.
    fn from(error: Error) -> Self {
        match error.as_database_error().and_then(|error| error.constraint()) {
            Some("users_username_unique") => Self::UsernameTaken,
            Some("users_email_unique") => Self::EmailTaken,
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

fn to_id(number: i64) -> Result<Id, Error> {
    Id::new(number).ok_or_else(|| Error::Decode(format!("{number} is no id").into()))
}

fn to_user((id, name, username, email, password, version, created_at): Columns) -> Result<Row, Error> {
    let public = users::User { id: to_id(id)?, name, username, email, created_at: created_at.to_jiff() };
    Ok(Row::from(&User { public, password: password.map(PasswordHash::stored), version }))
}

fn to_users(rows: Vec<Columns>) -> Result<Vec<Row>, StoreError> {
    Ok(rows.into_iter().map(to_user).collect::<Result<_, _>>()?)
}
