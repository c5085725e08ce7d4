//! `ETag`, `If-None-Match` and `If-Match`.

use serde_json::json;
use testing::Client;

use crate::support::{add, everyone, refused, service};

/// A service with one user, and the tag of that.
async fn service_with_ada() -> (Client, String) {
    let client = service().await;
    add(&client, "Ada").await;
    let tag = client.get("/users/1").await.expect(200).header("etag").to_owned();
    assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "{tag} is no strong tag");
    (client, tag)
}

#[tokio::test]
async fn a_tag_changes_with_the_user_and_only_then() {
    let (client, tag) = service_with_ada().await;
    assert_eq!(client.get("/api/users/1").await.header("etag"), tag);
    assert_eq!(client.patch("/users/1", json!({"name": "Ada"})).await.expect(200).header("etag"), tag);
    let changed = client.patch("/users/1", json!({"name": "Eve"})).await.expect(200).header("etag").to_owned();
    assert_ne!(changed, tag);
    assert_eq!(client.get("/users/1").await.header("etag"), changed);
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let (client, tag) = service_with_ada().await;
    let both = format!("\"other\", W/{tag}");
    for method in ["GET", "HEAD"] {
        for known in [&tag, &format!("W/{tag}"), &both, "*"] {
            let answer = client.request(method, "/users/1").header("if-none-match", known).send().await.expect(304);
            assert!(answer.body.is_empty() && answer.header("etag") == tag, "{known}: {answer}");
            assert_eq!(answer.header("x-request-id").len(), 32, "{answer}");
        }
    }
    for other in ["\"other\"", "", "W/\"other\"", tag.trim_matches('"')] {
        let answer = client.request("GET", "/users/1").header("if-none-match", other).send().await.expect(200);
        assert_eq!((answer.header("etag"), &answer.json()["name"]), (tag.as_str(), &json!("Ada")), "{other}");
    }
    client.patch("/users/1", json!({"name": "Eve"})).await.expect(200);
    client.request("GET", "/users/1").header("if-none-match", &tag).send().await.expect(200);
}

#[tokio::test]
async fn a_missing_user_is_missing_whatever_the_client_has() {
    let (client, tag) = service_with_ada().await;
    client.delete("/users/1").await.expect(204);
    for known in [tag.as_str(), "*"] {
        let read = client.request("GET", "/users/1").header("if-none-match", known).send().await;
        read.expect_problem(404, "not-found");
        let removed = client.request("DELETE", "/users/1").header("if-match", known).send().await;
        removed.expect_problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_change_is_made_only_to_what_the_client_has_seen() {
    let (client, tag) = service_with_ada().await;
    let patch = |tag: &str, name: &str| {
        client.request("PATCH", "/users/1").header("if-match", tag).json(&json!({"name": name}))
    };
    let second = patch(&tag, "second").send().await.expect(200).header("etag").to_owned();
    for stale in [tag.as_str(), "\"other\"", "", &format!("W/{second}"), &format!("{tag}, \"other\"")] {
        refused(&client, patch(stale, "stale")).await.expect_problem(412, "precondition-failed");
    }
    patch(&format!("\"other\", {second}"), "third").send().await.expect(200);
    patch("*", "fourth").send().await.expect(200);
    assert_eq!(client.get("/users/1").await.json()["name"], "fourth");
}

#[tokio::test]
async fn only_what_the_client_has_seen_is_removed() {
    let (client, tag) = service_with_ada().await;
    let delete = |tag: &str| client.request("DELETE", "/api/users/1").header("if-match", tag);
    let changed = client.patch("/users/1", json!({"name": "Eve"})).await.expect(200).header("etag").to_owned();
    for stale in [tag.as_str(), "\"other\"", &format!("W/{changed}")] {
        refused(&client, delete(stale)).await.expect_problem(412, "precondition-failed");
    }
    delete(&changed).send().await.expect(204);
    add(&client, "Bob").await;
    client.request("DELETE", "/users/2").header("if-match", "*").send().await.expect(204);
    assert_eq!(everyone(&client).await, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_have_seen_the_same_one_may_change_it() {
    let (client, tag) = service_with_ada().await;
    let tries = (0..20).map(|n| {
        let request =
            client.request("PATCH", "/users/1").header("if-match", &tag).json(&json!({"name": n.to_string()}));
        tokio::spawn(request.send())
    });
    let answers = futures_util::future::join_all(tries).await;
    let statuses: Vec<u16> = answers.into_iter().map(|answer| answer.unwrap().status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 412).count(), 19, "{statuses:?}");
}
