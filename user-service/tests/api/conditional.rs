//! `ETag`, `If-None-Match` and `If-Match`.

use serde_json::json;
use testing::Client;

use crate::support::{add, all_users, expect_rejected, service};

/// Returns a client of a service with one user, and the tag of this user.
async fn service_with_ada() -> (Client, String) {
    let client = service().await;
    add(&client, "Ada").await;
    let tag = client.get("/users/1").await.expect(200).header("etag").to_owned();
    assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "{tag} is not a strong tag");
    (client, tag)
}

#[tokio::test]
async fn changes_the_etag_exactly_when_the_user_changes() {
    let (client, tag) = service_with_ada().await;
    assert_eq!(client.get("/api/users/1").await.header("etag"), tag);
    assert_eq!(client.patch("/users/1", json!({"name": "Ada"})).await.expect(200).header("etag"), tag);
    let changed = client.patch("/users/1", json!({"name": "Eve"})).await.expect(200).header("etag").to_owned();
    assert_ne!(changed, tag);
    assert_eq!(client.get("/users/1").await.header("etag"), changed);
}

#[tokio::test]
async fn returns_304_for_a_known_etag() {
    let (client, tag) = service_with_ada().await;
    let both = format!("\"other\", W/{tag}");
    for method in ["GET", "HEAD"] {
        for known in [&tag, &format!("W/{tag}"), &both, "*"] {
            let response = client.request(method, "/users/1").header("if-none-match", known).send().await.expect(304);
            assert!(response.body.is_empty() && response.header("etag") == tag, "{known}: {response}");
            assert_eq!(response.header("x-request-id").len(), 32, "{response}");
        }
    }
    for other in ["\"other\"", "", "W/\"other\"", tag.trim_matches('"')] {
        let response = client.request("GET", "/users/1").header("if-none-match", other).send().await.expect(200);
        assert_eq!((response.header("etag"), &response.json()["name"]), (tag.as_str(), &json!("Ada")), "{other}");
    }
    client.patch("/users/1", json!({"name": "Eve"})).await.expect(200);
    client.request("GET", "/users/1").header("if-none-match", &tag).send().await.expect(200);
}

#[tokio::test]
async fn returns_404_for_a_removed_user_but_412_if_the_client_expects_it() {
    let (client, tag) = service_with_ada().await;
    client.delete("/users/1").await.expect(204);
    for known in [tag.as_str(), "*"] {
        for method in ["GET", "PATCH", "DELETE"] {
            let call = |header| client.request(method, "/users/1").header(header, known).json(&json!({"name": "Eve"}));
            call("if-none-match").send().await.expect_problem(404, "not-found");
            call("if-match").send().await.expect_problem(412, "precondition-failed");
        }
    }
    let nowhere = client.request("GET", "/nowhere").header("if-match", "*").send().await;
    nowhere.expect_problem(404, "not-found");
}

#[tokio::test]
async fn reads_if_match_on_several_lines_as_one_list() {
    let (client, tag) = service_with_ada().await;
    let call = |method: &str, lines: &[&str]| {
        let request = client.request(method, "/users/1").json(&json!({"name": "Eve"}));
        lines.iter().fold(request, |request, line| request.header("if-match", line))
    };
    for method in ["PATCH", "DELETE", "GET"] {
        expect_rejected(&client, call(method, &["\"a\"", "\"b,c\", d"]))
            .await
            .expect_problem(412, "precondition-failed");
    }
    let changed = call("PATCH", &["\"other, one\"", &tag]).send().await.expect(200).header("etag").to_owned();
    call("GET", &["\"other\"", &changed]).send().await.expect(200);
    call("DELETE", &["\"other\"", "*"]).send().await.expect(204);
}

#[tokio::test]
async fn returns_412_when_if_none_match_names_the_current_tag() {
    let (client, tag) = service_with_ada().await;
    let call = |method: &str, known: &str| {
        client.request(method, "/users/1").header("if-none-match", known).json(&json!({"name": "Eve"}))
    };
    for method in ["PATCH", "DELETE"] {
        for known in [&tag, "*", &format!("W/{tag}"), &format!("\"other\", {tag}")] {
            expect_rejected(&client, call(method, known)).await.expect_problem(412, "precondition-failed");
        }
    }
    call("PATCH", "\"other\"").send().await.expect(200);
    call("DELETE", &tag).send().await.expect(204); // it has another tag now
}

/// A user is compressed only if it is larger than 1 KiB.
#[tokio::test]
async fn gives_a_compressed_user_a_tag_of_its_own_that_works_like_the_other() {
    let client = service().await;
    client
        .post(
            "/users",
            json!({"name": "ж".repeat(200), "username": "ж".repeat(64), "email": format!("{}@x", "ж".repeat(240))}),
        )
        .await
        .expect(201);
    let get =
        |name, value: &str| client.request("GET", "/users/1").header("accept-encoding", "gzip").header(name, value);
    let plain = client.get("/users/1").await.expect(200);
    let packed = get("x-any", "").send().await.expect(200);
    assert_eq!(packed.header("content-encoding"), "gzip", "{packed}");
    let (plain_tag, packed_tag) = (plain.header("etag"), packed.header("etag"));
    assert!(packed_tag.starts_with('"') && packed_tag != plain_tag, "{packed_tag}");
    for (tag, vary) in [(plain_tag, plain.header("vary")), (packed_tag, packed.header("vary"))] {
        let unchanged = get("if-none-match", tag).send().await.expect(304);
        assert_eq!((unchanged.header("etag"), unchanged.header("vary")), (tag, vary));
        assert!(unchanged.header("vary").contains("accept-encoding"), "{unchanged}");
        get("if-match", tag).send().await.expect(200);
    }
    let change = client.request("PATCH", "/users/1").header("if-match", packed_tag).json(&json!({"name": "Ada"}));
    change.send().await.expect(200);
    let stale = client.request("DELETE", "/users/1").header("if-match", packed_tag);
    expect_rejected(&client, stale).await.expect_problem(412, "precondition-failed");
}

#[tokio::test]
async fn changes_only_the_version_that_the_client_has_seen() {
    let (client, tag) = service_with_ada().await;
    let patch = |tag: &str, name: &str| {
        client.request("PATCH", "/users/1").header("if-match", tag).json(&json!({"name": name}))
    };
    let second = patch(&tag, "second").send().await.expect(200).header("etag").to_owned();
    for stale in [tag.as_str(), "\"other\"", "", &format!("W/{second}"), &format!("{tag}, \"other\"")] {
        expect_rejected(&client, patch(stale, "stale")).await.expect_problem(412, "precondition-failed");
    }
    patch(&format!("\"other\", {second}"), "third").send().await.expect(200);
    patch("*", "fourth").send().await.expect(200);
    assert_eq!(client.get("/users/1").await.json()["name"], "fourth");
}

#[tokio::test]
async fn removes_only_the_version_that_the_client_has_seen() {
    let (client, tag) = service_with_ada().await;
    let delete = |tag: &str| client.request("DELETE", "/api/users/1").header("if-match", tag);
    let changed = client.patch("/users/1", json!({"name": "Eve"})).await.expect(200).header("etag").to_owned();
    for stale in [tag.as_str(), "\"other\"", &format!("W/{changed}")] {
        expect_rejected(&client, delete(stale)).await.expect_problem(412, "precondition-failed");
    }
    delete(&changed).send().await.expect(204);
    add(&client, "Bob").await;
    client.request("DELETE", "/users/2").header("if-match", "*").send().await.expect(204);
    assert_eq!(all_users(&client).await, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn applies_one_of_many_concurrent_changes_to_a_version() {
    let (client, tag) = service_with_ada().await;
    let requests = (0..20).map(|n| {
        let request =
            client.request("PATCH", "/users/1").header("if-match", &tag).json(&json!({"name": n.to_string()}));
        tokio::spawn(request.send())
    });
    let responses = futures_util::future::join_all(requests).await;
    let statuses: Vec<u16> = responses.into_iter().map(|response| response.unwrap().status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 412).count(), 19, "{statuses:?}");
}
