//! Who may make which call. Every documented call has a row here.

use serde_json::{Value, json};
use testing::Sending;

use super::{PASSWORD, Service, Setup, forge, key, new_key, order_service_token};
use user_service::store;

/// The callers of each row, in its order.
const CALLERS: [&str; 5] = ["nobody", "the user", "another user", "an admin", "order-service"];

/// A call, its body, and which callers may make it. A call may have several rows, with different queries.
const TABLE: &[(&str, &str, [bool; 5])] = &[
    ("GET /users", "", [false, false, false, true, false]),
    ("GET /users?ids=1", "", [false, false, false, true, true]),
    ("GET /users?username=ada", "", [false, false, false, true, false]),
    ("GET /users?username=ada&ids=1", "", [false, false, false, true, false]),
    ("POST /users", r#"{"name": "Eve"}"#, [true; 5]),
    ("GET /users/{id}", "", [false, true, false, true, true]),
    ("PATCH /users/{id}", r#"{"name": "Ada King"}"#, [false, true, false, true, false]),
    ("DELETE /users/{id}", "", [false, true, false, true, false]),
    ("POST /sessions", r#"{"username": "ada", "password": "31415926 is no birthday"}"#, [true; 5]),
    ("GET /livez", "", [true; 5]),
    ("GET /readyz", "", [true; 5]),
];

/// Returns a service with Ada (1) and Bob (2), and the tokens of [`CALLERS`].
async fn service() -> (Service, [Option<String>; 5]) {
    let (pem, service_pem) = (new_key(), new_key());
    let service = Setup::signing_with(&pem).start_over(store::memory(false).await.expect("a store"), &service_pem);
    service.sign_up("ada").await;
    service.client.post("/users", json!({"name": "Bob"})).await.expect(201);
    let user = |id, roles| Some(forge(&key(&pem), id, roles));
    let tokens = [None, user(1, &[]), user(2, &[]), user(3, &["admin"]), Some(order_service_token(&key(&service_pem)))];
    (service, tokens)
}

fn is_health(call: &str) -> bool {
    ["GET /livez", "GET /readyz"].contains(&call)
}

fn request(service: &Service, call: &str, body: &str, token: Option<&String>) -> Sending {
    let (method, path) = call.split_once(' ').expect("a method and a path");
    let request = service.client.request(method, &path.replace("{id}", "1"));
    let request = if body.is_empty() { request } else { request.bytes("application/json", body.to_owned()) };
    match token {
        Some(token) => request.token(token),
        None => request,
    }
}

#[tokio::test]
async fn has_a_row_for_each_documented_call() {
    let (service, _) = service().await;
    let document = service.client.get("/openapi.json").await.expect(200).json();
    let rows = TABLE.iter().filter_map(|row| row.0.split('?').next().map(str::to_owned)).collect();
    assert_eq!(testing::documented_calls(&document), rows, "each documented call has a row, and each row a call");
}

#[tokio::test]
async fn allows_each_call_to_the_callers_of_its_row_only() {
    assert!(TABLE.iter().any(|row| row.1.contains(PASSWORD)));
    for (call, body, allowed) in TABLE {
        for prefix in ["", "/api"] {
            if !prefix.is_empty() && is_health(call) {
                continue; // health is at the root only
            }
            let call = call.replacen(' ', &format!(" {prefix}"), 1);
            for (number, caller) in CALLERS.iter().enumerate() {
                let (service, tokens) = service().await;
                let response = request(&service, &call, body, tokens[number].as_ref()).send().await;
                match (allowed[number], number) {
                    (true, _) => assert!(response.status.is_success(), "{call} by {caller}: {response}"),
                    (false, 0) => {
                        assert!(
                            response.header("www-authenticate").starts_with("Bearer resource_metadata="),
                            "{response}"
                        );
                        response.expect_problem(401, "unauthenticated");
                    }
                    (false, _) => {
                        assert!(
                            response.header("www-authenticate").contains("insufficient_scope"),
                            "{call}: {response}"
                        );
                        response.expect_problem(403, "insufficient-scope");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn documents_who_may_make_each_call() {
    let (service, _) = service().await;
    let document = service.client.get("/openapi.json").await.expect(200).json();
    for (call, _, allowed) in TABLE.iter().filter(|row| !row.0.contains('?') && !is_health(row.0)) {
        let (method, path) = call.split_once(' ').unwrap();
        let operation = &document["paths"][path][method.to_lowercase()];
        let is_public = allowed[0];
        assert_eq!(operation["security"] == Value::Null, is_public, "{call}");
        assert_eq!(operation["responses"]["403"] == Value::Null, is_public, "{call}");
        assert!(operation["description"].as_str().unwrap().contains("While sign-in is on, allowed to: "), "{call}");
    }
}

/// A denied caller learns nothing about the users that exist, and changes nothing.
#[tokio::test]
async fn answers_a_denied_caller_alike_whether_or_not_the_user_exists() {
    let (service, tokens) = service().await;
    for method in ["GET", "PATCH", "DELETE"] {
        for path in ["/users/1", "/users/999", "/users/9223372036854775807"] {
            service.client.request(method, path).token(tokens[2].as_ref().unwrap()).send().await.expect(403);
            service.client.request(method, path).send().await.expect(401);
        }
    }
    service.client.request("GET", "/users/1").token(tokens[1].as_ref().unwrap()).send().await.expect(200);
}
