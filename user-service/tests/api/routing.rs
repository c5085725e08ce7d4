//! Behaviour of every route: methods, request ids, problems, CORS, compression, HEAD, health, metrics, docs.

use axum::http::HeaderValue;
use chassis::config::Settings;
use serde_json::json;
use testing::{Client, Received};

use crate::support::{add, add_many, all_users, expect_rejected, seeded, service, service_with, settings};

#[tokio::test]
async fn lists_the_allowed_methods_after_a_wrong_one() {
    let client = seeded().await;
    for (path, allowed) in [
        ("/users", ["GET", "HEAD", "POST"].as_slice()),
        ("/api/users", &["GET", "HEAD", "POST"]),
        ("/users/1", &["DELETE", "GET", "HEAD", "PATCH"]),
        ("/api/users/1", &["DELETE", "GET", "HEAD", "PATCH"]),
        ("/livez", &["GET", "HEAD"]),
        ("/readyz", &["GET", "HEAD"]),
        ("/metrics", &["GET", "HEAD"]),
        ("/openapi.json", &["GET", "HEAD"]),
        ("/docs/", &["GET", "HEAD"]),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
            if allowed.contains(&method) {
                continue;
            }
            let response = expect_rejected(&client, client.request(method, path)).await;
            let mut listed: Vec<&str> = response.header("allow").split(',').map(str::trim).collect();
            listed.sort_unstable();
            assert_eq!(listed, allowed, "{method} {path}");
            response.expect_problem(405, "method-not-allowed");
        }
    }
}

#[tokio::test]
async fn keeps_a_valid_request_id_and_replaces_an_invalid_one() {
    let client = service().await;
    let longest = "x".repeat(128);
    for valid in ["a", "7f3c-1", "!\"#~", &longest] {
        let response = client.request("GET", "/users").header("x-request-id", valid).send().await.expect(200);
        assert_eq!(response.header("x-request-id"), valid);
    }
    let (too_long, not_ascii) = ("x".repeat(129), "caf\u{e9}");
    for invalid in ["", " ", "two words", "tab\there", &too_long, not_ascii] {
        let request = client.request("GET", "/nowhere").header("x-request-id", invalid);
        expect_new_request_id(&request.send().await);
    }
    let twice = client.request("GET", "/users").header("x-request-id", "a").header("x-request-id", "b");
    expect_new_request_id(&twice.send().await);
    let (one, other) = (client.get("/users").await, client.get("/users").await);
    expect_new_request_id(&one);
    assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
}

#[track_caller]
fn expect_new_request_id(received: &Received) {
    let id = received.header("x-request-id");
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{received}");
}

#[tokio::test]
async fn returns_a_complete_problem_with_the_request_id() {
    let request = service().await.request("GET", "/users/7").header("x-request-id", "abc-1");
    let expected = json!({
        "type": "urn:problem-type:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "User not found",
        "error": "User not found",
        "requestId": "abc-1",
    });
    assert_eq!(request.send().await.expect_problem(404, "not-found"), expected);
}

#[tokio::test]
async fn describes_every_invalid_member() {
    let response = service().await.post("/users", json!({"name": "", "email": "ada"})).await;
    let errors = response.expect_problem(400, "invalid-request")["errors"].clone();
    let email = "must be an e-mail address: one @ with something on both sides, and no white space";
    let expected = json!([
        {"pointer": "/name", "detail": "must be 1 to 200 characters"},
        {"pointer": "/email", "detail": email},
    ]);
    assert_eq!(errors, expected);
}

const EXPOSED: [&str; 6] = ["location", "link", "etag", "retry-after", "x-request-id", "idempotent-replayed"];

fn exposed(received: &Received) -> Vec<String> {
    received.header("access-control-expose-headers").split(',').map(|name| name.trim().to_lowercase()).collect()
}

#[tokio::test]
async fn allows_every_origin_by_default() {
    let client = service().await;
    for path in ["/users", "/users/1", "/nowhere"] {
        let response = client.request("GET", path).header("origin", "https://shop.example").send().await;
        assert_eq!(response.header("access-control-allow-origin"), "*", "{response}");
        assert_eq!(exposed(&response), EXPOSED, "{response}");
    }
    let preflight = preflight(&client, "https://shop.example").await;
    assert_eq!(preflight.header("access-control-allow-origin"), "*");
}

/// Sends the preflight of a browser for a `PATCH` with `If-Match`, and checks that it is allowed.
async fn preflight(client: &Client, origin: &str) -> Received {
    let request = client.request("OPTIONS", "/users/1").header("origin", origin);
    let request = request.header("access-control-request-method", "PATCH");
    let response = request.header("access-control-request-headers", "content-type,if-match").send().await.expect(200);
    for (name, wanted) in [("access-control-allow-methods", "PATCH"), ("access-control-allow-headers", "if-match")] {
        let allowed = response.header(name);
        assert!(allowed == "*" || allowed.contains(wanted), "{response}");
    }
    response
}

#[tokio::test]
async fn allows_only_the_configured_origins() {
    let origins = ["https://shop.example", "http://localhost:8080"].map(HeaderValue::from_static).to_vec();
    let client = service_with(&Settings { cors_allowed_origins: origins, ..settings() }).await;
    for (origin, allowed) in [
        ("https://shop.example", "https://shop.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://shop.example", ""),
        ("https://shop.example.evil.example", ""),
        ("null", ""),
    ] {
        let response = client.request("GET", "/users").header("origin", origin).send().await.expect(200);
        assert_eq!(response.header("access-control-allow-origin"), allowed, "{origin}");
        assert!(
            response.headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().contains("origin")),
            "{response}"
        );
        assert_eq!(preflight(&client, origin).await.header("access-control-allow-origin"), allowed, "{origin}");
    }
}

#[tokio::test]
async fn compresses_a_large_response_if_the_client_accepts_it() {
    let client = service().await;
    add_many(&client, 50).await;
    let plain = client.get("/users").await.expect(200);
    assert!(plain.body.len() > 1024 && plain.header("content-encoding").is_empty(), "{plain}");
    for accepted in ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, gzip;q=0.8, *;q=0.1", "*"] {
        let packed = client.request("GET", "/users").header("accept-encoding", accepted).send().await.expect(200);
        assert_eq!(packed.header("content-encoding"), "gzip", "{accepted}");
        assert_eq!(packed.header("vary"), "accept-encoding", "{accepted}");
        assert!(packed.body.starts_with(b"\x1f\x8b") && packed.body.len() < plain.body.len(), "{accepted}");
    }
    for accepted in ["", "identity", "br", "gzip;q=0", "deflate, gzip;q=0"] {
        let response = client.request("GET", "/users").header("accept-encoding", accepted).send().await.expect(200);
        assert_eq!((response.header("content-encoding"), &response.body), ("", &plain.body), "{accepted}");
    }
}

#[tokio::test]
async fn does_not_compress_a_small_response() {
    let client = service().await;
    add_many(&client, 5).await;
    for path in ["/users", "/users/1", "/livez", "/nowhere"] {
        let response = client.request("GET", path).header("accept-encoding", "gzip").send().await;
        assert!(response.body.len() < 1000 && response.header("content-encoding").is_empty(), "{response}");
    }
}

#[tokio::test]
async fn does_not_reject_a_finished_request_for_its_encoding() {
    let client = service().await;
    let request =
        client.request("POST", "/users").header("accept-encoding", "identity;q=0").json(&json!({"name": "Ada"}));
    let user = request.send().await.expect(201).json();
    assert_eq!(all_users(&client).await, json!([user]));
}

#[tokio::test]
async fn answers_head_like_get_without_the_body() {
    let client = service().await;
    add_many(&client, 3).await;
    for path in ["/users", "/users?limit=1", "/users/1", "/api/users/1", "/livez", "/readyz", "/openapi.json", "/docs/"]
    {
        let (head, get) = (client.request("HEAD", path).send().await.expect(200), client.get(path).await);
        assert!(head.body.is_empty(), "{path}: {head}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        for name in ["content-type", "etag", "link"] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
    }
    client.request("HEAD", "/users/9").send().await.expect(404);
}

#[tokio::test]
async fn reports_its_health() {
    let client = service().await;
    assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    assert_eq!(client.get("/readyz").await.expect(200).json(), json!({"status": "ready", "peers": {}}));
}

#[tokio::test]
async fn counts_requests_by_route() {
    let client = service().await;
    add(&client, "Ada").await;
    client.get("/api/users/1").await.expect(200);
    client.get("/users/2").await.expect(404);
    let page = client.get("/metrics").await.expect(200);
    assert!(page.header("content-type").starts_with("text/plain"), "{page}");
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for (method, route, status) in
        [("POST", "/users", 201), ("GET", "/api/users/{id}", 200), ("GET", "/users/{id}", 404)]
    {
        let line = format!(r#"http_requests_total{{method="{method}",route="{route}",status="{status}"}} 1"#);
        assert!(page.lines().any(|shown| shown == line), "no {line} in:\n{page}");
    }
}

#[tokio::test]
async fn puts_the_prefix_of_a_proxy_before_its_paths() {
    let client = service().await;
    add_many(&client, 2).await;
    let call = |method: &str, path: &str| client.request(method, path).header("x-forwarded-prefix", "/shop/");
    let created = call("POST", "/api/users").json(&json!({"name": "Ada"})).send().await.expect(201);
    assert_eq!(created.header("location"), "/shop/api/users/3");
    let page = call("GET", "/users?limit=1").send().await.expect(200);
    assert_eq!(page.header("link"), "</shop/users?limit=1&after=1>; rel=\"next\"");
    assert_eq!(call("GET", "/docs").send().await.header("location"), "/shop/docs/");
    let script = call("GET", "/docs/swagger-initializer.js").send().await.expect(200).to_string();
    assert!(script.contains("\"/shop/openapi.json\"") && script.contains("javascript"), "{script}");
    let document = call("GET", "/openapi.json").send().await.expect(200).json();
    let servers: Vec<_> = document["servers"].as_array().unwrap().iter().map(|server| &server["url"]).collect();
    assert_eq!(servers, ["/shop/", "/shop/api"]);
    assert_eq!(document["paths"]["/livez"]["servers"][0]["url"], "/shop/");

    for bad in ["//evil.example", "https://evil.example", "/a>; rel=\"x\"", "/.."] {
        let page = client.request("GET", "/users?limit=1").header("x-forwarded-prefix", bad).send().await;
        assert_eq!(page.expect(200).header("link"), "</users?limit=1&after=1>; rel=\"next\"", "{bad}");
    }
}

#[tokio::test]
async fn serves_the_docs_without_other_hosts() {
    let client = service().await;
    let redirect = client.get("/docs").await;
    assert!(redirect.status.is_redirection() && redirect.header("location") == "/docs/", "{redirect}");
    let page = client.get("/docs/").await.expect(200);
    assert!(page.header("content-type").starts_with("text/html"), "{page}");
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    let references: Vec<&str> =
        ["src=\"", "href=\""].iter().flat_map(|attribute| html.split(attribute).skip(1)).collect();
    assert!(references.len() > 3, "at least a script and a style: {html}");
    for reference in references {
        let file = reference.split('"').next().unwrap().trim_start_matches("./");
        assert!(!file.contains("//") && !file.starts_with('/'), "{file} is on another host");
        client.get(&format!("/docs/{file}")).await.expect(200);
    }
    let script = String::from_utf8(client.get("/docs/swagger-initializer.js").await.expect(200).body.to_vec()).unwrap();
    assert!(
        !script.contains("://")
            && script.contains("\"/openapi.json\"")
            && script.contains("\"validatorUrl\": \"none\""),
        "{script}"
    );
    client.get("/docs/nothing.js").await.expect_problem(404, "not-found");
}
