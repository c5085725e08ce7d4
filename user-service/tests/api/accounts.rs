//! Usernames and e-mails: unique without case, and free again when they are given up.

use serde_json::{Value, json};
use testing::Sending;

use crate::support::{add, everyone, ids, refused, seeded, service, sign_up};

/// Two people with accounts, and what each may not call itself: because it is the other's.
fn clashes() -> [(Value, &'static str); 7] {
    [
        (json!({"username": "ada", "email": "new@example.com"}), "username-taken"),
        (json!({"username": "ADA", "email": "new@example.com"}), "username-taken"),
        (json!({"username": "ångström"}), "username-taken"),
        (json!({"username": "A\u{30a}NGSTRO\u{308}M"}), "username-taken"),
        (json!({"username": "new", "email": "ada@example.com"}), "email-taken"),
        (json!({"username": "new", "email": "Ada@EXAMPLE.com"}), "email-taken"),
        (json!({"name": "new", "email": "ÅNGSTRÖM@example.com"}), "email-taken"),
    ]
}

#[tokio::test]
async fn a_taken_name_is_refused_however_it_is_written() {
    let client = service().await;
    sign_up(&client, "Ada").await;
    sign_up(&client, "Ångström").await;
    add(&client, "somebody").await;
    for (names, slug) in clashes() {
        let register: Sending = client.request("POST", "/users").json(&names);
        refused(&client, register).await.expect_problem(409, slug);
        let rename = client.request("PATCH", "/users/3").json(&names);
        refused(&client, rename).await.expect_problem(409, slug);
    }
    sign_up(&client, "new").await; // a refusal keeps no name
}

#[tokio::test]
async fn the_names_that_people_see_are_nobodys_own() {
    let client = service().await;
    sign_up(&client, "ada").await;
    add(&client, "ada").await;
    add(&client, "ada").await;
}

#[tokio::test]
async fn one_may_rewrite_ones_own_name() {
    let client = service().await;
    sign_up(&client, "ada").await;
    let changed =
        client.patch("/users/1", json!({"username": "ADA", "email": "Ada@Example.com"})).await.expect(200).json();
    assert_eq!((&changed["username"], &changed["email"]), (&json!("ADA"), &json!("Ada@Example.com")));
}

#[tokio::test]
async fn a_name_given_up_is_free_for_others() {
    let client = service().await;
    sign_up(&client, "ada").await;
    client.patch("/users/1", json!({"username": "king"})).await.expect(200);
    client.post("/users", json!({"username": "ada"})).await.expect(201);
    client
        .post("/users", json!({"username": "eve", "email": "ada@example.com"}))
        .await
        .expect_problem(409, "email-taken");
    client.delete("/users/1").await.expect(204);
    client.post("/users", json!({"username": "KING", "email": "ADA@example.com"})).await.expect(201);
}

#[tokio::test]
async fn a_username_is_stored_in_one_form_of_unicode() {
    let client = service().await;
    let account = sign_up(&client, "A\u{30a}ngstro\u{308}m").await;
    assert_eq!(account["username"], "Ångström");
    let longest = "a\u{30a}".repeat(64);
    let account = client.post("/users", json!({"username": longest})).await.expect(201).json();
    assert_eq!(account["username"], "å".repeat(64), "it is counted in the form that is stored");
}

#[tokio::test]
async fn a_user_is_found_by_its_username_without_case() {
    let client = seeded().await;
    sign_up(&client, "Ada").await;
    sign_up(&client, "ångström").await;
    for (query, found) in [
        ("username=Ada", vec![3]),
        ("username=aDA", vec![3]),
        ("username=%C3%85NGSTR%C3%96M", vec![4]),
        ("username=A%CC%8ANGSTRO%CC%88M", vec![4]),
        ("username=ada&ids=1,3", vec![3]),
        ("username=ada&ids=1,2", vec![]),
        ("username=ad", vec![]),
        ("username=ada%00", vec![]),
        ("username=%25", vec![]),
        ("username=John%20Doe", vec![]),
        ("username=", vec![]),
    ] {
        let answer = client.get(&format!("/users?{query}")).await.expect(200);
        assert_eq!(ids(&answer.json()), found, "{query}");
        assert_eq!(answer.header("link"), "", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_want_a_name_at_once_one_gets_it() {
    let client = service().await;
    let tries = (0..20).map(|n| {
        let client = client.clone();
        let body = json!({"username": "ada", "email": format!("{n}@example.com")});
        tokio::spawn(async move { client.post("/users", body).await })
    });
    let mut added = 0;
    for answer in futures_util::future::join_all(tries).await {
        let answer = answer.unwrap();
        if answer.status == 201 {
            added += 1;
        } else {
            answer.expect_problem(409, "username-taken");
        }
    }
    assert_eq!((added, ids(&everyone(&client).await).len()), (1, 1));
}
