//! Sign-in: who may make which call, and whose token user-service gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde_json::{Value, json};
use testing::{Received, TestIssuer, eventually, stub_peer};
use tokio::sync::{Mutex, Semaphore};

use crate::support::{LAPTOP, Shop, lines, order};

const PROBLEM_JSON: [(&str, &str); 1] = [("content-type", "application/problem+json")];

type Answer = fn(&str) -> Response;

/// A user-service that records the tokens it gets, and answers by them.
#[derive(Clone)]
struct StubUsers {
    tokens: Arc<Mutex<Vec<Option<String>>>>,
    /// One permit for each answer.
    answers: Arc<Semaphore>,
}

impl StubUsers {
    /// Starts it. Returns it and a shop that calls it.
    async fn start(
        issuer: &TestIssuer,
        answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static,
    ) -> (Self, Shop) {
        let stub = Self { tokens: Arc::default(), answers: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) };
        let (tokens, answers) = (Arc::clone(&stub.tokens), Arc::clone(&stub.answers));
        let handler = async move |request: Request| {
            let token = request.headers().get("authorization").map(|token| token.to_str().expect("text").to_owned());
            let text = token.clone().unwrap_or_default();
            tokens.lock().await.push(token);
            answers.acquire().await.expect("open").forget();
            answer(&text)
        };
        let url = stub_peer(Router::new().fallback(handler)).await;
        (stub, Shop::with_sign_in(issuer, url).await)
    }

    async fn calls(&self) -> usize {
        self.tokens.lock().await.len()
    }
}

async fn send(shop: &Shop, call: (&str, &str), authorization: Option<&str>, body: Option<&Value>) -> Received {
    let request = shop.request(call.0, call.1);
    let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
    body.into_iter().fold(request, |request, body| request.json(body)).send().await
}

#[tokio::test]
async fn lets_each_caller_make_only_its_calls() {
    let issuer = TestIssuer::default();
    let (_, shop) = StubUsers::start(&issuer, |_| "[]".into_response()).await;
    let service = issuer.order_service("product-service");
    let foreign = issuer.order_service("user-service"); // for another service
    let stranger = issuer.bearer(json!({"sub": "1"}));
    let callers =
        [None, Some(issuer.user(1)), Some(issuer.admin(7)), Some(service.clone()), Some(foreign), Some(stranger)];
    let product = || Some(json!({"name": "Desk", "price": 1, "stock": 5}));
    let reservation = || Some(json!({"lines": lines(&[(LAPTOP, 1)])}));
    let admin = |status: u16| [401, 403, status, 403, 401, 403];
    let orders = |status: u16| [401, 403, 403, status, 401, 403];
    // For nobody, a user, an admin, order-service, order-service with a token for another service, a user without an account.
    let table: [(&str, Option<Value>, [u16; 6]); 13] = [
        ("GET /products", None, [200; 6]),
        ("GET /products/{id}", None, [200; 6]),
        ("POST /products", product(), admin(201)),
        ("PATCH /products/{id}", product(), admin(200)),
        ("DELETE /products/{id}", None, admin(204)),
        ("GET /users", None, admin(200)),
        ("POST /reservations", Some(json!([{"orderId": order(1), "lines": lines(&[(LAPTOP, 1)])}])), orders(200)),
        ("DELETE /reservations", None, orders(204)),
        ("PUT /reservations/{orderId}", reservation(), orders(201)),
        ("GET /reservations/{orderId}", None, [401, 403, 200, 200, 401, 403]),
        ("DELETE /reservations/{orderId}", None, orders(204)),
        ("GET /livez", None, [200; 6]),
        ("GET /readyz", None, [200; 6]),
    ];
    let mut next = 1000;
    for (call, body, expected) in &table {
        let (method, template) = call.split_once(' ').expect("a method and a path");
        for root in ["", "/api"] {
            for (authorization, expected) in callers.iter().zip(expected) {
                next += 1;
                let added = send(&shop, ("POST", "/products"), Some(&issuer.admin(7)), product().as_ref()).await;
                let added = added.expect(201).json()["id"].to_string();
                if *call == "GET /reservations/{orderId}" {
                    let path = format!("/reservations/{}", order(next));
                    send(&shop, ("PUT", &path), Some(&service), reservation().as_ref()).await.expect(201);
                }
                let before = shop.inventory().await;
                let path = template.replace("{id}", &added).replace("{orderId}", &order(next));
                let path = if *call == "DELETE /reservations" { format!("{path}?ids={}", order(next)) } else { path };
                let path = if template.ends_with('z') { path } else { format!("{root}{path}") };
                let response = send(&shop, (method, &path), authorization.as_deref(), body.as_ref()).await;
                assert_eq!(response.status, *expected, "{method} {path} {authorization:?} {response}");
                let challenge = response.header("www-authenticate").to_owned();
                match expected {
                    401 => _ = response.expect_problem(401, "unauthenticated"),
                    403 => _ = response.expect_problem(403, "insufficient-scope"),
                    _ => continue,
                }
                let metadata = "resource_metadata=\"http://test/.well-known/oauth-protected-resource\"";
                assert!(challenge.ends_with(metadata), "{challenge}");
                assert_eq!(shop.inventory().await, before, "a rejected call changes nothing");
            }
        }
    }

    let document = shop.get("/openapi.json").await.expect(200).json();
    let expected: BTreeSet<String> = table.iter().map(|(call, ..)| (*call).to_owned()).collect();
    assert_eq!(testing::documented_calls(&document), expected, "each documented call is in the table");
}

#[tokio::test]
async fn passes_on_the_token_of_the_caller_and_the_answer_to_it() {
    let issuer = TestIssuer::default();
    let rejections: [(Answer, u16, &str); 6] = [
        (|_| (StatusCode::UNAUTHORIZED, PROBLEM_JSON, "{}").into_response(), 401, "unauthenticated"),
        (|_| (StatusCode::FORBIDDEN, PROBLEM_JSON, "{}").into_response(), 403, "insufficient-scope"),
        (|_| (StatusCode::UNAUTHORIZED, "of a gateway").into_response(), 503, "peer-unavailable"),
        (|_| (StatusCode::FORBIDDEN, "of a gateway").into_response(), 503, "peer-unavailable"),
        (|_| (StatusCode::SERVICE_UNAVAILABLE, PROBLEM_JSON, "{}").into_response(), 503, "peer-unavailable"),
        (|_| (StatusCode::NOT_FOUND, PROBLEM_JSON, "{}").into_response(), 503, "peer-unavailable"),
    ];
    for (answer, status, slug) in rejections {
        let (stub, shop) = StubUsers::start(&issuer, answer).await;
        let admin = issuer.admin(7);
        let response = send(&shop, ("GET", "/users?limit=2"), Some(&admin), None).await;
        let challenge = response.header("www-authenticate").to_owned();
        let error = match status {
            401 => "Bearer error=\"invalid_token\", resource_metadata=\"http://test/",
            403 => "Bearer error=\"insufficient_scope\", resource_metadata=\"http://test/",
            _ => "",
        };
        assert!(challenge.starts_with(error) && challenge.is_empty() == error.is_empty(), "{challenge}");
        response.expect_problem(status, slug);
        assert_eq!(*stub.tokens.lock().await, [Some(admin)]);
    }
}

#[tokio::test]
async fn passes_on_no_token_while_sign_in_is_off() {
    let (stub, _) = StubUsers::start(&TestIssuer::default(), |_| "[]".into_response()).await;
    let tokens = Arc::clone(&stub.tokens);
    let handler = async move |request: Request| {
        tokens.lock().await.push(request.headers().get("authorization").map(|_| String::new()));
        (StatusCode::UNAUTHORIZED, PROBLEM_JSON, "{}")
    };
    let url = stub_peer(Router::new().fallback(handler)).await;
    let shop = Shop::with_users(url, &crate::support::generous_timeouts()).await;
    let response = send(&shop, ("GET", "/users"), Some("Bearer of-another-system"), None).await;
    response.expect_problem(503, "peer-unavailable");
    assert_eq!(*stub.tokens.lock().await, [None]);
}

/// Requests with the same query share a call, but only those of one caller.
#[tokio::test]
async fn shares_no_answer_between_two_callers() {
    let issuer = TestIssuer::default();
    let (first, second) = (issuer.admin(1), issuer.admin(2)); // the second one is no admin any more
    let allowed = first.clone();
    let (stub, shop) = StubUsers::start(&issuer, move |token| match token == allowed {
        true => "[1]".into_response(),
        false => (StatusCode::FORBIDDEN, PROBLEM_JSON, "{}").into_response(),
    })
    .await;

    // The first call occupies user-service, so that all others wait for the next ones.
    stub.answers.forget_permits(Semaphore::MAX_PERMITS);
    let get = |token: &str| {
        let request = shop.request("GET", "/users?limit=3").header("authorization", token);
        tokio::spawn(request.send())
    };
    let running: Vec<_> = std::iter::once(get(&first)).collect();
    eventually("the first call", async || stub.calls().await == 1).await;
    let waiting: Vec<_> = (0..10).map(|n| get(if n % 2 == 0 { &first } else { &second })).collect();
    tokio::task::yield_now().await;
    stub.answers.add_permits(100);
    let responses = join_all(running.into_iter().chain(waiting)).await;
    let statuses: Vec<u16> =
        responses.into_iter().map(|response| response.expect("no panic").status.as_u16()).collect();
    assert_eq!(statuses, [200, 200, 403, 200, 403, 200, 403, 200, 403, 200, 403]);
    let tokens = stub.tokens.lock().await;
    assert_eq!(tokens.len(), 3, "one call of each caller for the ten that waited");
    for token in [&first, &second] {
        assert!(tokens.contains(&Some(token.clone())));
    }
}
