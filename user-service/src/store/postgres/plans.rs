//! Among a million users, no statement reads more than what it is for: every one that the contract has the store send.

use std::cell::Cell;

use testing::postgres::{database, fill, generous_timeouts};
use testing::{Plans, with_logged_plans};

use super::*;
use crate::store::contract;

const ROWS: u32 = 1_000_000;

#[tokio::test]
async fn no_statement_reads_much_of_a_million_users() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_connections: 1, ..generous_timeouts() };
    let store = PostgresStore::open(&with_logged_plans(&database), &settings).await.unwrap();
    fill(&database, include_str!("../../../tests/many.sql"), ROWS).await;
    let id = |number: i64| Id::new(number).unwrap();
    let somebody = store.by_id(id(500_001)).await.unwrap().unwrap().user().public;
    let mut plans = Plans::of(&database, &store.pool).await;
    let called = Cell::new(0);
    let other = || id(1 + called.replace(called.get() + 1) * 7919 % i64::from(ROWS)); // here and there, none twice

    plans.expect(&["users_pkey"], 10, async || assert!(store.by_id(other()).await.unwrap().is_some())).await;
    let hundred = async || assert_eq!(store.by_ids(&[0; 100].map(|_| other())).await.unwrap().len(), 100);
    plans.expect(&["users_pkey"], 500, hundred).await;
    for after in [None, Some(id(500_000)), Some(id(999_800))] {
        let page = async || assert!(store.page(Page { after, limit: 100 }).await.unwrap().more);
        plans.expect(&["users_pkey"], 150, page).await;
    }
    let username = somebody.username.as_deref().unwrap();
    let named = async || assert!(store.by_username(username).await.unwrap().is_some());
    plans.expect(&["users_username_unique"], 10, named).await;

    let insert = async |email: Option<String>| {
        let username = Some(format!("another {}", other()));
        store.insert(Draft { name: String::new(), username, email, password: None }, chassis::now()).await.err()
    };
    plans.expect(&[], 50, async || assert_eq!(insert(None).await, None)).await;
    let refused = async || assert_eq!(insert(somebody.email.clone()).await, Some(StoreError::EmailTaken));
    plans.expect(&["users_username_unique"], 50, refused).await;
    let replace = async || {
        let user = store.by_id(other()).await.unwrap().unwrap().user();
        assert!(store.replace(user.version, User { version: user.version + 1, ..user }).await.unwrap().is_some());
    };
    plans.expect(&["users_pkey"], 50, replace).await;
    let remove = async || {
        let user = store.by_id(other()).await.unwrap().unwrap();
        assert!(store.remove(user.id, user.version()).await.unwrap());
    };
    plans.expect(&["users_pkey"], 50, remove).await;

    contract::every_case(with_logged_plans).await;
    plans.expect_no_other_statement().await;
}
