//! Checks the query plans among a million products and reservations. Covers every statement that the contract makes the store
//! send.

use std::cell::Cell;

use shared::products::Line;
use testing::postgres::{database, fill, generous_timeouts};
use testing::{Plans, with_logged_plans};

use super::*;
use crate::reservation::ReservationLines;
use crate::store::contract;

const ROWS: u32 = 1_000_000;

#[tokio::test]
async fn reads_few_of_a_million_products_in_every_statement() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_connections: 1, ..generous_timeouts() };
    let store = PostgresStore::open(&with_logged_plans(&database), &settings).await.unwrap();
    fill(&database, include_str!("../../../tests/many.sql"), ROWS).await;
    let mut plans = Plans::of(&database, &store.pool).await;
    let id = |number: i64| Id::new(number).unwrap();
    let used = Cell::new(0);
    let next_id = || id(1 + used.replace(used.get() + 1) * 7919 % i64::from(ROWS)); // spread over the table, all different

    plans.expect(&["products_pkey"], 10, async || assert!(store.by_id(next_id()).await.unwrap().is_some())).await;
    let hundred = async || assert_eq!(store.by_ids(&[0; 100].map(|_| next_id())).await.unwrap().len(), 100);
    plans.expect(&["products_pkey"], 500, hundred).await;
    // A part of two characters has no trigram, so a search for a rare one reads all names. It is not expected to be fast.
    for (after, part, index, most) in [
        (0, None, "products_pkey", 150),
        (500_000, None, "products_pkey", 150),
        (999_800, None, "products_pkey", 150),
        (500_000, Some("desk "), "products_pkey", 1_500), // an eighth of all products: the next ones fill a page
        (500_000, Some("vase c4ca"), "products_folded_name_trgm", 1_000),
        (500_000, Some("c4ca42"), "products_folded_name_trgm", 1_000),
    ] {
        let page = Page { after: Id::new(after), limit: 100 };
        plans.expect(&[index], most, async || drop(store.page(page, part).await.unwrap())).await;
    }
    let insert = async || {
        let product = CreateProduct { name: "Lamp".to_owned(), price: Money::default(), stock: 0 };
        store.insert(product, chassis::now()).await.unwrap();
    };
    plans.expect(&[], 50, insert).await;
    let replace = async || {
        let mut record = ProductRecord::clone(&store.by_id(next_id()).await.unwrap().unwrap());
        record.version += 1;
        assert!(store.replace(record.version - 1, record).await.unwrap().is_some());
    };
    plans.expect(&["products_pkey"], 50, replace).await;
    let change = UpdateProduct { stock: Some(7), ..UpdateProduct::default() };
    let update = async || assert!(store.update(next_id(), &change).await.unwrap().is_some());
    plans.expect(&["products_pkey"], 50, update).await;
    let remove = async || {
        let record = store.by_id(next_id()).await.unwrap().unwrap();
        assert!(store.remove(record.product.id, Some(record.version)).await.unwrap());
    };
    plans.expect(&["products_pkey"], 50, remove).await;
    let remove_any_version = async || assert!(store.remove(next_id(), None).await.unwrap());
    plans.expect(&["products_pkey"], 50, remove_any_version).await;

    let new_lines = |count: usize| {
        let lines = (0..count).map(|_| Line { product_id: next_id(), quantity: 1 });
        ReservationLines::new(lines.collect()).unwrap()
    };
    let reserved = Cell::new(Uuid::nil());
    let reserve = async || {
        reserved.set(Uuid::now_v7());
        let outcome = store.reserve(OrderId(reserved.get()), &new_lines(3)).await.unwrap();
        assert!(matches!(outcome, ReservationOutcome::Created(_)));
    };
    let both = ["products_pkey", "reservations_pkey"];
    plans.expect(&both, 200, reserve).await;
    let reserve_and_release = async || {
        reserve().await;
        store.release(OrderId(reserved.get())).await.unwrap();
        assert!(store.reservation(OrderId(reserved.get())).await.unwrap().is_some());
    };
    plans.expect(&both, 200, reserve_and_release).await;
    plans.expect(&[], 50, async || store.release(OrderId(Uuid::now_v7())).await.unwrap()).await;

    let batch = async || {
        let request = |()| ReservationRequest { order_id: OrderId(Uuid::now_v7()), lines: new_lines(2) };
        let requests = [(); 100].map(request);
        let outcomes = store.reserve_many(&requests).await.unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(ReservationOutcome::Created(_)))));
        let order_ids: Vec<_> = requests.iter().map(|request| request.order_id).collect();
        store.release_many(&order_ids).await.unwrap();
    };
    plans.expect(&both, 10_000, batch).await;

    contract::every_case(with_logged_plans).await;
    plans.expect_no_other_statement().await;
}
