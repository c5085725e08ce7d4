//! The contract of [`ProductStore`] as test cases, one function for each sentence. They run against both stores.

mod products;
mod reservations;

use shared::products::Line;
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;
use uuid::Uuid;

use self::products::*;
use self::reservations::*;
use super::*;

testing::store_contract! {
    memory: (Arc::new(MemoryStore::default()) as Store);
    postgres: postgres;
    assigns_rising_ids_and_never_reuses_one
    returns_the_whole_list_page_by_page
    finds_products_by_a_part_of_the_name
    replaces_and_removes_only_the_expected_version
    updates_only_the_given_members_at_any_version
    reads_back_what_was_written
    reserves_all_lines_or_none
    leaves_the_id_free_after_a_rejection
    returns_the_first_result_for_a_repeated_reservation
    rejects_other_lines_under_a_reserved_id
    returns_released_units_once
    rejects_every_reservation_after_a_release
    does_not_return_units_to_a_removed_product
    sells_the_last_unit_to_one_of_twenty_buyers
    reserves_once_for_concurrent_requests_of_one_order
    ends_released_when_reserve_and_release_race
    conserves_units_under_random_concurrent_steps
    reserves_a_batch_as_one_request_after_the_other
    releases_a_batch_as_one_request_after_the_other
}

type Store = Arc<dyn ProductStore>;

async fn postgres(database: PgConnectOptions) -> Store {
    Arc::new(PostgresStore::open(&database, &generous_timeouts()).await.expect("a database"))
}

/// Adds a product that costs 19.99, and returns its id.
async fn add(store: &Store, name: &str, stock: i64) -> Id {
    let product = CreateProduct { name: name.to_owned(), price: Money::from_cents(1999).unwrap(), stock };
    store.insert(product, Timestamp::UNIX_EPOCH).await.unwrap().product.id
}

async fn record(store: &Store, id: Id) -> ProductRecord {
    ProductRecord::clone(&store.by_id(id).await.unwrap().expect("the product exists"))
}

async fn stock(store: &Store, id: Id) -> i64 {
    record(store, id).await.product.stock
}

fn order(n: u128) -> OrderId {
    OrderId(Uuid::from_u128(n))
}

fn lines(lines: &[(Id, u32)]) -> ReservationLines {
    let lines = lines.iter().map(|&(product_id, quantity)| Line { product_id, quantity });
    ReservationLines::new(lines.collect()).unwrap()
}

fn unknown_product() -> Id {
    Id::new(999).unwrap()
}
