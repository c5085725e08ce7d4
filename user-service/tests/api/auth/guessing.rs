//! Guesses of passwords are limited, for each account and for each client address.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chassis::config::Settings;
use futures_util::future::join_all;
use serde_json::json;
use testing::Received;
use user_service::password::{Hasher, Password};

use super::{PASSWORD, Service, Setup, new_key};

const WRONG: &str = "another password";

/// Declares a clock that stands still until `turn` turns it, in seconds.
macro_rules! clock {
    ($clock:ident, $turn:ident) => {
        static SECONDS: AtomicU64 = AtomicU64::new(0);
        fn $clock() -> Instant {
            static START: LazyLock<Instant> = LazyLock::new(Instant::now);
            *START + Duration::from_secs(SECONDS.load(Ordering::Relaxed))
        }
        let $turn = |seconds: u64| SECONDS.fetch_add(seconds, Ordering::Relaxed);
    };
}

fn expect_wait(response: Received, seconds: &str) {
    assert_eq!(response.header("retry-after"), seconds, "{response}");
    response.expect_problem(429, "too-many-attempts");
}

#[tokio::test]
async fn makes_an_account_wait_after_failures_and_never_locks_it() {
    clock!(clock, turn);
    let service = Setup { clock, ..Setup::signing_with(&new_key()) }.start().await;
    service.sign_up("ada").await;
    for _ in 0..5 {
        service.sign_in("ada", WRONG).await.expect_problem(401, "invalid-credentials");
    }
    for seconds in [1, 2, 4] {
        let hashes = service.hasher.done();
        for password in [WRONG, PASSWORD] {
            expect_wait(service.sign_in("ADA", password).await, &seconds.to_string());
        }
        let by_email = json!({"email": "ada@example.com", "password": PASSWORD});
        expect_wait(service.client.post("/sessions", by_email).await, &seconds.to_string());
        assert_eq!(service.hasher.done(), hashes, "no password is compared");
        turn(seconds);
        service.sign_in("ada", WRONG).await.expect(401);
    }
    turn(8);
    service.sign_in("ada", PASSWORD).await.expect(200);
    for _ in 0..4 {
        service.sign_in("ada", WRONG).await.expect(401);
    }
    service.sign_in("ada", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn limits_guesses_at_an_unknown_account_alike() {
    clock!(clock, turn);
    let service = Setup { clock, ..Setup::signing_with(&new_key()) }.start().await;
    for name in ["Eve", "EVE", "ｅｖｅ", "eve", "eve"] {
        service.sign_in(name, WRONG).await.expect(401);
    }
    expect_wait(service.sign_in("eve", WRONG).await, "1");
    service.sign_in("mallory", WRONG).await.expect(401);
    turn(1);
    service.sign_in("eve", WRONG).await.expect(401);
    expect_wait(service.sign_in("eve", WRONG).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn compares_five_of_a_hundred_concurrent_guesses() {
    for name in ["ada", "eve"] {
        let service = Setup::signing_with(&new_key()).start().await;
        service.sign_up("ada").await;
        let hashes = service.hasher.done();
        let answers = join_all((0..100).map(|_| service.sign_in(name, WRONG))).await;
        let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!((count(401), count(429)), (5, 95), "{name}");
        assert_eq!(service.hasher.done(), hashes + 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_in_concurrently_with_the_right_password() {
    let service = Setup::signing_with(&new_key()).start().await;
    service.sign_up("ada").await;
    for answer in join_all((0..20).map(|_| service.sign_in("ada", PASSWORD))).await {
        answer.expect(200);
    }
}

async fn sign_in_from(service: &Service, peer: &str, forwarded: &str, username: &str) -> Received {
    let peer: SocketAddr = format!("{peer}:4711").parse().expect("an address");
    let body = json!({"username": username, "password": WRONG});
    service
        .client
        .request("POST", "/sessions")
        .from_peer(peer)
        .header("x-forwarded-for", forwarded)
        .json(&body)
        .send()
        .await
}

#[tokio::test]
async fn limits_the_failures_from_one_client_address() {
    clock!(clock, turn);
    let mut setup = Setup { clock, ..Setup::signing_with(&new_key()) };
    setup.settings = Settings { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..setup.settings };
    let service = setup.start().await;
    for number in 0..50 {
        let forwarded = format!("192.0.2.{number}, 198.51.100.7"); // the client made up the first address
        let answer = sign_in_from(&service, "10.0.0.1", &forwarded, &format!("user{number}")).await;
        answer.expect_problem(401, "invalid-credentials");
    }
    let hashes = service.hasher.done();
    expect_wait(sign_in_from(&service, "10.0.0.2", "198.51.100.7", "one").await, "5");
    expect_wait(sign_in_from(&service, "198.51.100.7", "192.0.2.1", "one").await, "5");
    assert_eq!(service.hasher.done(), hashes);
    sign_in_from(&service, "10.0.0.1", "198.51.100.8", "one").await.expect(401);
    turn(5);
    sign_in_from(&service, "198.51.100.7", "", "one").await.expect(401);
    expect_wait(sign_in_from(&service, "198.51.100.7", "", "one").await, "5");
}

#[tokio::test]
async fn counts_no_attempt_that_was_rejected_for_overload() {
    let hasher = Hasher::new(1, 0);
    let service = Setup { hasher: hasher.clone(), ..Setup::signing_with(&new_key()) }.start().await;
    service.sign_up("ada").await;
    let busy = hasher.hash_optional(Password::parse(PASSWORD.to_owned()).ok());
    let rejected = async {
        for _ in 0..10 {
            service.sign_in("ada", WRONG).await.expect_problem(503, "overloaded");
        }
    };
    let (hashed, ()) = tokio::join!(busy, rejected);
    assert!(hashed.is_ok());
    service.sign_in("ada", PASSWORD).await.expect(200);
}
