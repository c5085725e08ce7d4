//! Single users: create, read, change, remove.

use serde_json::json;

use crate::support::{add, all_users, expect_rejected, ids, seeded, service, sign_up};

#[tokio::test]
async fn returns_a_new_user_at_its_location() {
    let client = service().await;
    for root in ["/users", "/api/users"] {
        let added = client.post(root, json!({"name": "Ada Lovelace"})).await.expect(201);
        let user = added.json();
        assert_eq!(added.header("location"), format!("{root}/{}", user["id"]));
        assert_eq!(added.header("content-type"), "application/json");
        let read = client.get(added.header("location")).await.expect(200);
        assert_eq!((read.json(), read.header("etag")), (user, added.header("etag")));
    }
}

#[tokio::test]
async fn shows_a_username_and_an_email_only_for_an_account() {
    let client = service().await;
    let user = add(&client, "Ada Lovelace").await;
    assert_eq!((&user["id"], &user["name"]), (&json!(1), &json!("Ada Lovelace")));
    assert_eq!(members(&user), ["createdAt", "id", "name"]);
    let account = sign_up(&client, "ada").await;
    assert_eq!((&account["username"], &account["email"]), (&json!("ada"), &json!("ada@example.com")));
    assert_eq!(members(&account), ["createdAt", "email", "id", "name", "username"]);
}

fn members(user: &serde_json::Value) -> Vec<&str> {
    let mut members: Vec<&str> = user.as_object().expect("an object").keys().map(String::as_str).collect();
    members.sort_unstable();
    members
}

#[tokio::test]
async fn shows_times_as_rfc_3339_in_utc() {
    let user = add(&service().await, "Ada").await;
    let text = user["createdAt"].as_str().unwrap();
    let time: jiff::Timestamp = text.parse().unwrap();
    assert!(text.ends_with('Z') && text.len() <= "2026-01-31T09:30:00.123456Z".len(), "{text}");
    assert!(time <= jiff::Timestamp::now(), "{text}");
}

#[tokio::test]
async fn uses_the_username_as_the_name_by_default() {
    let client = service().await;
    let password = "correct horse";
    let account = json!({"username": "ada", "email": "ada@example.com", "password": password});
    assert_eq!(client.post("/users", account).await.expect(201).json()["name"], "ada");
    let all = json!({"name": "Eve Moneypenny", "username": "eve", "email": "eve@example.com", "password": password});
    assert_eq!(client.post("/users", all).await.expect(201).json()["name"], "Eve Moneypenny");
}

#[tokio::test]
async fn ignores_unknown_members_and_an_id_from_the_client() {
    let client = service().await;
    let body = json!({"id": 99, "_id": "x", "createdAt": "1970-01-01T00:00:00Z", "role": "admin", "name": "Ada"});
    let user = client.post("/users", body).await.expect(201).json();
    assert_eq!((&user["id"], user.get("role")), (&json!(1), None));
    assert_ne!(user["createdAt"], "1970-01-01T00:00:00Z");
    let changed = client.patch("/users/1", json!({"id": 99, "createdAt": "x", "role": 7})).await.expect(200);
    assert_eq!(changed.json(), user);
}

#[tokio::test]
async fn stores_a_name_exactly_as_it_was_sent() {
    let client = service().await;
    let longest = "ä".repeat(200);
    for name in [
        "O'Brien \"Bob\" <b@x> & \\ /",
        "李明",
        "👩‍👩‍👧‍👦",
        "'; DROP TABLE users; --",
        "\u{202e}gnp.exe",
        " Ada ",
        "A\u{30a}",
        &longest,
    ] {
        assert_eq!(add(&client, name).await["name"], name);
    }
}

#[tokio::test]
async fn returns_404_for_an_unknown_user() {
    let client = seeded().await;
    for request in [
        client.request("GET", "/users/3"),
        client.request("GET", "/api/users/9223372036854775807"),
        client.request("PATCH", "/users/3").json(&json!({"name": "x"})),
        client.request("DELETE", "/users/3"),
    ] {
        let problem = expect_rejected(&client, request).await.expect_problem(404, "not-found");
        assert_eq!(problem["error"], "User not found");
    }
}

#[tokio::test]
async fn changes_only_the_given_members() {
    let client = service().await;
    let mut user = sign_up(&client, "ada").await;
    sign_up(&client, "eve").await;
    for (member, value) in [("name", "Countess"), ("email", "king@example.com"), ("username", "king")] {
        let changed = client.patch("/users/1", json!({ member: value })).await.expect(200);
        user[member] = json!(value);
        assert_eq!(changed.json(), user);
        let read = client.get("/api/users/1").await;
        assert_eq!((read.json(), read.header("etag")), (user.clone(), changed.header("etag")));
    }
    assert_eq!(client.patch("/api/users/1", json!({})).await.expect(200).json(), user);
    assert_eq!(client.get("/users/2").await.json()["username"], "eve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn loses_no_concurrent_change_of_different_members() {
    let client = service().await;
    add(&client, "Ada").await;
    for round in 0..20 {
        let changes = [json!({"name": format!("name {round}")}), json!({"username": format!("user{round}")})];
        let changes = changes.map(|change| {
            let client = client.clone();
            tokio::spawn(async move { client.patch("/users/1", change).await.expect(200) })
        });
        for change in changes {
            change.await.unwrap();
        }
        let user = client.get("/users/1").await.json();
        let expected = (json!(format!("name {round}")), json!(format!("user{round}")));
        assert_eq!((&user["name"], &user["username"]), (&expected.0, &expected.1));
    }
}

#[tokio::test]
async fn turns_a_user_into_an_account() {
    let client = seeded().await;
    let account = json!({"username": "john", "email": "john@example.com", "password": "correct horse"});
    let john = client.patch("/users/1", account).await.expect(200).json();
    assert_eq!((&john["name"], &john["username"]), (&json!("John Doe"), &json!("john")));
    assert_eq!(ids(&client.get("/users?username=john").await.json()), [1]);
}

#[tokio::test]
async fn removes_a_user_and_never_reuses_its_id() {
    let client = seeded().await;
    let removed = client.delete("/users/2").await.expect(204);
    assert!(removed.body.is_empty(), "{removed}");
    client.get("/users/2").await.expect_problem(404, "not-found");
    client.delete("/users/2").await.expect_problem(404, "not-found");
    assert_eq!(add(&client, "Eve").await["id"], 3);
    assert_eq!(ids(&all_users(&client).await), [1, 3]);
}

#[tokio::test]
async fn seeds_a_store_in_memory_with_the_users_of_the_tutorial() {
    let list = all_users(&seeded().await).await;
    let users: Vec<_> = list.as_array().unwrap().iter().map(|user| (&user["id"], &user["name"])).collect();
    assert_eq!(users, [(&json!(1), &json!("John Doe")), (&json!(2), &json!("Jane Smith"))]);
    assert_eq!(all_users(&service().await).await, json!([]), "without a seed");
}
