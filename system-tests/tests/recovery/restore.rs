//! The server and its data are destroyed, and restored to a moment with the commands of docs/operations.md.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sqlx::{PgConnection, query_scalar};
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{ORDERS, System, eventually, order};
use testing::postgres::{Durability, Server};

use crate::clients::Clients;

/// More than the clients order.
const STOCK: i64 = 1_000_000;

#[tokio::test]
async fn restores_every_order_confirmed_before_the_moment() {
    let Some(mut server) = Server::start(Durability::Full) else { return };
    let [archive, back_up, restore] = &commands()[..] else { panic!("the page has three blocks of commands") };
    let databases = Databases::create(&server).await;
    server.run("mkdir archive", &[]);
    server.run(archive, &[("ARCHIVE", &path(&server, "archive"))]);
    server.restart_with(&[]);

    let start = async || System::start_as(|launch| databases.configure(launch)).await;
    let system = start().await.unwrap_or_else(|reason| panic!("{reason}"));
    system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    system.add_product("Lamp", 19.99, STOCK).await;
    let clients = Clients::start(&system, "restore");
    let place_more = async || {
        let before = clients.confirmed().len();
        assert!(eventually(true, async || clients.confirmed().len() > before + 50).await, "orders are placed");
    };
    place_more().await;
    server.run(back_up, &[("BACKUP", &path(&server, "backup"))]);
    place_more().await;

    let kept = clients.confirmed();
    let mut database = databases.connect(ORDERS).await.expect("it answers");
    let moment: String = query_scalar("select clock_timestamp()::text").fetch_one(&mut database).await.expect("a time");
    place_more().await;
    let all = clients.stop().await;
    archive_the_rest(&mut database).await;
    server.kill();
    drop(system);
    fs::remove_dir_all(server.folder().join("data")).expect("the data of the server that was killed");

    let files = ["archive", "backup"].map(|name| path(&server, name));
    server.run(restore, &[("ARCHIVE", &files[0]), ("BACKUP", &files[1]), ("MOMENT", &moment)]);
    server.restart();
    let system = start().await.unwrap_or_else(|reason| panic!("{reason}"));
    let id = |order: &Value| order["id"].as_str().expect("an id").to_owned();
    for order in kept.values() {
        let read = system.orders.get(&format!("/orders/{}", id(order))).await;
        assert_eq!(read.expect(200).json(), *order, "an order from before the moment is kept");
    }
    let snapshot = async || DatabaseSnapshot::read_from(&databases).await.expect("the databases answer");
    let violations = async || snapshot().await.violations(&[(1, STOCK)].into());
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
    let restored = snapshot().await.orders.len();
    println!("restore: {} orders before the moment, {restored} restored, {} in all", kept.len(), all.len());
    assert!(kept.len() <= restored && restored < all.len(), "the server was restored to the moment");

    // A client repeats all its requests with their keys: those that are kept are not placed again, the others are.
    for (key, before) in &all {
        let request = system.orders.request("POST", "/orders").header("idempotency-key", key);
        let answer = request.json(&order(1, 1, 1)).send().await.expect(201).json();
        assert!(!kept.contains_key(key) || id(&answer) == id(before), "{key}: {answer} was {before}");
    }
    assert_eq!(snapshot().await.orders.len(), all.len());
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
    drop(system);
}

/// Returns the blocks of commands in the section about backups.
fn commands() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = fs::read_to_string(page).expect("the page");
    let section = page.split("\n## ").find(|section| section.starts_with("Back up and restore")).expect("a section");
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned());
    blocks.collect()
}

fn path(server: &Server, name: &str) -> String {
    server.folder().join(name).display().to_string()
}

/// Waits until the log so far is in the archive. Otherwise `archive_timeout` decides when it gets there.
async fn archive_the_rest(database: &mut PgConnection) {
    let switch = "select pg_walfile_name(pg_switch_wal())";
    let file: String = query_scalar(switch).fetch_one(&mut *database).await.expect("a file of the log");
    let archived = "select coalesce(last_archived_wal >= $1, false) from pg_stat_archiver";
    for _ in 0..1000 {
        if query_scalar(archived).bind(&file).fetch_one(&mut *database).await.expect("an answer") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{file} is not archived");
}
