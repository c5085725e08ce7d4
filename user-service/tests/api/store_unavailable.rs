//! A store that does not answer.

use std::sync::Arc;

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use serde_json::json;
use shared::Id;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use testing::{Client, postgres};
use user_service::store::{PostgresStore, Row, StoreError, UserStore};
use user_service::user::{Draft, User};

use crate::support::{add, service_over, settings};

const CAUSE: &str = "no route to 10.0.0.7";

/// A store that is not there.
struct Away;

fn away<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable(CAUSE.to_owned()))
}

#[async_trait]
impl UserStore for Away {
    async fn insert(&self, _: Draft, _: Timestamp) -> Result<Row, StoreError> {
        away()
    }

    async fn by_id(&self, _: Id) -> Result<Option<Row>, StoreError> {
        away()
    }

    async fn by_ids(&self, _: &[Id]) -> Result<Vec<Row>, StoreError> {
        away()
    }

    async fn by_username(&self, _: &str) -> Result<Option<Row>, StoreError> {
        away()
    }

    async fn page(&self, _: Page<Id>) -> Result<Rows<Row>, StoreError> {
        away()
    }

    async fn replace(&self, _: i64, _: User) -> Result<Option<Row>, StoreError> {
        away()
    }

    async fn remove(&self, _: Id, _: i64) -> Result<bool, StoreError> {
        away()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        away()
    }
}

fn service() -> Client {
    service_over(Arc::new(Away), &settings())
}

#[tokio::test]
async fn every_call_says_that_the_store_is_away_and_not_why() {
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
        let answer = request.send().await;
        assert!(!answer.to_string().contains(CAUSE), "{answer}");
        answer.expect_problem(503, "store-unavailable");
    }
}

#[tokio::test]
async fn the_service_is_alive_but_not_ready() {
    let client = service();
    client.get("/livez").await.expect(200);
    let answer = client.get("/readyz").await;
    assert!(!answer.to_string().contains(CAUSE), "{answer}");
    assert_eq!(answer.expect_problem(503, "store-unavailable")["reasons"], json!(["the store does not answer"]));
}

/// Lets nobody into the database any more and sends away whoever is there, or lets everybody in again.
async fn allow_connections(database: &PgConnectOptions, allowed: bool) {
    let name = database.get_database().expect("a database");
    let mut admin = database.clone().database("postgres").connect().await.expect("a server that is there");
    let alter = format!("alter database {name} allow_connections {allowed}");
    sqlx::query(AssertSqlSafe(alter)).execute(&mut admin).await.expect("a superuser may");
    let end = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = $1 and not $2";
    sqlx::query(end).bind(name).bind(allowed).execute(&mut admin).await.expect("a superuser may");
}

#[tokio::test]
async fn a_database_that_comes_back_is_used_again() {
    let Some(database) = postgres::database().await else { return };
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let client = service_over(Arc::new(store), &settings());
    let ada = add(&client, "Ada").await;
    for _ in 0..3 {
        client.get("/readyz").await.expect(200);
        allow_connections(&database, false).await;
        client.get("/users/1").await.expect_problem(503, "store-unavailable");
        client.post("/users", json!({"name": "Bob"})).await.expect_problem(503, "store-unavailable");
        client.get("/readyz").await.expect_problem(503, "store-unavailable");
        client.get("/livez").await.expect(200);
        allow_connections(&database, true).await;
        assert_eq!(client.get("/users").await.expect(200).json(), json!([ada]));
    }
}

/// Nobody knows that it was made, so its client is told so. Made again it would be another's: a name taken, a user gone.
#[tokio::test]
async fn a_change_whose_answer_is_lost_is_made_once() {
    let Some(database) = postgres::database().await else { return };
    let (database, wire) = postgres::behind_a_faulty_connection(&database).await;
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let client = service_over(Arc::new(store), &settings());
    add(&client, "Ada").await;
    for (method, path) in [("POST", "/users"), ("PATCH", "/users/1"), ("DELETE", "/users/1")] {
        wire.lose_an_answer();
        let change = client.request(method, path).json(&json!({"name": "Bob"})).send().await;
        change.expect_problem(503, "store-unavailable");
        assert!(wire.has_lost_it(), "{method}");
    }
    let users = client.get("/users").await.expect(200).json();
    assert!(users.as_array().is_some_and(|users| users.len() == 1 && users[0]["id"] == 2), "{users}");
}
