//! Start and shutdown of a process, as supervisors, operators and the last clients see them.
//!
//! The chassis does most of it for all three services, so most tests use user-service.

use std::time::{Duration, Instant};

use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, System, USERS, eventually, order};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Much longer than an idle shutdown takes, and much shorter than the drain times in these tests.
const SOON: Duration = Duration::from_secs(5);

async fn user_service(variable: &str, value: impl ToString) -> Service {
    Service::start(Launch::of(USERS).env(variable, value)).await.expect("user-service starts")
}

async fn readiness(service: &Service) -> u16 {
    service.request("GET", "/readyz").try_send().await.map_or(0, |answer| answer.status)
}

#[tokio::test]
async fn drains_after_sigterm_and_exits_with_0() {
    let grace = Duration::from_secs(2);
    let mut service = user_service("DRAIN_SECONDS", grace.as_secs()).await;
    let signalled = Instant::now();
    service.signal(Signal::Terminate).await;

    assert_eq!(eventually(503, || readiness(&service)).await, 503);
    let unready = service.get("/readyz").await;
    assert_eq!(unready.header("connection"), "close", "{unready}");
    unready.expect_problem(503, "draining");
    let served = service.get("/users").await.expect(200);
    assert_eq!(served.header("connection"), "close", "the next request of a client goes to another replica: {served}");

    assert!(service.ends_within(grace + SOON).await.success());
    assert!(signalled.elapsed() >= grace, "it ended after {:?}", signalled.elapsed());
    assert!(service.log().iter().any(|line| line.contains("shutdown requested")), "{:?}", service.log());
}

#[tokio::test]
async fn exits_with_0_immediately_after_ctrl_c() {
    let system = System::start_as(|launch| launch.env("DRAIN_SECONDS", 60)).await.unwrap();
    for mut service in [system.users, system.products, system.orders] {
        service.signal(Signal::Interrupt).await;
        assert!(service.ends_within(SOON).await.success());
    }
}

#[tokio::test]
async fn exits_without_waiting_for_requests_after_a_second_signal() {
    let mut service = user_service("SHUTDOWN_SECONDS", 60).await;
    let mut client = TcpStream::connect(service.address()).await.unwrap();
    client
        .write_all(b"POST /users HTTP/1.1\r\nHost: test\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    client.read_exact(&mut interim).await.unwrap(); // the request is in flight, and its body never comes
    service.signal(Signal::Interrupt).await;
    let closed = eventually(true, async || TcpStream::connect(service.address()).await.is_err()).await;
    assert!(closed, "the first signal has arrived");
    service.signal(Signal::Interrupt).await;
    assert!(!service.ends_within(SOON).await.success(), "a request was left unfinished");
}

#[tokio::test]
async fn answers_a_request_in_flight_after_the_listener_is_closed() {
    let mut service = user_service("DRAIN_SECONDS", 0).await;
    let mut client = TcpStream::connect(service.address()).await.unwrap();
    let head = "POST /users HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 15\r\n";
    client.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).await.unwrap();
    // The server asks for the body, so the request is in flight.
    let mut interim = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    client.read_exact(&mut interim).await.unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&interim));
    client.write_all(br#"{"name""#).await.unwrap();

    service.signal(Signal::Terminate).await;
    let closed = eventually(true, async || TcpStream::connect(service.address()).await.is_err()).await;
    assert!(closed, "no new connection is accepted");
    client.write_all(br#": "Eve"}"#).await.unwrap();

    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap(); // to the end: the server closes the connection
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n") && answer.contains(r#""name":"Eve""#), "{answer}");
    assert!(service.ends_within(SOON).await.success());
}

#[tokio::test]
async fn finishes_an_order_in_flight_before_it_exits() {
    let mut system = System::start_as(|launch| launch.env("PEER_TIMEOUT_SECONDS", 1)).await.unwrap();
    system.users.signal(Signal::Freeze).await; // the order hangs, and its stock is taken
    let end = async {
        assert_eq!(eventually(45, || system.stock(1)).await, 45);
        system.orders.signal(Signal::Interrupt).await;
    };
    let (answer, ()) = tokio::join!(system.orders.post("/orders", order(1, 1, 5)), end);
    answer.expect_problem(503, "peer-unavailable");

    assert!(system.orders.ends_within(SOON).await.success());
    assert_eq!(system.stock(1).await, 50, "the stock is back, and no process is left that could return it later");
}

#[tokio::test]
async fn names_service_address_store_and_peers_in_the_start_up_line() {
    let system = System::start().await;
    for (service, name) in [(&system.users, USERS), (&system.products, PRODUCTS), (&system.orders, ORDERS)] {
        let line = service.start_up_line();
        assert!(line.starts_with(&format!("{name} listens on {}, store: memory", service.url())), "{line}");
        assert!(line.contains(", peers: "), "{line}");
    }
    assert!(system.users.start_up_line().ends_with("peers: none"));
    assert!(system.products.start_up_line().contains(&system.users.url()));
    assert!(system.orders.start_up_line().contains(&system.users.url()));
    assert!(system.orders.start_up_line().contains(&system.products.url()));
}

#[tokio::test]
async fn names_a_bad_setting_and_does_not_start() {
    let bad = [
        (USERS, "PORT", "abc", "no number"),
        (USERS, "PORT", "65536", "beyond the last port"),
        (USERS, "HOST", "localhost", "a name, not an address"),
        (USERS, "DRAIN_SECONDS", "-1", "a negative time"),
        (USERS, "RUST_LOG", "user=loud", "no level of that name"),
        (USERS, "SEED", "perhaps", "no boolean"),
        (USERS, "DATABASE_URL", "mysql://me:secret@db/users", "another database"),
        (PRODUCTS, "USER_SERVICE_URL", "127.0.0.1:3001", "no http://"),
        (ORDERS, "PRODUCT_SERVICE_URL", "http://shop?q=1", "a base URL has no query"),
    ];
    for (service, variable, value, why) in bad {
        let output = Launch::of(service).env(variable, value).output(&[]).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{variable}={value} ({why}) was accepted");
        assert!(errors.starts_with("error: ") && errors.contains(variable), "{variable}={value} ({why}): {errors}");
    }
}

#[tokio::test]
async fn names_a_port_that_is_in_use() {
    let first = user_service("SEED", "false").await;
    let output = Launch::of(USERS).port(first.address().port()).output(&[]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(&format!("PORT={}", first.address().port())), "{errors}");
}
