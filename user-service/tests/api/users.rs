//! One user: added, read, changed, removed.

use serde_json::json;

use crate::support::{add, everyone, ids, refused, seeded, service, sign_up};

#[tokio::test]
async fn a_user_is_added_and_read_at_its_location() {
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
async fn a_user_has_an_id_a_name_and_a_time_and_an_account_only_if_it_is_one() {
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
async fn the_time_of_a_user_is_rfc_3339_in_utc() {
    let user = add(&service().await, "Ada").await;
    let text = user["createdAt"].as_str().unwrap();
    let time: jiff::Timestamp = text.parse().unwrap();
    assert!(text.ends_with('Z') && text.len() <= "2026-01-31T09:30:00.123456Z".len(), "{text}");
    assert!(time <= jiff::Timestamp::now(), "{text}");
}

#[tokio::test]
async fn an_account_may_have_all_four_members_and_its_name_is_its_username_unless_it_says_another() {
    let client = service().await;
    let password = "correct horse";
    let account = json!({"username": "ada", "email": "ada@example.com", "password": password});
    assert_eq!(client.post("/users", account).await.expect(201).json()["name"], "ada");
    let all = json!({"name": "Eve Moneypenny", "username": "eve", "email": "eve@example.com", "password": password});
    assert_eq!(client.post("/users", all).await.expect(201).json()["name"], "Eve Moneypenny");
}

#[tokio::test]
async fn what_is_not_known_is_ignored_and_the_id_is_the_services() {
    let client = service().await;
    let body = json!({"id": 99, "_id": "x", "createdAt": "1970-01-01T00:00:00Z", "role": "admin", "name": "Ada"});
    let user = client.post("/users", body).await.expect(201).json();
    assert_eq!((&user["id"], user.get("role")), (&json!(1), None));
    assert_ne!(user["createdAt"], "1970-01-01T00:00:00Z");
    let changed = client.patch("/users/1", json!({"id": 99, "createdAt": "x", "role": 7})).await.expect(200);
    assert_eq!(changed.json(), user);
}

#[tokio::test]
async fn a_name_is_kept_as_it_was_sent() {
    let client = service().await;
    let longest = "ä".repeat(200);
    for name in [
        "O'Brien \"Bob\" <b@x> & \\ /",
        "李明",
        "👩‍👩‍👧‍👦",
        "'; DROP TABLE users; --",
        "\u{202e}gnp.exe",
        " ",
        "A\u{30a}",
        &longest,
    ] {
        assert_eq!(add(&client, name).await["name"], name);
    }
}

#[tokio::test]
async fn a_missing_user_is_not_found() {
    let client = seeded().await;
    for request in [
        client.request("GET", "/users/3"),
        client.request("GET", "/api/users/9223372036854775807"),
        client.request("PATCH", "/users/3").json(&json!({"name": "x"})),
        client.request("DELETE", "/users/3"),
    ] {
        let problem = refused(&client, request).await.expect_problem(404, "not-found");
        assert_eq!(problem["error"], "User not found");
    }
}

#[tokio::test]
async fn a_change_is_made_to_what_it_names_and_to_nothing_else() {
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
async fn of_changes_at_once_to_different_members_none_is_lost() {
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
async fn a_user_can_become_an_account() {
    let client = seeded().await;
    let account = json!({"username": "john", "email": "john@example.com", "password": "correct horse"});
    let john = client.patch("/users/1", account).await.expect(200).json();
    assert_eq!((&john["name"], &john["username"]), (&json!("John Doe"), &json!("john")));
    assert_eq!(ids(&client.get("/users?username=john").await.json()), [1]);
}

#[tokio::test]
async fn a_removed_user_is_gone_and_its_id_is_not_given_again() {
    let client = seeded().await;
    let removed = client.delete("/users/2").await.expect(204);
    assert!(removed.body.is_empty(), "{removed}");
    client.get("/users/2").await.expect_problem(404, "not-found");
    client.delete("/users/2").await.expect_problem(404, "not-found");
    assert_eq!(add(&client, "Eve").await["id"], 3);
    assert_eq!(ids(&everyone(&client).await), [1, 3]);
}

#[tokio::test]
async fn a_store_in_memory_starts_with_the_users_of_the_tutorial() {
    let list = everyone(&seeded().await).await;
    let users: Vec<_> = list.as_array().unwrap().iter().map(|user| (&user["id"], &user["name"])).collect();
    assert_eq!(users, [(&json!(1), &json!("John Doe")), (&json!(2), &json!("Jane Smith"))]);
    assert_eq!(everyone(&service().await).await, json!([]), "unless it is told not to");
}
