//! What an order costs PostgreSQL, in figures that do not depend on time. A change that makes an order dearer fails here.

use serde_json::json;
use sqlx::{Executor, query_as};
use system_tests::durable::Durable;
use system_tests::{ORDERS, PRODUCTS, eventually, seed};

const COUNTED: u32 = 200;
/// Above this share of the committed figures the test fails. Versions of PostgreSQL differ slightly.
const TOLERANCE: f64 = 1.1;

/// The cost of an order that is placed alone, of two lines and without a key, summed over both databases. A write to a table or to
/// an index is one record of the write-ahead log (WAL), so an index that is added shows in the records.
#[derive(Debug)]
struct Cost {
    statements: f64,
    wal_records: f64,
    wal_bytes: f64,
    /// Blocks of tables and indexes that are read or written, from the cache or the disk.
    buffers: f64,
}

/// The committed figures, of PostgreSQL 15. Lower them when an order becomes cheaper.
const COMMITTED: Cost = Cost { statements: 5.0, wal_records: 12.0, wal_bytes: 1360.0, buffers: 29.0 };

#[tokio::test]
async fn costs_no_more_statements_writes_and_bytes_than_committed() {
    // The reconciler would add its statements.
    let Some(mut durable) = Durable::start(seed(), |launch| launch.env("RECONCILE_SECONDS", 3600)).await else {
        return;
    };
    // Without full pages, the bytes do not depend on the last checkpoint.
    let settings = ["shared_preload_libraries=pg_stat_statements", "full_page_writes=off"];
    durable.postgres.restart_with(&settings);
    for service in [PRODUCTS, ORDERS] {
        let mut database = durable.database(service).await.expect("the database answers");
        database.execute("create extension pg_stat_statements").await.expect("it is installed with PostgreSQL");
    }
    let system = &durable.system;
    let place = async || {
        let line = |id| json!({"productId": id, "quantity": 1});
        system.orders.post("/orders", json!({"userId": 1, "products": [line(1), line(2)]})).await
    };
    let user = async || system.users.post("/users", json!({"name": "Eve"})).await.status;
    assert_eq!(eventually(201, user).await, 201);
    for name in ["Lamp", "Desk"] {
        system.add_product(name, 19.99, 1_000_000).await;
    }
    // Every connection has its statements and plans after a while.
    for _ in 0..COUNTED {
        place().await.expect(201);
    }
    let mut database = durable.database(ORDERS).await.expect("the database answers");
    database.execute("select pg_stat_statements_reset()").await.expect("the extension");
    for _ in 0..COUNTED {
        place().await.expect(201);
    }
    let sql = "select sum(calls)::float8, sum(wal_records)::float8, sum(wal_bytes)::float8,
        sum(shared_blks_hit + shared_blks_read)::float8
        from pg_stat_statements join pg_database on pg_database.oid = dbid
        where query ilike any (array['%orders%', '%intents%', '%products%', '%reservations%'])";
    let (calls, records, bytes, blocks): (f64, f64, f64, f64) =
        query_as(sql).fetch_one(&mut database).await.expect("statistics");
    let per_order = |sum: f64| sum / f64::from(COUNTED);
    let cost = Cost {
        statements: per_order(calls),
        wal_records: per_order(records),
        wal_bytes: per_order(bytes),
        buffers: per_order(blocks),
    };
    println!("{cost:?}");
    for (what, measured, committed) in [
        ("statements", cost.statements, COMMITTED.statements),
        ("WAL records", cost.wal_records, COMMITTED.wal_records),
        ("WAL bytes", cost.wal_bytes, COMMITTED.wal_bytes),
        ("buffers", cost.buffers, COMMITTED.buffers),
    ] {
        assert!(measured <= committed * TOLERANCE, "{measured} {what} per order, not {committed}");
        assert!(measured * TOLERANCE >= committed, "only {measured} {what} per order: lower the committed figure");
    }
}
