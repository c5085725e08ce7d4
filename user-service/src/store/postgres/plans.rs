//! The plans of all statements of the store, over a million users: no statement may read more rows than it needs.

use std::cell::Cell;

use testing::postgres::{database, fill, generous_timeouts};
use testing::{Plans, with_logged_plans};

use super::*;
use crate::store::contract;

const ROWS: u32 = 1_000_000;

#[tokio::test]
async fn reads_few_of_a_million_users_in_each_statement() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_connections: 1, ..generous_timeouts() };
    let store = PostgresStore::open(&with_logged_plans(&database), &settings).await.unwrap();
    fill(&database, include_str!("../../../tests/many.sql"), ROWS).await;
    let id = |number: i64| Id::new(number).unwrap();
    let known = store.by_id(id(500_001)).await.unwrap().unwrap().user.clone();
    let mut plans = Plans::of(&database, &store.pool).await;
    let called = Cell::new(0);
    let other = || id(1 + called.replace(called.get() + 1) * 7919 % i64::from(ROWS)); // spread out, and none twice

    plans.expect(&["users_pkey"], 10, async || assert!(store.by_id(other()).await.unwrap().is_some())).await;
    let hundred = async || assert_eq!(store.by_ids(&[0; 100].map(|_| other())).await.unwrap().len(), 100);
    plans.expect(&["users_pkey"], 500, hundred).await;
    for after in [None, Some(id(500_000)), Some(id(999_800))] {
        let page = async || assert!(store.page(Page { after, limit: 100 }).await.unwrap().more);
        plans.expect(&["users_pkey"], 150, page).await;
    }
    let username = known.username.as_deref().unwrap();
    let named = async || assert!(store.by_username(username).await.unwrap().is_some());
    plans.expect(&["users_username_unique"], 10, named).await;
    let email = known.email.as_deref().unwrap();
    let reachable = async || assert!(store.by_email(email).await.unwrap().is_some());
    plans.expect(&["users_email_unique"], 10, reachable).await;

    let insert = async |email: Option<String>| {
        let username = Some(format!("another {}", other()));
        store.insert(CreateUser { username, email, ..CreateUser::named("") }, None, chassis::now()).await.err()
    };
    plans.expect(&[], 50, async || assert_eq!(insert(None).await, None)).await;
    let rejected = async || assert_eq!(insert(known.email.clone()).await, Some(StoreError::EmailTaken));
    plans.expect(&["users_username_unique"], 50, rejected).await;
    let replace = async || {
        let mut record = UserRecord::clone(&store.by_id(other()).await.unwrap().unwrap());
        record.version += 1;
        assert!(store.replace(record.version - 1, record).await.unwrap().is_some());
    };
    plans.expect(&["users_pkey"], 50, replace).await;
    let remove = async || {
        let record = store.by_id(other()).await.unwrap().unwrap();
        assert!(store.remove(record.user.id, record.version).await.unwrap());
    };
    plans.expect(&["users_pkey"], 50, remove).await;

    contract::every_case(with_logged_plans).await;
    plans.expect_no_other_statement().await;
}
