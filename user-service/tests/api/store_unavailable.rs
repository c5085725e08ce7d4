//! A store that does not answer.

use std::sync::Arc;

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use serde_json::json;
use shared::Id;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use testing::{Client, eventually, postgres};
use user_service::password::PasswordHash;
use user_service::store::{PostgresStore, StoreError, UserStore};
use user_service::user::{CreateUser, UserRecord};

use crate::support::{add, service_over, settings};

const CAUSE: &str = "no route to 10.0.0.7";

/// A store that fails every call.
struct UnavailableStore;

fn unavailable<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable(CAUSE.to_owned()))
}

#[async_trait]
impl UserStore for UnavailableStore {
    async fn insert(
        &self,
        _: CreateUser,
        _: Option<PasswordHash>,
        _: Timestamp,
    ) -> Result<Entity<UserRecord>, StoreError> {
        unavailable()
    }

    async fn by_id(&self, _: Id) -> Result<Option<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn by_ids(&self, _: &[Id]) -> Result<Vec<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn by_username(&self, _: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn by_email(&self, _: &str) -> Result<Option<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn page(&self, _: Page<Id>) -> Result<Rows<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn replace(&self, _: i64, _: UserRecord) -> Result<Option<Entity<UserRecord>>, StoreError> {
        unavailable()
    }

    async fn remove(&self, _: Id, _: i64) -> Result<bool, StoreError> {
        unavailable()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        unavailable()
    }
}

fn service() -> Client {
    service_over(Arc::new(UnavailableStore), &settings())
}

#[tokio::test]
async fn returns_503_without_the_cause_for_every_call() {
    let client = service();
    for request in [
        client.request("GET", "/users"),
        client.request("GET", "/users?ids=1,2"),
        client.request("GET", "/users?username=ada"),
        client.request("GET", "/users/1"),
        client.request("POST", "/users").json(&json!({"name": "Ada"})),
        client.request("PATCH", "/users/1").json(&json!({"name": "Ada"})),
        client.request("DELETE", "/users/1"),
    ] {
        let response = request.send().await;
        assert!(!response.to_string().contains(CAUSE), "{response}");
        response.expect_problem(503, "store-unavailable");
    }
}

#[tokio::test]
async fn stays_alive_but_is_not_ready() {
    let client = service();
    client.get("/livez").await.expect(200);
    let response = client.get("/readyz").await;
    assert!(!response.to_string().contains(CAUSE), "{response}");
    assert_eq!(response.expect_problem(503, "store-unavailable")["reasons"], json!(["the store does not answer"]));
}

/// Closes the database to new connections and ends the open ones, or opens it again.
async fn allow_connections(database: &PgConnectOptions, allowed: bool) {
    let name = database.get_database().expect("a database");
    let mut admin = database.clone().database("postgres").connect().await.expect("a running server");
    let alter = format!("alter database {name} allow_connections {allowed}");
    sqlx::query(AssertSqlSafe(alter)).execute(&mut admin).await.expect("the rights of a superuser");
    let end = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = $1 and not $2";
    sqlx::query(end).bind(name).bind(allowed).execute(&mut admin).await.expect("the rights of a superuser");
}

#[tokio::test]
async fn uses_a_database_again_when_it_comes_back() {
    let Some(database) = postgres::database().await else { return };
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let client = service_over(Arc::new(store), &settings());
    let ada = add(&client, "Ada").await;
    for _ in 0..3 {
        eventually("readiness", async || client.get("/readyz").await.status == 200).await;
        allow_connections(&database, false).await;
        client.get("/users/1").await.expect_problem(503, "store-unavailable");
        client.post("/users", json!({"name": "Bob"})).await.expect_problem(503, "store-unavailable");
        eventually("unreadiness", async || client.get("/readyz").await.status == 503).await;
        client.get("/readyz").await.expect_problem(503, "store-unavailable");
        client.get("/livez").await.expect(200);
        allow_connections(&database, true).await;
        assert_eq!(client.get("/users").await.expect(200).json(), json!([ada]));
    }
}

#[tokio::test]
async fn is_not_ready_over_a_read_only_database_and_says_so() {
    let Some(database) = postgres::database().await else { return };
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let client = service_over(Arc::new(store), &settings());
    let name = database.get_database().expect("a database");
    let mut admin = database.clone().database("postgres").connect().await.expect("a running server");
    let alter = format!("alter database {name} set default_transaction_read_only = on");
    sqlx::query(AssertSqlSafe(alter)).execute(&mut admin).await.expect("the rights of a superuser");
    client.get("/users").await.expect(200);
    client.post("/users", json!({"name": "Ada"})).await.expect_problem(503, "store-unavailable");
    let unready = client.get("/readyz").await.expect_problem(503, "store-unavailable");
    assert_eq!(unready["reasons"], json!(["the database is read-only"]));
    let reset = format!("alter database {name} reset all");
    sqlx::query(AssertSqlSafe(reset)).execute(&mut admin).await.expect("the rights of a superuser");
    client.post("/users", json!({"name": "Ada"})).await.expect(201);
    eventually("readiness", async || client.get("/readyz").await.status == 200).await; // a report is up to half a second old
}

/// The service cannot know the outcome, so the client gets `timed-out`. A second try could add a user twice or return a 404.
#[tokio::test]
async fn makes_a_change_once_when_its_response_is_lost() {
    let Some(database) = postgres::database().await else { return };
    let (database, wire) = postgres::behind_a_faulty_connection(&database).await;
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let client = service_over(Arc::new(store), &settings());
    add(&client, "Ada").await;
    for (method, path) in [("POST", "/users"), ("PATCH", "/users/1"), ("DELETE", "/users/1")] {
        wire.lose_an_answer();
        let change = client.request(method, path).json(&json!({"name": "Bob"})).send().await;
        change.expect_problem(503, "timed-out");
        assert!(wire.has_lost_it(), "{method}");
    }
    let users = client.get("/users").await.expect(200).json();
    assert!(users.as_array().is_some_and(|users| users.len() == 1 && users[0]["id"] == 2), "{users}");
}
