//! No response and no line of the log contains a password.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use testing::{Client, Received, Sending};
use tracing_subscriber::filter::LevelFilter;

use crate::auth::{PASSWORD, Setup, new_key};
use crate::support::service;

/// A part of every password in these tests.
const CANARY: &str = "31415926";

/// The log of the process, from the first of these tests on.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        log().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log() -> MutexGuard<'static, Vec<u8>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a request, and checks that neither the response nor the log contains the password or its hash.
async fn send(request: Sending) -> Received {
    let received = request.send().await;
    let log = String::from_utf8_lossy(&log()).into_owned();
    for text in [received.to_string(), log] {
        assert!(!text.contains(CANARY) && !text.contains("argon2"), "a password is in {text}");
    }
    received
}

/// Returns a client of a service that logs at every level.
async fn service_with_full_log() -> Client {
    let lines = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(|| Log);
    let _ = lines.try_init(); // it fails if another test of this module has set it up
    service().await
}

#[tokio::test]
async fn never_shows_a_password_in_the_life_of_an_account() {
    let client = service_with_full_log().await;
    let account = json!({"username": "ada", "email": "ada@example.com", "password": format!("!{CANARY}!")});
    send(client.request("POST", "/users").json(&account)).await.expect(201);
    for path in ["/users/1", "/users", "/users?ids=1", "/users?username=ada", "/api/users/1", "/metrics"] {
        send(client.request("GET", path)).await.expect(200);
    }
    let change = json!({"password": format!("?{CANARY}?")});
    send(client.request("PATCH", "/users/1").json(&change)).await.expect(200);
    send(client.request("GET", "/users/1")).await.expect(200);
    send(client.request("POST", "/users").json(&account)).await.expect_problem(409, "username-taken");
    send(client.request("DELETE", "/users/1")).await.expect(204);
    send(client.request("PATCH", "/users/1").json(&change)).await.expect_problem(404, "not-found");
    assert!(String::from_utf8_lossy(&log()).contains("/users/{id}"), "the log has the requests");
}

#[tokio::test]
async fn does_not_repeat_a_rejected_password() {
    let client = service_with_full_log().await;
    send(client.request("POST", "/users").json(&json!({"name": "Ada"}))).await.expect(201);
    for password in [
        json!(CANARY.repeat(17)),
        json!(CANARY.parse::<u64>().unwrap()),
        json!(CANARY.parse::<f64>().unwrap() / 1e8),
        json!([CANARY]),
        json!({ CANARY: CANARY }),
    ] {
        for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
            let body = json!({"name": "Ada", "password": password});
            send(client.request(method, path).json(&body)).await.expect_invalid(&["/password"]);
        }
    }
    let good = format!("!{CANARY}!");
    let elsewhere = json!({"name": "", "email": "ada", "password": good});
    send(client.request("POST", "/users").json(&elsewhere)).await.expect_invalid(&["/name", "/email"]);
    let twice = format!("{{\"name\": \"Ada\", \"password\": \"{good}\", \"password\": \"{good}\"}}");
    send(client.request("POST", "/users").bytes("application/json", twice)).await.expect_invalid(&["/password"]);
    let broken = format!("{{\"name\": \"Ada\", \"password\": \"{good}\"");
    send(client.request("POST", "/users").bytes("application/json", broken))
        .await
        .expect_problem(400, "malformed-json");
    let form = format!("name=Ada&password={good}");
    let form = client.request("POST", "/users").bytes("application/x-www-form-urlencoded", form);
    send(form).await.expect_problem(415, "unsupported-media-type");
    send(client.request("GET", &format!("/users?password={good}&limit=0"))).await.expect(400);
}

#[tokio::test]
async fn never_shows_a_password_or_a_token_in_a_sign_in() {
    service_with_full_log().await;
    let pem = new_key();
    let service = Setup { admins: &["root"], ..Setup::signing_with(&pem) }.start().await;
    service.state.clone().create_admins().await;
    assert!(PASSWORD.contains(CANARY));
    service.sign_up("ada").await;
    let sign_in = |body: Value| send(service.client.request("POST", "/sessions").json(&body));
    let mut tokens = Vec::new();
    for name in ["root", "ada"] {
        let session = sign_in(json!({"username": name, "password": PASSWORD})).await.expect(200).json();
        tokens.push(session["accessToken"].as_str().unwrap().to_owned());
    }
    for name in ["root", "eve"] {
        for _ in 0..5 {
            sign_in(json!({"username": name, "password": format!("!{CANARY}!")})).await.expect(401);
        }
        sign_in(json!({"username": name, "password": PASSWORD})).await.expect_problem(429, "too-many-attempts");
    }
    sign_in(json!({"username": "ada", "password": [PASSWORD]})).await.expect_invalid(&["/password"]);
    sign_in(json!({"username": "ada", "password": CANARY.repeat(17)})).await.expect_invalid(&["/password"]);
    sign_in(json!({"username": "ada", "email": "a@b", "password": PASSWORD})).await.expect_invalid(&["/email"]);
    let read = |token: &str| send(service.client.request("GET", "/users").token(token));
    read(&tokens[0]).await.expect(200);
    read(&tokens[1]).await.expect_problem(403, "insufficient-scope");
    tokens.push(format!("{}x", tokens[1]));
    let rejected = read(&tokens[2]).await.expect(401).to_string();
    let log = String::from_utf8_lossy(&log()).into_owned();
    let key = pem.lines().nth(1).expect("the second line of a PEM file");
    for secret in tokens.iter().flat_map(|token| token.split('.')).chain([key]) {
        assert!(!log.contains(secret) && !rejected.contains(secret), "a token or a key is in the log");
    }
    assert!(log.contains("/sessions") && log.contains("admin created"), "the log has the sign-ins");
}

#[tokio::test]
async fn accepts_any_text_of_the_right_length_as_a_password() {
    let client = service().await;
    for password in ["        ", "\0\0\0\0\0\0\0\0", "ππππππππ", "\n\t\"\\\u{7f}\u{85}🦀e\u{301}"] {
        client.post("/users", json!({"name": "Ada", "password": password})).await.expect(201);
    }
}
