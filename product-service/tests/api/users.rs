//! `GET /users`: the passage to user-service. The real client asks a stub that answers what it is told to.

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

use crate::support::{MINUTE, Shop, expect_bad, next_page, patience};

/// What the stub was asked: the target of each request, and its headers.
#[derive(Clone, Default)]
struct BatchItem(Arc<Mutex<Vec<(String, HeaderMap)>>>);

impl BatchItem {
    /// The one request that came since the last look.
    fn once(&self) -> (String, HeaderMap) {
        let mut asked = self.0.lock().expect("no test panics with it").split_off(0);
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }
}

/// A user-service that answers everything in the same way, and remembers what it was asked.
async fn users_answering<R: IntoResponse>(answer: impl Fn() -> R + Clone + Send + Sync + 'static) -> (Url, BatchItem) {
    let asked = BatchItem::default();
    let heard = asked.clone();
    let handler = async move |request: Request| {
        let heard = &heard.0;
        heard.lock().expect("no test panics with it").push((request.uri().to_string(), request.headers().clone()));
        answer().into_response()
    };
    (stub_peer(Router::new().fallback(handler)).await, asked)
}

/// A shop beside a user-service that answers everything in the same way.
async fn shop_with_users<R: IntoResponse>(answer: impl Fn() -> R + Clone + Send + Sync + 'static) -> (Shop, BatchItem) {
    let (users, asked) = users_answering(answer).await;
    (Shop::beside(users, &patience()).await, asked)
}

#[tokio::test]
async fn the_rows_are_untouched() {
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
        let (shop, _) = shop_with_users(move || sent.clone()).await; // as text/plain, even
        for path in ["/users", "/api/users"] {
            let answer = shop.get(path).await.expect(200);
            assert_eq!(answer.body, rows, "{path}");
            assert_eq!(answer.header("content-type"), "application/json");
        }
    }
}

#[tokio::test]
async fn the_query_is_passed_on_as_it_is() {
    let (shop, asked) = shop_with_users(|| "[]").await;
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
            assert_eq!(asked.once().0, format!("/users{query}"), "from {path}");
        }
    }
    shop.get("/users?username=O'Hara").await.expect(200);
    let (target, _) = asked.once();
    assert_eq!(target.replace("%27", "'"), "/users?username=O'Hara", "or at least what it means");
}

#[tokio::test]
async fn a_link_to_more_users_leads_through_this_service() {
    for link in [
        "</users?limit=2&after=7>; rel=\"next\"",
        "</api/users?limit=2&after=7>; rel=\"next\"",
        "<http://users.internal:3001/v1/users?limit=2&after=7>; rel=\"next\"",
    ] {
        let (shop, asked) = shop_with_users(move || ([("link", link)], "[]")).await;
        for path in ["/users", "/api/users"] {
            let answer = shop.get(&format!("{path}?limit=2")).await.expect(200);
            assert_eq!(answer.header("link"), format!("<{path}?limit=2&after=7>; rel=\"next\""), "of {link}");
            asked.once();
            shop.get(&next_page(&answer)).await.expect(200);
            assert_eq!(asked.once().0, "/users?limit=2&after=7", "it leads to the next page there");
        }
    }
}

#[tokio::test]
async fn there_is_no_link_without_more_users() {
    for link in [None, Some("</users?after=1>; rel=\"prev\""), Some("nonsense"), Some("")] {
        let (shop, _) = shop_with_users(move || (link.map(|link| [("link", link)]), "[]").into_response()).await;
        let answer = shop.get("/users").await.expect(200);
        assert!(!answer.headers.contains_key("link"), "{link:?}: {answer}");
    }
}

#[tokio::test]
async fn a_path_in_the_address_of_the_peer_is_kept() {
    let (root, asked) = users_answering(|| "[]").await;
    for (base, target) in
        [("", "/users"), ("/", "/users"), ("/api", "/api/users"), ("/api/", "/api/users"), ("/a/b", "/a/b/users")]
    {
        let shop = Shop::beside(root.join(base).unwrap(), &patience()).await;
        for path in ["/users", "/api/users"] {
            shop.get(&format!("{path}?limit=2")).await.expect(200);
            assert_eq!(asked.once().0, format!("{target}?limit=2"), "{base}");
        }
    }
}

#[tokio::test]
async fn the_peer_learns_for_which_request_it_works() {
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (shop, asked) = shop_with_users(|| "[]").await;
    let request = shop.request("GET", "/users").header("x-request-id", "abc-1").header("traceparent", TRACEPARENT);
    let answer = request.header("tracestate", "vendor=1").send().await.expect(200);
    let (_, headers) = asked.once();
    assert_eq!((answer.header("x-request-id"), &headers["x-request-id"]), ("abc-1", &"abc-1".parse().unwrap()));
    assert_eq!(
        (&headers["traceparent"], &headers["tracestate"]),
        (&TRACEPARENT.parse().unwrap(), &"vendor=1".parse().unwrap())
    );

    let answer = shop.get("/users").await.expect(200);
    let (_, headers) = asked.once();
    assert_eq!(headers["x-request-id"], answer.header("x-request-id"), "one was made");
    assert!(headers.contains_key("traceparent"), "a trace begins here: {headers:?}");
}

/// Checks that users cannot be had, and that the client is told no more than that.
#[track_caller]
fn has_no_users(answer: Received, why: &str) {
    let problem = answer.expect_problem(503, "peer-unavailable");
    assert_eq!(problem["error"], "Error fetching users", "{why}");
    let members: HashSet<&str> = problem.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(members, HashSet::from(["type", "title", "status", "detail", "requestId", "error"]), "{why}: {problem}");
}

/// One way in which a user-service can fail to answer with users.
type Failure = fn() -> Response;

#[tokio::test]
async fn without_a_list_from_the_peer_there_are_no_users() {
    let failures: [(Failure, &str); 19] = [
        (|| StatusCode::INTERNAL_SERVER_ERROR.into_response(), "it is broken"),
        (|| (StatusCode::INTERNAL_SERVER_ERROR, "[]").into_response(), "a list does not make up for that"),
        (|| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "60")]).into_response(), "it is overloaded"),
        (|| StatusCode::NOT_FOUND.into_response(), "it is no user-service"),
        (|| StatusCode::UNAUTHORIZED.into_response(), "it does not trust us"),
        (|| StatusCode::NO_CONTENT.into_response(), "it has nothing to say"),
        (|| (StatusCode::CREATED, "[]").into_response(), "it misunderstood"),
        (|| Redirect::temporary("/elsewhere").into_response(), "it has moved"),
        (|| StatusCode::BAD_REQUEST.into_response(), "it refuses, and does not say why"),
        (|| (StatusCode::BAD_REQUEST, "{\"errors\": []}").into_response(), "or not as a problem"),
        (|| "".into_response(), "nothing"),
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
        has_no_users(shop.get("/users").await, why);
        has_no_users(shop.get("/api/users?limit=2").await, why);
        shop.get("/products").await.expect(200);
    }
}

#[tokio::test]
async fn without_the_peer_there_are_no_users_and_all_the_rest() {
    let shop = Shop::beside(dead_peer().await, &patience()).await;
    has_no_users(shop.get("/users").await, "nobody is there");
    shop.get("/products").await.expect(200);
    shop.take(&crate::support::order(1), &[(1, 1)]).await.expect(201);
}

#[tokio::test]
async fn a_peer_that_does_not_finish_is_not_waited_for() {
    let silent = Router::new().fallback(async || future::pending::<()>().await);
    let begun = Router::new().fallback(async || {
        let rest = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        Body::from_stream(rest)
    });
    for (users, why) in [(silent, "it says nothing"), (begun, "it begins")] {
        let impatience = PeerSettings { timeout: Duration::from_millis(100), ..patience() };
        let shop = Shop::beside(stub_peer(users).await, &impatience).await;
        let answer = time::timeout(MINUTE / 2, shop.get("/users")).await.expect("the request itself has a minute");
        has_no_users(answer, why);
    }
}

#[tokio::test]
async fn no_more_users_are_taken_than_fit() {
    let settings = PeerSettings { max_answer_bytes: 1000, ..patience() };
    for (length, status) in [(1000, 200), (1001, 503)] {
        let (users, _) = users_answering(move || format!("[\"{}\"]", "x".repeat(length - 4))).await;
        let answer = Shop::beside(users, &settings).await.get("/users").await;
        match status {
            200 => assert_eq!(answer.expect(200).body.len(), length),
            _ => has_no_users(answer, "one byte too many"),
        }
    }
}

#[tokio::test]
async fn a_question_that_the_peer_finds_bad_is_bad_here() {
    let errors = json!([
        {"parameter": "limit", "detail": "must be an integer from 1 to 1000"},
        {"parameter": "after", "detail": "must be an integer", "actual": [1, 2]},
    ]);
    let told = errors.clone();
    let refusal = move || {
        let problem = json!({"type": "urn:problem-type:invalid-request", "title": "Invalid request", "status": 400,
            "detail": "theirs", "requestId": "theirs", "error": "theirs", "errors": told});
        (StatusCode::BAD_REQUEST, [("content-type", "application/problem+json")], problem.to_string())
    };
    let (shop, _) = shop_with_users(refusal).await;
    let problem: Value = shop.get("/users?limit=0&after=x").await.expect_problem(400, "invalid-request");
    assert_eq!(problem["errors"], errors);

    let refusal = r#"{"type": "urn:problem-type:invalid-request", "title": "", "status": 400, "detail": "", "requestId": "",
        "error": "", "errors": [{"parameter": "limit", "detail": "no"}]}"#;
    let (shop, _) = shop_with_users(move || (StatusCode::BAD_REQUEST, refusal)).await;
    expect_bad(shop.get("/api/users?limit=0").await, &["limit"]);
}

#[tokio::test]
async fn readyz_tells_whether_the_peer_is_up_and_is_ready_either_way() {
    let (users, _) = users_answering(|| StatusCode::INTERNAL_SERVER_ERROR).await; // which is an answer
    for (users, state) in [(users, "up"), (dead_peer().await, "down")] {
        let shop = Shop::beside(users, &patience()).await;
        let ready = json!({"status": "ready", "peers": {"user-service": state}});
        let is_so = async || shop.get("/readyz").await.expect(200).json() == ready;
        eventually(&ready.to_string(), is_so).await; // half a second of silence can also be this machine's fault
    }
}

#[tokio::test]
async fn livez_asks_nobody() {
    let (shop, asked) = shop_with_users(|| "[]").await;
    shop.get("/livez").await.expect(200);
    shop.get("/products").await.expect(200);
    assert!(asked.0.lock().unwrap().is_empty());
    shop.get("/users").await.expect(200);
    asked.once();
}
