//! Usernames and e-mails: unique without case, and free again after a change or a removal.

use serde_json::{Value, json};
use testing::Sending;

use crate::support::{add, all_users, expect_rejected, ids, seeded, service, sign_up};

/// Returns names that the accounts of Ada and Ångström have taken, with the slug of the problem.
fn taken_names() -> [(Value, &'static str); 9] {
    [
        (json!({"username": "ada", "email": "new@example.com"}), "username-taken"),
        (json!({"username": "ADA", "email": "new@example.com"}), "username-taken"),
        (json!({"username": "ångström"}), "username-taken"),
        (json!({"username": "A\u{30a}NGSTRO\u{308}M"}), "username-taken"),
        (json!({"username": "ＡＤＡ"}), "username-taken"),
        (json!({"username": "new", "email": "ada@example.com"}), "email-taken"),
        (json!({"username": "new", "email": "ａｄａ@example.com"}), "email-taken"),
        (json!({"username": "new", "email": "Ada@EXAMPLE.com"}), "email-taken"),
        (json!({"name": "new", "email": "ÅNGSTRÖM@example.com"}), "email-taken"),
    ]
}

#[tokio::test]
async fn rejects_a_taken_name_in_any_case_and_encoding() {
    let client = service().await;
    sign_up(&client, "Ada").await;
    sign_up(&client, "Ångström").await;
    add(&client, "Bob").await;
    for (names, slug) in taken_names() {
        let create: Sending = client.request("POST", "/users").json(&names);
        expect_rejected(&client, create).await.expect_problem(409, slug);
        let rename = client.request("PATCH", "/users/3").json(&names);
        expect_rejected(&client, rename).await.expect_problem(409, slug);
    }
    sign_up(&client, "new").await; // a rejected request takes no name
}

#[tokio::test]
async fn allows_equal_display_names() {
    let client = service().await;
    sign_up(&client, "ada").await;
    add(&client, "ada").await;
    add(&client, "ada").await;
}

#[tokio::test]
async fn lets_a_user_change_the_case_of_its_own_names() {
    let client = service().await;
    sign_up(&client, "ada").await;
    let changed =
        client.patch("/users/1", json!({"username": "ADA", "email": "Ada@Example.com"})).await.expect(200).json();
    assert_eq!((&changed["username"], &changed["email"]), (&json!("ADA"), &json!("Ada@Example.com")));
}

#[tokio::test]
async fn frees_names_after_a_change_and_after_a_removal() {
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
async fn removes_and_frees_what_a_change_sets_to_null() {
    let client = service().await;
    sign_up(&client, "ada").await;
    for media_type in ["application/json", "application/merge-patch+json"] {
        let change = json!({"username": null, "email": null, "password": null}).to_string();
        let change = client.request("PATCH", "/users/1").bytes(media_type, change);
        let changed = change.send().await.expect(200);
        assert_eq!(client.get("/users/1").await.header("etag"), changed.header("etag"));
        let (changed, members) = (changed.json(), ["id", "name", "createdAt"]);
        assert_eq!(changed["name"], "ada", "the name stays");
        assert!(changed.as_object().unwrap().keys().all(|key| members.contains(&key.as_str())), "{changed}");
    }
    assert_eq!(client.get("/users?username=ada").await.expect(200).json(), json!([]));
    sign_up(&client, "ADA").await;
    let names = json!({"username": "ada"});
    client.patch("/users/1", names).await.expect_problem(409, "username-taken");
}

#[tokio::test]
async fn changes_and_removes_members_in_one_request() {
    let client = service().await;
    sign_up(&client, "ada").await;
    let change = json!({"name": "Ada King", "username": "king", "email": null, "unknown": null});
    let changed = client.patch("/users/1", change).await.expect(200).json();
    assert_eq!((&changed["name"], &changed["username"]), (&json!("Ada King"), &json!("king")));
    assert!(changed.get("email").is_none(), "{changed}");
    let unchanged = client.patch("/users/1", json!({})).await.expect(200).json();
    assert_eq!(unchanged, changed);
}

#[tokio::test]
async fn stores_usernames_in_nfc() {
    let client = service().await;
    let account = sign_up(&client, "A\u{30a}ngstro\u{308}m").await;
    assert_eq!(account["username"], "Ångström");
    let longest = "a\u{30a}".repeat(64);
    let account = client.post("/users", json!({"username": longest})).await.expect(201).json();
    assert_eq!(account["username"], "å".repeat(64), "the limit counts the characters in NFC");
}

#[tokio::test]
async fn finds_a_user_by_its_username_in_any_case() {
    let client = seeded().await;
    sign_up(&client, "Ada").await;
    sign_up(&client, "ångström").await;
    for (query, found) in [
        ("username=Ada", vec![3]),
        ("username=aDA", vec![3]),
        ("username=%C3%85NGSTR%C3%96M", vec![4]),
        ("username=A%CC%8ANGSTRO%CC%88M", vec![4]),
        ("username=%EF%BC%A1da", vec![3]),
        ("username=ada&ids=1,3", vec![3]),
        ("username=%20ada", vec![]),
        ("username=ada&ids=1,2", vec![]),
        ("username=ad", vec![]),
        ("username=ada%00", vec![]),
        ("username=%25", vec![]),
        ("username=John%20Doe", vec![]),
        ("username=", vec![]),
    ] {
        let response = client.get(&format!("/users?{query}")).await.expect(200);
        assert_eq!(ids(&response.json()), found, "{query}");
        assert_eq!(response.header("link"), "", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gives_a_name_to_one_of_many_concurrent_requests() {
    let client = service().await;
    let requests = (0..20).map(|n| {
        let client = client.clone();
        let body = json!({"username": "ada", "email": format!("{n}@example.com")});
        tokio::spawn(async move { client.post("/users", body).await })
    });
    let mut added = 0;
    for response in futures_util::future::join_all(requests).await {
        let response = response.unwrap();
        if response.status == 201 {
            added += 1;
        } else {
            response.expect_problem(409, "username-taken");
        }
    }
    assert_eq!((added, ids(&all_users(&client).await).len()), (1, 1));
}
