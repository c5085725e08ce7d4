//! Lists: plain arrays, oldest first, in pages that lose nothing while rows come and go.

use proptest::prelude::*;
use proptest::test_runner::Config;
use testing::Client;
use tokio::runtime;

use crate::support::{add, add_many, all_users, ids, next_page, seeded, service, sign_up};

#[tokio::test]
async fn lists_users_as_a_plain_array_oldest_first() {
    let client = seeded().await;
    sign_up(&client, "ada").await;
    let list = client.get("/users").await.expect(200);
    assert_eq!(list.header("content-type"), "application/json");
    assert_eq!(ids(&list.json()), [1, 2, 3]);
    for user in list.json().as_array().unwrap() {
        assert_eq!(client.get(&format!("/users/{}", user["id"])).await.json(), *user);
    }
    assert_eq!(client.get("/api/users").await.json(), list.json());
    assert_eq!(service().await.get("/users").await.expect(200).body, "[]");
}

#[tokio::test]
async fn returns_100_rows_a_page_by_default() {
    let client = service().await;
    add_many(&client, 100).await;
    let all = client.get("/users").await.expect(200);
    assert_eq!((ids(&all.json()).len(), next_page(&all).as_str()), (100, ""));
    add(&client, "101").await;
    let page = client.get("/users").await.expect(200);
    assert_eq!((ids(&page.json()).len(), next_page(&page).as_str()), (100, "/users?after=100"));
    let all = client.get("/users?limit=1000").await.expect(200);
    assert_eq!((ids(&all.json()).len(), next_page(&all).as_str()), (101, ""));
}

#[tokio::test]
async fn links_to_a_next_page_exactly_while_more_follows() {
    let client = service().await;
    add_many(&client, 4).await;
    client.delete("/users/2").await.expect(204);
    for (query, found, next) in [
        ("limit=1", vec![1], "/users?limit=1&after=1"),
        ("limit=2", vec![1, 3], "/users?limit=2&after=3"),
        ("limit=3", vec![1, 3, 4], ""),
        ("limit=4", vec![1, 3, 4], ""),
        ("limit=2&after=1", vec![3, 4], ""),
        ("limit=1&after=1", vec![3], "/users?limit=1&after=3"),
        ("after=2&limit=1", vec![3], "/users?limit=1&after=3"),
        ("after=4", vec![], ""),
        ("after=9223372036854775807", vec![], ""),
    ] {
        let page = client.get(&format!("/users?{query}")).await.expect(200);
        assert_eq!((ids(&page.json()), next_page(&page).as_str()), (found, next), "{query}");
    }
}

#[tokio::test]
async fn returns_each_user_once_in_both_path_families() {
    let client = service().await;
    add_many(&client, 10).await;
    for root in ["/users", "/api/users"] {
        for limit in 1..=11 {
            let (mut seen, mut path) = (Vec::new(), format!("{root}?limit={limit}"));
            while !path.is_empty() {
                assert!(path.starts_with(&format!("{root}?")), "{path} is in the other family");
                let page = client.get(&path).await.expect(200);
                assert!(ids(&page.json()).len() <= limit, "{page}");
                seen.extend(ids(&page.json()));
                assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
                path = next_page(&page);
            }
            assert_eq!(seen, (1..=10).collect::<Vec<_>>(), "{root}, pages of {limit}");
        }
    }
}

#[tokio::test]
async fn keeps_the_other_parameters_in_the_link() {
    let client = service().await;
    add_many(&client, 3).await;
    let page = client.get("/users?after=1&limit=%31&").await.expect(200);
    assert_eq!(next_page(&page), "/users?limit=1&after=2");
}

#[tokio::test]
async fn returns_each_existing_user_of_the_given_ids_once() {
    let client = service().await;
    add_many(&client, 130).await;
    client.delete("/users/3").await.expect(204);
    for (requested, found) in
        [("5", vec![5]), ("5,3,1,999,5", vec![1, 5]), ("3", vec![]), ("9223372036854775807", vec![])]
    {
        let response = client.get(&format!("/users?ids={requested}")).await.expect(200);
        assert_eq!((ids(&response.json()), next_page(&response).as_str()), (found, ""), "{requested}");
    }
    let requested: Vec<i64> = (1..=130).filter(|&id| id != 3).take(128).collect();
    let query = requested.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let response = client.get(&format!("/api/users?ids={query}")).await.expect(200);
    assert_eq!(
        (ids(&response.json()), next_page(&response).as_str()),
        (requested, ""),
        "more ids than the default limit of a page"
    );
}

/// A change of the list between two pages.
#[derive(Clone, Debug)]
enum Change {
    Add,
    /// Removes the user at this index of the list, if there is one.
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![Just(Change::Add), (0..30_usize).prop_map(Change::Remove)]
}

proptest! {
    #![proptest_config(Config { cases: 100, failure_persistence: None, ..Config::default() })]

    /// A user that exists from the first to the last page is returned exactly once.
    #[test]
    fn returns_each_row_once_while_rows_come_and_go(
        users in 0..30_usize,
        limit in 1..12_usize,
        changes in prop::collection::vec(prop::collection::vec(change(), 0..4), 0..20),
    ) {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(follow_links(users, limit, changes));
    }
}

async fn follow_links(users: usize, limit: usize, changes: Vec<Vec<Change>>) {
    let client = service().await;
    add_many(&client, users).await;
    let (mut seen, mut path) = (Vec::new(), format!("/users?limit={limit}"));
    let mut changes = changes.into_iter();
    while !path.is_empty() {
        let page = client.get(&path).await.expect(200);
        let rows = ids(&page.json());
        assert!(rows.len() <= limit, "{page}");
        let existing = ids(&all_users(&client).await);
        assert!(rows.iter().all(|id| existing.contains(id)), "{rows:?} are not all in {existing:?}");
        seen.extend(rows);
        assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
        path = next_page(&page);
        if path.is_empty() {
            break;
        }
        for change in changes.next().unwrap_or_default() {
            apply(&client, change).await;
        }
    }
    let missed: Vec<i64> = ids(&all_users(&client).await).into_iter().filter(|id| !seen.contains(id)).collect();
    assert!(missed.is_empty(), "missed {missed:?}, saw {seen:?}");
}

async fn apply(client: &Client, change: Change) {
    match change {
        Change::Add => drop(add(client, "new").await),
        Change::Remove(index) => {
            let existing = ids(&all_users(client).await);
            if let Some(id) = existing.get(index) {
                client.delete(&format!("/users/{id}")).await.expect(204);
            }
        }
    }
}
