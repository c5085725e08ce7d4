//! The plans of all statements over a million orders: none reads more rows than it needs.
//!
//! At the end the contract runs, so a statement without an expectation here is found.

use std::cell::Cell;

use chassis::http::extract::Header;
use futures_util::future::join_all;
use testing::postgres::{database, fill, generous_timeouts};
use testing::{Plans, with_logged_plans};

use super::*;
use crate::idempotency::{Fingerprint, Key};
use crate::store::contract;

const ROWS: u32 = 1_000_000;

#[tokio::test]
async fn reads_few_rows_of_a_million_orders_in_every_statement() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_connections: 1, ..generous_timeouts() };
    let store = PostgresStore::open(&with_logged_plans(&database), &settings).await.unwrap();
    fill(&database, include_str!("../../../tests/many.sql"), ROWS).await;
    let nth = async |n: i64| -> OrderId {
        let nth = query_scalar("select id from orders where status is not null order by id offset $1 limit 1");
        OrderId(nth.bind(n).fetch_one(&store.pool).await.unwrap())
    };
    let (middle, late) = (nth(500_000).await, nth(999_900).await);
    let mut plans = Plans::of(&database, &store.pool).await;

    // Few orders wait for the reconciler, and these statements read all of them.
    let claim = async || drop(store.claim(Duration::ZERO, Duration::ZERO, 100).await.unwrap());
    let attempts = ["idempotency_keys_pkey", "intents_pkey", "orders_pkey", "releases_pkey"];
    let indexes = [&attempts[..], &["orders_unfinished", "releases_by_claim"]].concat();
    plans.expect(&indexes, 1_000, claim).await;
    let unsettled = async || assert!(store.unsettled().await.unwrap() > 0);
    plans.expect(&["releases_by_claim"], 1_000, unsettled).await;

    let users = [None, Some(1), Some(2), Some(7920)].map(|user| user.and_then(Id::new));
    let statuses = [None, Some(OrderStatus::Pending), Some(OrderStatus::Delivered), Some(OrderStatus::Shipped)];
    for (user_id, status) in users.into_iter().flat_map(|user| statuses.map(|status| (user, status))) {
        let (index, most) = match (user_id, status) {
            (None, None) => ("orders_pkey", 150),
            (None, Some(_)) => ("orders_visible_by_status", 150),
            (Some(_), Some(_)) => ("orders_by_user_and_status", 150),
            (Some(_), None) => ("orders_by_user_and_status", 150 * OrderStatus::ALL.len() as u64), // a page of each status
        };
        for after in [None, Some(middle), Some(late)] {
            let page = async || drop(store.page(Page { after, limit: 100 }, Filter { user_id, status }).await.unwrap());
            plans.expect(&[index], most, page).await;
        }
    }
    plans.expect(&["orders_pkey"], 10, async || assert!(store.by_id(middle).await.unwrap().is_some())).await;

    let last = Cell::new(middle);
    let intent = || {
        last.set(OrderId(Uuid::now_v7()));
        Intent { id: last.get(), user_id: Id::new(1).unwrap(), key: None, created_at: chassis::now() }
    };
    let begin = async || assert_eq!(store.begin(intent()).await.unwrap(), BeginOutcome::Started);
    plans.expect(&[], 50, begin).await;
    let key = Some((Key::parse("order-600000").unwrap(), Fingerprint::of(b"{}")));
    let again = async || {
        let begun = store.begin(Intent { key: key.clone(), ..intent() }).await.unwrap();
        assert_eq!(begun, BeginOutcome::KeyMismatch);
    };
    plans.expect(&["idempotency_keys_pkey", "orders_pkey", "releases_pkey"], 50, again).await;
    let live = async || {
        begin().await;
        let id = last.get();
        assert!(store.settle(id, Vec::new(), Money::default()).await.unwrap().is_some());
        assert!(store.step(id, OrderStatus::Pending, State::Cancelling).await.unwrap().is_some());
        store.finish_release(id).await.unwrap();
    };
    plans.expect(&["intents_pkey", "orders_pkey", "orders_visible_by_status", "releases_pkey"], 50, live).await;
    let fail = async || {
        begin().await;
        assert!(store.abort(last.get()).await.unwrap());
        store.finish_release(last.get()).await.unwrap();
    };
    plans.expect(&attempts, 50, fail).await;
    let together = async || {
        let intents = [(); 100].map(|()| intent());
        let ids = intents.each_ref().map(|intent| intent.id);
        join_all(intents.map(|intent| store.begin(intent))).await;
        let settled = join_all(ids[..50].iter().map(|id| store.settle(*id, Vec::new(), Money::default()))).await;
        let aborted = join_all(ids[50..].iter().map(|id| store.abort(*id))).await;
        join_all(ids[50..].iter().map(|id| store.finish_release(*id))).await;
        assert!(
            settled.iter().all(|settled| matches!(settled, Ok(Some(_))))
                && aborted.iter().all(|done| *done == Ok(true))
        );
    };
    plans.expect(&attempts, 5_000, together).await;

    contract::every_case(with_logged_plans).await;
    plans.expect_no_other_statement().await;
}
