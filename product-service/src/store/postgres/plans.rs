//! Among a million products and reservations, no statement reads more than what it is for: every one that the contract has
//! the store send, and those inside of the functions too.

use std::cell::Cell;

use shared::products::Line;
use testing::postgres::{database, fill, generous_timeouts};
use testing::{Plans, with_logged_plans};

use super::*;
use crate::reservation::Lines;
use crate::store::contract;

const ROWS: u32 = 1_000_000;

#[tokio::test]
async fn no_statement_reads_much_of_a_million_products() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_connections: 1, ..generous_timeouts() };
    let store = PostgresStore::open(&with_logged_plans(&database), &settings).await.unwrap();
    fill(&database, include_str!("../../../tests/many.sql"), ROWS).await;
    let mut plans = Plans::of(&database, &store.pool).await;
    let id = |number: i64| Id::new(number).unwrap();
    let called = Cell::new(0);
    let other = || id(1 + called.replace(called.get() + 1) * 7919 % i64::from(ROWS)); // here and there, none twice

    plans.expect(&["products_key"], 10, async || assert!(store.by_id(other()).await.unwrap().is_some())).await;
    let hundred = async || assert_eq!(store.by_ids(&[0; 100].map(|_| other())).await.unwrap().len(), 100);
    plans.expect(&["products_key"], 500, hundred).await;
    // No index has parts of two characters: whoever looks for one that hardly any name has, looks at all of them.
    for (after, part, index, most) in [
        (0, None, "products_key", 150),
        (500_000, None, "products_key", 150),
        (999_800, None, "products_key", 150),
        (500_000, Some("desk "), "products_key", 1_500), // an eighth of all: the first that come along are a page
        (500_000, Some("vase c4ca"), "products_by_part_of_name", 1_000),
        (500_000, Some("c4ca42"), "products_by_part_of_name", 1_000),
    ] {
        let page = Page { after: Id::new(after), limit: 100 };
        plans.expect(&[index], most, async || drop(store.page(page, part).await.unwrap())).await;
    }
    let insert = async || {
        let new = NewProduct { name: "Lamp".to_owned(), price: Money::default(), stock: 0 };
        store.insert(new, chassis::now()).await.unwrap();
    };
    plans.expect(&[], 50, insert).await;
    let replace = async || {
        let product = Product::clone(&*store.by_id(other()).await.unwrap().unwrap());
        let next = Product { version: product.version + 1, ..product };
        assert!(store.replace(product.version, next).await.unwrap().is_some());
    };
    plans.expect(&["products_key"], 50, replace).await;
    let change = ProductChange { name: None, price: None, stock: Some(7) };
    let change = async || assert!(store.change(other(), &change).await.unwrap().is_some());
    plans.expect(&["products_key"], 50, change).await;
    let remove = async || {
        let product = store.by_id(other()).await.unwrap().unwrap();
        assert!(store.remove(product.public.id, Some(product.version)).await.unwrap());
    };
    plans.expect(&["products_key"], 50, remove).await;
    let remove_any = async || assert!(store.remove(other(), None).await.unwrap());
    plans.expect(&["products_key"], 50, remove_any).await;

    let taken = Cell::new(Uuid::nil());
    let take = async || {
        taken.set(Uuid::now_v7());
        let lines = Lines::new([3, 1, 2].map(|_| Line { product_id: other(), quantity: 1 }).to_vec()).unwrap();
        assert!(matches!(store.take(OrderId(taken.get()), &lines).await.unwrap(), ReservationOutcome::Created(_)));
    };
    let both = ["products_key", "reservations_key"];
    plans.expect(&both, 1_500, take).await; // the functions too are read, once for a connection
    let take_and_release = async || {
        take().await;
        store.release(OrderId(taken.get())).await.unwrap();
        assert!(store.reservation(OrderId(taken.get())).await.unwrap().is_some());
    };
    plans.expect(&both, 1_500, take_and_release).await;
    plans.expect(&["reservations_key"], 50, async || store.release(OrderId(Uuid::now_v7())).await.unwrap()).await;

    let batch = async || {
        let wanted = || Lines::new([2, 1].map(|_| Line { product_id: other(), quantity: 1 }).to_vec()).unwrap();
        let takes: Vec<_> = [(); 100]
            .map(|()| ReservationRequest { order_id: OrderId(Uuid::now_v7()), lines: wanted() })
            .into_iter()
            .collect();
        let taken = store.take_each(&takes).await.unwrap();
        assert!(taken.iter().all(|taken| matches!(taken, Ok(ReservationOutcome::Created(_)))));
        store.release_each(&takes.iter().map(|take| take.order_id).collect::<Vec<_>>()).await.unwrap();
    };
    plans.expect(&both, 10_000, batch).await;

    contract::every_case(with_logged_plans).await;
    plans.expect_no_other_statement().await;
}
