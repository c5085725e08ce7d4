//! `GET /users`: the request is forwarded to user-service. A stub answers as the test wants.

use std::collections::HashSet;
use std::future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use chassis::config::PeerSettings;
use serde_json::{Value, json};
use testing::{Received, dead_peer, eventually, stub_peer};
use tokio::time;
use url::Url;

use crate::support::{MINUTE, Shop, expect_bad, generous_timeouts, next_page};

/// The requests that the stub received: the target of each, and its headers.
#[derive(Clone, Default)]
struct Requests(Arc<Mutex<Vec<(String, HeaderMap)>>>);

impl Requests {
    /// Takes the request that came since the last call, which must be exactly one.
    fn take_one(&self) -> (String, HeaderMap) {
        let mut requests = self.0.lock().expect("an unpoisoned lock").split_off(0);
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

/// Starts a user-service that gives every request the same response, and returns its address and its requests.
async fn users_answering<R: IntoResponse>(response: impl Fn() -> R + Clone + Send + Sync + 'static) -> (Url, Requests) {
    let requests = Requests::default();
    let received = requests.clone();
    let handler = async move |request: Request| {
        let received = &received.0;
        received.lock().expect("an unpoisoned lock").push((request.uri().to_string(), request.headers().clone()));
        response().into_response()
    };
    (stub_peer(Router::new().fallback(handler)).await, requests)
}

/// Returns a shop whose user-service gives every request the same response.
async fn shop_with_users<R: IntoResponse>(
    response: impl Fn() -> R + Clone + Send + Sync + 'static,
) -> (Shop, Requests) {
    let (users, requests) = users_answering(response).await;
    (Shop::with_users(users, &generous_timeouts()).await, requests)
}

#[tokio::test]
async fn forwards_unknown_parameters_to_user_service() {
    let (shop, requests) = shop_with_users(|| "[]").await;
    shop.get("/users?future=1").await.expect(200);
    assert_eq!(requests.take_one().0, "/users?future=1");
}

#[tokio::test]
async fn returns_the_rows_byte_for_byte() {
    let deep = format!("[{}{}]", "[".repeat(30_000), "]".repeat(30_000));
    for rows in [
        &deep,
        r#"[{"id":1,"name":"John Doe","createdAt":"2026-01-31T09:30:00Z"},{"id":2,"name":"Jane Smith"}]"#,
        "[]",
        " [ {\"id\" : 1 ,\r\n\t\"name\":\"Zo\u{eb}\"} ,{ \"name\": \"\\u005a\\ud83e\\udd80\" } ]\n\n",
        r#"[{"z": {"b": 1, "a": [ ]}, "id": 1, "id": 2, "a": 1.50e+0, "n": 123456789012345678901234567890.10, "e": 1e999}]"#,
        r#"["John", null, [1], 7]"#,
    ] {
        let sent = rows.to_owned();
        let (shop, _) = shop_with_users(move || sent.clone()).await; // even as text/plain
        for path in ["/users", "/api/users"] {
            let response = shop.get(path).await.expect(200);
            assert_eq!(response.body, rows, "{path}");
            assert_eq!(response.header("content-type"), "application/json");
        }
    }
}

#[tokio::test]
async fn forwards_the_query_unchanged() {
    let (shop, requests) = shop_with_users(|| "[]").await;
    for query in [
        "",
        "?limit=2&after=7",
        "?ids=1,2,3",
        "?username=Ad%C3%A1+B%20c%26%3D%2f",
        "?after=7&limit=2&limit=3",
        "?unknown=x&&y&=z&%",
        "?a=b?c/d:e@f;g~!$*()[]|^`{}",
    ] {
        for path in ["/users", "/api/users"] {
            shop.get(&format!("{path}{query}")).await.expect(200);
            assert_eq!(requests.take_one().0, format!("/users{query}"), "from {path}");
        }
    }
    shop.get("/users?username=O'Hara").await.expect(200);
    let (target, _) = requests.take_one();
    assert_eq!(target.replace("%27", "'"), "/users?username=O'Hara", "a quote may be encoded");
}

#[tokio::test]
async fn links_to_the_next_page_through_this_service() {
    for link in [
        "</users?limit=2&after=7>; rel=\"next\"",
        "</api/users?limit=2&after=7>; rel=\"next\"",
        "<http://users.internal:3001/v1/users?limit=2&after=7>; rel=\"next\"",
    ] {
        let (shop, requests) = shop_with_users(move || ([("link", link)], "[]")).await;
        for path in ["/users", "/api/users"] {
            let response = shop.get(&format!("{path}?limit=2")).await.expect(200);
            assert_eq!(response.header("link"), format!("<{path}?limit=2&after=7>; rel=\"next\""), "from {link}");
            requests.take_one();
            shop.get(&next_page(&response)).await.expect(200);
            assert_eq!(
                requests.take_one().0,
                "/users?limit=2&after=7",
                "the link leads to the next page of user-service"
            );
        }
    }
}

#[tokio::test]
async fn omits_the_link_on_the_last_page() {
    for link in [None, Some("</users?after=1>; rel=\"prev\""), Some("nonsense"), Some("")] {
        let (shop, _) = shop_with_users(move || (link.map(|link| [("link", link)]), "[]").into_response()).await;
        let response = shop.get("/users").await.expect(200);
        assert!(!response.headers.contains_key("link"), "{link:?}: {response}");
    }
}

#[tokio::test]
async fn rejects_a_query_that_is_too_large_for_user_service() {
    let (shop, _) = shop_with_users(|| StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).await;
    shop.get("/users?username='").await.expect_problem(431, "headers-too-large");
}

#[tokio::test]
async fn keeps_the_path_of_the_peer_url() {
    let (root, requests) = users_answering(|| "[]").await;
    for (base, target) in
        [("", "/users"), ("/", "/users"), ("/api", "/api/users"), ("/api/", "/api/users"), ("/a/b", "/a/b/users")]
    {
        let shop = Shop::with_users(root.join(base).unwrap(), &generous_timeouts()).await;
        for path in ["/users", "/api/users"] {
            shop.get(&format!("{path}?limit=2")).await.expect(200);
            assert_eq!(requests.take_one().0, format!("{target}?limit=2"), "{base}");
        }
    }
}

#[tokio::test]
async fn forwards_the_request_id_and_the_trace_context() {
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (shop, requests) = shop_with_users(|| "[]").await;
    let request = shop.request("GET", "/users").header("x-request-id", "abc-1").header("traceparent", TRACEPARENT);
    let response = request.header("tracestate", "vendor=1").send().await.expect(200);
    let (_, headers) = requests.take_one();
    assert_eq!((response.header("x-request-id"), &headers["x-request-id"]), ("abc-1", &"abc-1".parse().unwrap()));
    assert_eq!(
        (&headers["traceparent"], &headers["tracestate"]),
        (&TRACEPARENT.parse().unwrap(), &"vendor=1".parse().unwrap())
    );

    let response = shop.get("/users").await.expect(200);
    let (_, headers) = requests.take_one();
    assert_eq!(headers["x-request-id"], response.header("x-request-id"), "a new id");
    assert!(headers.contains_key("traceparent"), "a new trace: {headers:?}");
}

/// Expects that the users are unavailable, and that the problem has no details.
#[track_caller]
fn expect_no_users(response: Received, why: &str) {
    let problem = response.expect_problem(503, "peer-unavailable");
    assert_eq!(problem["error"], "Error fetching users", "{why}");
    let members: HashSet<&str> = problem.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(members, HashSet::from(["type", "title", "status", "detail", "requestId", "error"]), "{why}: {problem}");
}

/// A response of user-service that is not a list of users.
type Failure = fn() -> Response;

#[tokio::test]
async fn returns_503_for_every_response_that_is_not_a_list() {
    let failures: [(Failure, &str); 22] = [
        (|| StatusCode::INTERNAL_SERVER_ERROR.into_response(), "an internal error"),
        (|| (StatusCode::INTERNAL_SERVER_ERROR, "[]").into_response(), "an error with a list"),
        (|| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "60")]).into_response(), "overloaded"),
        (|| StatusCode::NOT_FOUND.into_response(), "another service"),
        (|| StatusCode::UNAUTHORIZED.into_response(), "unauthorized"),
        (|| StatusCode::NO_CONTENT.into_response(), "no content"),
        (|| (StatusCode::CREATED, "[]").into_response(), "201 instead of 200"),
        (|| Redirect::temporary("/elsewhere").into_response(), "a redirect"),
        (|| StatusCode::BAD_REQUEST.into_response(), "a 400 without a problem"),
        (|| (StatusCode::BAD_REQUEST, "{\"errors\": []}").into_response(), "a 400 that is not a problem"),
        (
            || {
                let problem = r#"{"type": "urn:problem-type:not-found", "title": "", "status": 400, "detail": "", "requestId": "", "error": ""}"#;
                (StatusCode::BAD_REQUEST, problem).into_response()
            },
            "a 400 that names no parameter",
        ),
        (
            || (StatusCode::NOT_FOUND, [("content-type", "text/plain")], "default backend - 404").into_response(),
            "the page of a gateway",
        ),
        (|| ([("content-type", "text/html")], "<!doctype html><p>Sign in").into_response(), "a page with 200"),
        (|| "".into_response(), "an empty body"),
        (|| "{}".into_response(), "an object"),
        (|| r#"{"users": []}"#.into_response(), "a list in an object"),
        (|| "null".into_response(), "null"),
        (|| "\"[]\"".into_response(), "a string"),
        (|| "<html>".into_response(), "garbage"),
        (|| "[{\"id\": 1}".into_response(), "half a list"),
        (|| "[] []".into_response(), "two lists"),
        (|| b"[\"\xff\"]".into_response(), "not UTF-8"),
    ];
    for (failure, why) in failures {
        println!("{why}");
        let (shop, _) = shop_with_users(failure).await;
        expect_no_users(shop.get("/users").await, why);
        expect_no_users(shop.get("/api/users?limit=2").await, why);
        shop.get("/products").await.expect(200);
    }
}

#[tokio::test]
async fn serves_everything_but_users_when_the_peer_is_dead() {
    let shop = Shop::with_users(dead_peer().await, &generous_timeouts()).await;
    expect_no_users(shop.get("/users").await, "nothing listens there");
    shop.get("/products").await.expect(200);
    shop.reserve(&crate::support::order(1), &[(1, 1)]).await.expect(201);
}

#[tokio::test]
async fn returns_503_when_the_peer_does_not_finish_in_time() {
    let silent = Router::new().fallback(async || future::pending::<()>().await);
    let stalled = Router::new().fallback(async || {
        let rest = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        Body::from_stream(rest)
    });
    for (users, why) in [(silent, "no response"), (stalled, "a body that does not end")] {
        let short_timeout = PeerSettings { timeout: Duration::from_millis(100), ..generous_timeouts() };
        let shop = Shop::with_users(stub_peer(users).await, &short_timeout).await;
        let response = time::timeout(MINUTE / 2, shop.get("/users"))
            .await
            .expect("a response long before the request limit of a minute");
        expect_no_users(response, why);
    }
}

#[tokio::test]
async fn returns_503_for_a_list_above_the_size_limit() {
    let settings = PeerSettings { max_answer_bytes: 1000, ..generous_timeouts() };
    for (length, status) in [(1000, 200), (1001, 503)] {
        let (users, _) = users_answering(move || format!("[\"{}\"]", "x".repeat(length - 4))).await;
        let response = Shop::with_users(users, &settings).await.get("/users").await;
        match status {
            200 => assert_eq!(response.expect(200).body.len(), length),
            _ => expect_no_users(response, "one byte too many"),
        }
    }
}

#[tokio::test]
async fn passes_on_the_field_errors_of_the_peer() {
    let errors = json!([
        {"parameter": "limit", "detail": "must be an integer from 1 to 1000"},
        {"parameter": "after", "detail": "must be an integer", "actual": [1, 2]},
    ]);
    let theirs = errors.clone();
    let rejection = move || {
        let problem = json!({"type": "urn:problem-type:invalid-request", "title": "Invalid request", "status": 400,
            "detail": "theirs", "requestId": "theirs", "error": "theirs", "errors": theirs});
        (StatusCode::BAD_REQUEST, [("content-type", "application/problem+json")], problem.to_string())
    };
    let (shop, _) = shop_with_users(rejection).await;
    let problem: Value = shop.get("/users?limit=0&after=x").await.expect_problem(400, "invalid-request");
    assert_eq!(problem["errors"], errors);

    let rejection = r#"{"type": "urn:problem-type:invalid-request", "title": "", "status": 400, "detail": "", "requestId": "",
        "error": "", "errors": [{"parameter": "limit", "detail": "no"}]}"#;
    let (shop, _) = shop_with_users(move || (StatusCode::BAD_REQUEST, rejection)).await;
    expect_bad(shop.get("/api/users?limit=0").await, &["limit"]);
}

#[tokio::test]
async fn reports_the_peer_in_readyz_and_is_ready_without_it() {
    let (users, _) = users_answering(|| StatusCode::INTERNAL_SERVER_ERROR).await; // an error is a response too
    for (users, state) in [(users, "up"), (dead_peer().await, "down")] {
        let shop = Shop::with_users(users, &generous_timeouts()).await;
        let ready = json!({"status": "ready", "peers": {"user-service": state}});
        let is_reported = async || shop.get("/readyz").await.expect(200).json() == ready;
        eventually(&ready.to_string(), is_reported).await; // a slow machine can make the peer look dead for a moment
    }
}

#[tokio::test]
async fn does_not_call_the_peer_for_livez() {
    let (shop, requests) = shop_with_users(|| "[]").await;
    shop.get("/livez").await.expect(200);
    shop.get("/products").await.expect(200);
    assert!(requests.0.lock().unwrap().is_empty());
    shop.get("/users").await.expect(200);
    requests.take_one();
}
