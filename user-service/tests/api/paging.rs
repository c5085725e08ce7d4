//! Paging while the list changes, for any changes.

use proptest::prelude::*;
use proptest::test_runner::Config;
use testing::Client;
use tokio::runtime;

use crate::support::{add, add_many, everyone, ids, next_page, service};

/// What happens before the next page is read.
#[derive(Clone, Debug)]
enum Change {
    Add,
    /// Of the users that there are, the one this far into the list.
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![Just(Change::Add), (0..30_usize).prop_map(Change::Remove)]
}

proptest! {
    #![proptest_config(Config { cases: 100, failure_persistence: None, ..Config::default() })]

    /// Nobody who is there from the first page to the last is missed, and nobody is seen twice.
    #[test]
    fn following_the_links_nothing_is_lost_and_nothing_comes_twice(
        users in 0..30_usize,
        limit in 1..12_usize,
        changes in prop::collection::vec(prop::collection::vec(change(), 0..4), 0..20),
    ) {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(walk(users, limit, changes));
    }
}

async fn walk(users: usize, limit: usize, changes: Vec<Vec<Change>>) {
    let client = service().await;
    add_many(&client, users).await;
    let (mut seen, mut path) = (Vec::new(), format!("/users?limit={limit}"));
    let mut changes = changes.into_iter();
    while !path.is_empty() {
        let page = client.get(&path).await.expect(200);
        let rows = ids(&page.json());
        assert!(rows.len() <= limit, "{page}");
        let there = ids(&everyone(&client).await);
        assert!(rows.iter().all(|id| there.contains(id)), "of {there:?} are there {rows:?}");
        seen.extend(rows);
        assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
        path = next_page(&page);
        if path.is_empty() {
            break;
        }
        for change in changes.next().unwrap_or_default() {
            make(&client, change).await;
        }
    }
    let missed: Vec<i64> = ids(&everyone(&client).await).into_iter().filter(|id| !seen.contains(id)).collect();
    assert!(missed.is_empty(), "{missed:?} were missed, {seen:?} seen");
}

async fn make(client: &Client, change: Change) {
    match change {
        Change::Add => drop(add(client, "new").await),
        Change::Remove(index) => {
            let there = ids(&everyone(client).await);
            if let Some(id) = there.get(index) {
                client.delete(&format!("/users/{id}")).await.expect(204);
            }
        }
    }
}
