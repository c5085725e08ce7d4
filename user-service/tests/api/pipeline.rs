//! What holds for every route: wrong paths and methods, request ids, CORS, compression, HEAD, health, the docs.

use axum::http::HeaderValue;
use chassis::config::Settings;
use serde_json::json;
use testing::{Client, Received};

use crate::support::{add, add_many, everyone, refused, seeded, service, service_with, settings};

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
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
            let answer = refused(&client, client.request(method, path)).await;
            let mut told: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
            told.sort_unstable();
            assert_eq!(told, allowed, "{method} {path}");
            answer.expect_problem(405, "method-not-allowed");
        }
    }
}

#[tokio::test]
async fn a_sane_request_id_is_taken_and_else_one_is_made() {
    let client = service().await;
    let longest = "x".repeat(128);
    for sane in ["a", "7f3c-1", "!\"#~", &longest] {
        let answer = client.request("GET", "/users").header("x-request-id", sane).send().await.expect(200);
        assert_eq!(answer.header("x-request-id"), sane);
    }
    let (too_long, not_ascii) = ("x".repeat(129), "caf\u{e9}");
    for insane in ["", " ", "two words", "tab\there", &too_long, not_ascii] {
        let request = client.request("GET", "/nowhere").header("x-request-id", insane);
        expect_made(&request.send().await);
    }
    let twice = client.request("GET", "/users").header("x-request-id", "a").header("x-request-id", "b");
    expect_made(&twice.send().await);
    let (one, other) = (client.get("/users").await, client.get("/users").await);
    expect_made(&one);
    assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
}

#[track_caller]
fn expect_made(received: &Received) {
    let id = received.header("x-request-id");
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{received}");
}

#[tokio::test]
async fn a_problem_is_complete_and_bears_the_id_of_its_request() {
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
async fn a_list_of_mistakes_is_complete() {
    let answer = service().await.post("/users", json!({"name": "", "email": "ada"})).await;
    let errors = answer.expect_problem(400, "invalid-request")["errors"].clone();
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
async fn any_page_may_call_by_default() {
    let client = service().await;
    for path in ["/users", "/users/1", "/nowhere"] {
        let answer = client.request("GET", path).header("origin", "https://shop.example").send().await;
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{answer}");
        assert_eq!(exposed(&answer), EXPOSED, "{answer}");
    }
    let preflight = preflight(&client, "https://shop.example").await;
    assert_eq!(preflight.header("access-control-allow-origin"), "*");
}

/// What a browser asks before it sends something that is not simple.
async fn preflight(client: &Client, origin: &str) -> Received {
    let request = client.request("OPTIONS", "/users/1").header("origin", origin);
    let request = request.header("access-control-request-method", "PATCH");
    let answer = request.header("access-control-request-headers", "content-type,if-match").send().await.expect(200);
    for (name, wanted) in [("access-control-allow-methods", "PATCH"), ("access-control-allow-headers", "if-match")] {
        let allowed = answer.header(name);
        assert!(allowed == "*" || allowed.contains(wanted), "{answer}");
    }
    answer
}

#[tokio::test]
async fn origins_can_be_narrowed() {
    let origins = ["https://shop.example", "http://localhost:8080"].map(HeaderValue::from_static).to_vec();
    let client = service_with(&Settings { cors_allowed_origins: origins, ..settings() }).await;
    for (origin, allowed) in [
        ("https://shop.example", "https://shop.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://shop.example", ""),
        ("https://shop.example.evil.example", ""),
        ("null", ""),
    ] {
        let answer = client.request("GET", "/users").header("origin", origin).send().await.expect(200);
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{origin}");
        assert!(
            answer.headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().contains("origin")),
            "{answer}"
        );
        assert_eq!(preflight(&client, origin).await.header("access-control-allow-origin"), allowed, "{origin}");
    }
}

#[tokio::test]
async fn a_large_answer_is_compressed_if_the_client_asks_for_it() {
    let client = service().await;
    add_many(&client, 50).await;
    let plain = client.get("/users").await.expect(200);
    assert!(plain.body.len() > 1024 && plain.header("content-encoding").is_empty(), "{plain}");
    for asked in ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, gzip;q=0.8, *;q=0.1", "*"] {
        let packed = client.request("GET", "/users").header("accept-encoding", asked).send().await.expect(200);
        assert_eq!(packed.header("content-encoding"), "gzip", "{asked}");
        assert_eq!(packed.header("vary"), "accept-encoding", "{asked}");
        assert!(packed.body.starts_with(b"\x1f\x8b") && packed.body.len() < plain.body.len(), "{asked}");
    }
    for asked in ["", "identity", "br", "gzip;q=0", "deflate, gzip;q=0"] {
        let answer = client.request("GET", "/users").header("accept-encoding", asked).send().await.expect(200);
        assert_eq!((answer.header("content-encoding"), &answer.body), ("", &plain.body), "{asked}");
    }
}

#[tokio::test]
async fn a_small_answer_is_not_compressed() {
    let client = service().await;
    add_many(&client, 5).await;
    for path in ["/users", "/users/1", "/livez", "/nowhere"] {
        let answer = client.request("GET", path).header("accept-encoding", "gzip").send().await;
        assert!(answer.body.len() < 1000 && answer.header("content-encoding").is_empty(), "{answer}");
    }
}

#[tokio::test]
async fn nothing_is_done_and_then_denied_because_of_an_encoding() {
    let client = service().await;
    let request =
        client.request("POST", "/users").header("accept-encoding", "identity;q=0").json(&json!({"name": "Ada"}));
    let user = request.send().await.expect(201).json();
    assert_eq!(everyone(&client).await, json!([user]));
}

#[tokio::test]
async fn head_is_get_without_the_body() {
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
async fn health_is_told_to_whoever_asks() {
    let client = service().await;
    assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    assert_eq!(client.get("/readyz").await.expect(200).json(), json!({"status": "ready", "peers": {}}));
}

#[tokio::test]
async fn metrics_count_routes() {
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
        assert!(page.lines().any(|told| told == line), "no {line} in:\n{page}");
    }
}

#[tokio::test]
async fn the_docs_need_nothing_from_elsewhere() {
    let client = service().await;
    let redirect = client.get("/docs").await;
    assert!(redirect.status.is_redirection() && redirect.header("location") == "/docs/", "{redirect}");
    let page = client.get("/docs/").await.expect(200);
    assert!(page.header("content-type").starts_with("text/html"), "{page}");
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    let references: Vec<&str> =
        ["src=\"", "href=\""].iter().flat_map(|attribute| html.split(attribute).skip(1)).collect();
    assert!(references.len() > 3, "a script and a style at least: {html}");
    for reference in references {
        let file = reference.split('"').next().unwrap().trim_start_matches("./");
        assert!(!file.contains("//") && !file.starts_with('/'), "{file} is elsewhere");
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
