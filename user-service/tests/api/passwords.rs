//! A password never leaves the service again: in no answer, and in no line of its log.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use testing::{Client, Received, Sending};
use tracing_subscriber::filter::LevelFilter;

use crate::support::service;

/// Every password of these tests has it inside.
const CANARY: &str = "31415926";

/// The log of the whole process, from the first test here on.
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

/// Sends a request with a password in it; neither the answer nor the log has any of it, nor of its hash.
async fn told(request: Sending) -> Received {
    let received = request.send().await;
    let log = String::from_utf8_lossy(&log()).into_owned();
    for text in [received.to_string(), log] {
        assert!(!text.contains(CANARY) && !text.contains("argon2"), "a password in: {text}");
    }
    received
}

/// A service that logs all it can.
async fn chatty_service() -> Client {
    let lines = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(|| Log);
    let _ = lines.try_init(); // it was this module who did so, if someone did
    service().await
}

#[tokio::test]
async fn a_password_is_in_no_answer_of_the_life_of_an_account() {
    let client = chatty_service().await;
    let account = json!({"username": "ada", "email": "ada@example.com", "password": format!("!{CANARY}!")});
    told(client.request("POST", "/users").json(&account)).await.expect(201);
    for path in ["/users/1", "/users", "/users?ids=1", "/users?username=ada", "/api/users/1", "/metrics"] {
        told(client.request("GET", path)).await.expect(200);
    }
    let change = json!({"password": format!("?{CANARY}?")});
    told(client.request("PATCH", "/users/1").json(&change)).await.expect(200);
    told(client.request("GET", "/users/1")).await.expect(200);
    told(client.request("POST", "/users").json(&account)).await.expect_problem(409, "username-taken");
    told(client.request("DELETE", "/users/1")).await.expect(204);
    told(client.request("PATCH", "/users/1").json(&change)).await.expect_problem(404, "not-found");
    assert!(String::from_utf8_lossy(&log()).contains("/users/{id}"), "the log was read");
}

#[tokio::test]
async fn a_refusal_does_not_repeat_the_password_that_it_refuses() {
    let client = chatty_service().await;
    told(client.request("POST", "/users").json(&json!({"name": "Ada"}))).await.expect(201);
    for password in [
        json!(CANARY.repeat(17)),
        json!(CANARY.parse::<u64>().unwrap()),
        json!(CANARY.parse::<f64>().unwrap() / 1e8),
        json!([CANARY]),
        json!({ CANARY: CANARY }),
    ] {
        for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
            let body = json!({"name": "Ada", "password": password});
            told(client.request(method, path).json(&body)).await.expect_invalid(&["/password"]);
        }
    }
    let good = format!("!{CANARY}!");
    let elsewhere = json!({"name": "", "email": "ada", "password": good});
    told(client.request("POST", "/users").json(&elsewhere)).await.expect_invalid(&["/name", "/email"]);
    let twice = format!("{{\"name\": \"Ada\", \"password\": \"{good}\", \"password\": \"{good}\"}}");
    told(client.request("POST", "/users").bytes("application/json", twice)).await.expect_invalid(&["/password"]);
    let broken = format!("{{\"name\": \"Ada\", \"password\": \"{good}\"");
    told(client.request("POST", "/users").bytes("application/json", broken))
        .await
        .expect_problem(400, "malformed-json");
    let form = format!("name=Ada&password={good}");
    let form = client.request("POST", "/users").bytes("application/x-www-form-urlencoded", form);
    told(form).await.expect_problem(415, "unsupported-media-type");
    told(client.request("GET", &format!("/users?password={good}&limit=0"))).await.expect(400);
}

#[tokio::test]
async fn a_password_may_be_any_text_of_its_length() {
    let client = service().await;
    for password in ["        ", "\0\0\0\0\0\0\0\0", "ππππππππ", "\n\t\"\\\u{7f}\u{85}🦀e\u{301}"] {
        client.post("/users", json!({"name": "Ada", "password": password})).await.expect(201);
    }
}
