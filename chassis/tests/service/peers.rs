//! Calling a peer: the real client against a server that does what it is told to, or what a broken one would do.

use std::future;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Redirect;
use axum::routing::{any, get};
use chassis::client::{Peer, PeerError, PeerResponse};
use chassis::config::{PeerSettings, defaults};
use chassis::context::RequestContext;
use chassis::problem::Problem;
use futures_util::FutureExt;
use serde_json::{Value, json};
use testing::{dead_peer, stub_peer, with_timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time;
use url::Url;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const A_WHILE: Duration = Duration::from_millis(100);
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Settings without any time limit that a test comes near.
fn generous_timeouts() -> PeerSettings {
    PeerSettings { connect_timeout: HOUR, timeout: HOUR, ..defaults() }
}

fn peer_at(base: Url, settings: &PeerSettings) -> Peer {
    Peer::new("users", base, settings).expect("a client")
}

/// A client of a peer with these routes.
async fn peer(routes: Router) -> Peer {
    peer_at(stub_peer(routes).await, &generous_timeouts())
}

/// A client of something that answers these bytes to whatever it is sent, and hangs up.
async fn peer_that_says(bytes: &'static str) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(bytes.as_bytes()).await;
        }
    });
    peer_at(Url::parse(&format!("http://{address}")).expect("a URL"), &generous_timeouts())
}

async fn ask(peer: &Peer, path: &str) -> Result<PeerResponse, PeerError> {
    with_timeout("the end of the call", peer.get(path, &RequestContext::background(HOUR))).await
}

/// A route that answers what it was asked.
fn mirror() -> Router {
    Router::new().fallback(any(async |request: Request| {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
        let (headers, body): (serde_json::Map<String, Value>, _) = (headers.collect(), text(&body));
        axum::Json(
            json!({"method": head.method.as_str(), "uri": head.uri.to_string(), "headers": headers, "body": body}),
        )
    }))
}

#[tokio::test]
async fn a_call_says_what_it_is_and_for_which_request() {
    let peer = peer(mirror()).await;
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-request-id", "abc-1"), ("traceparent", TRACEPARENT), ("tracestate", "vendor=1")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let context = RequestContext::from_headers(&headers, HOUR);
    let asked: Value = peer.put("/things/7", &json!({"a": 1}), &context).await.unwrap().json().unwrap();
    assert_eq!(
        (&asked["method"], &asked["uri"], &asked["body"]),
        (&json!("PUT"), &json!("/things/7"), &json!("{\"a\":1}"))
    );
    assert_eq!(asked["headers"]["content-type"], "application/json");
    for (name, value) in &headers {
        assert_eq!(asked["headers"][name.as_str()], value.to_str().unwrap(), "{asked}");
    }
    let asked: Value = peer.get("/things?ids=1,2", &context).await.unwrap().json().unwrap();
    assert_eq!(
        (&asked["method"], &asked["uri"], &asked["body"]),
        (&json!("GET"), &json!("/things?ids=1,2"), &json!(""))
    );
    let asked: Value = peer.delete("/things/7", &context).await.unwrap().json().unwrap();
    assert_eq!((&asked["method"], &asked["uri"]), (&json!("DELETE"), &json!("/things/7")));
}

#[tokio::test]
async fn the_path_of_its_address_is_kept() {
    let root = stub_peer(mirror()).await;
    for (base, uri) in [("", "/users/1"), ("/", "/users/1"), ("/api", "/api/users/1"), ("/a/b/", "/a/b/users/1")] {
        let peer = peer_at(root.join(base).unwrap(), &generous_timeouts());
        let asked: Value = ask(&peer, "/users/1").await.unwrap().json().unwrap();
        assert_eq!(asked["uri"], uri, "{base}");
    }
}

#[tokio::test]
async fn any_status_is_an_answer_and_no_redirect_is_followed() {
    let routes = Router::new()
        .route("/moved", get(async || Redirect::temporary("/elsewhere")))
        .route("/elsewhere", get(async || "nobody should be here"))
        .route("/broken", get(async || (StatusCode::INTERNAL_SERVER_ERROR, "no problem+json")));
    let peer = peer(routes).await;
    let moved = ask(&peer, "/moved").await.unwrap();
    assert_eq!(
        (moved.status, &moved.headers[header::LOCATION]),
        (StatusCode::TEMPORARY_REDIRECT, &HeaderValue::from_static("/elsewhere"))
    );
    let broken = ask(&peer, "/broken").await.unwrap();
    assert_eq!(broken.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(broken.problem().is_none());
    assert!(peer.is_up().await, "404 is an answer too");
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_unreachable_and_the_cause_is_told() {
    let peer = peer_at(dead_peer().await, &generous_timeouts());
    let error = ask(&peer, "/").await.unwrap_err();
    assert!(matches!(&error, PeerError::Unreachable { peer: "users", cause } if cause.contains("refused")), "{error}");
    assert!(!peer.is_up().await);

    let problem = Problem::from(error);
    assert!(problem.cause().is_some_and(|cause| cause.contains("refused")), "{problem:?}");
    let body = problem.body("abc-1");
    assert_eq!((body.status, &*body.r#type), (503, "urn:problem-type:peer-unavailable"));
    assert_eq!(body.detail, "users does not answer", "the cause is for the log");
}

#[tokio::test]
async fn what_is_no_whole_answer_is_none() {
    for (bytes, why) in [
        ("", "it hung up"),
        ("how do you do\r\n\r\n", "it speaks another protocol"),
        ("HTTP/1.1 200 OK\r\ncontent-le", "half a header"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half a body"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "chunks without an end"),
    ] {
        let answer = ask(&peer_that_says(bytes).await, "/").await;
        assert!(matches!(&answer, Err(PeerError::Unreachable { .. })), "{why}: {answer:?}");
    }
}

#[tokio::test]
async fn no_more_of_an_answer_is_taken_than_the_limit() {
    let chunks = || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 100])));
    let routes = Router::new()
        .route("/just", get(async || "x".repeat(1000)))
        .route("/over", get(async || "x".repeat(1001)))
        .route("/endless", get(async move || chunks()));
    let settings = PeerSettings { max_answer_bytes: 1000, ..generous_timeouts() };
    let peer = peer_at(stub_peer(routes).await, &settings);
    assert_eq!(ask(&peer, "/just").await.unwrap().body.len(), 1000);
    for path in ["/over", "/endless"] {
        let answer = ask(&peer, path).await;
        assert!(matches!(&answer, Err(PeerError::TooLarge { limit: 1000, .. })), "{path}: {answer:?}");
    }
}

/// Routes that never finish: one says nothing, one begins.
fn slow() -> Router {
    let begun = || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    Router::new()
        .route("/silent", get(async || future::pending::<()>().await))
        .route("/begun", get(async move || begun()))
}

#[tokio::test]
async fn a_call_has_so_much_time_its_answer_included() {
    let limit = Duration::from_millis(100);
    let peer = peer_at(stub_peer(slow()).await, &PeerSettings { timeout: limit, ..generous_timeouts() });
    for path in ["/silent", "/begun"] {
        let answer = ask(&peer, path).await;
        assert!(
            matches!(&answer, Err(PeerError::TimedOut { limit: given, .. }) if *given == limit),
            "{path}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_call_has_no_more_time_than_the_request_that_it_is_made_for() {
    let peer = peer(slow()).await; // which gives a call an hour
    let left = Duration::from_millis(100);
    for path in ["/silent", "/begun"] {
        let answer = with_timeout("the end of the call", peer.get(path, &RequestContext::background(left))).await;
        assert!(matches!(&answer, Err(PeerError::TimedOut { limit, .. }) if *limit <= left), "{path}: {answer:?}");
    }
    let answer = peer.get("/silent", &RequestContext::background(Duration::ZERO)).await;
    assert!(matches!(&answer, Err(PeerError::NotSent { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_peer_is_told_how_much_time_is_left() {
    let peer = peer_at(stub_peer(mirror()).await, &PeerSettings { timeout: 2 * MINUTE, ..generous_timeouts() });
    for (left, told) in [(MINUTE, MINUTE), (HOUR, 2 * MINUTE)] {
        let asked: Value = peer.get("/", &RequestContext::background(left)).await.unwrap().json().unwrap();
        let ms: u128 = asked["headers"]["x-deadline-ms"].as_str().and_then(|ms| ms.parse().ok()).expect("a number");
        assert!(ms <= told.as_millis() && ms > told.as_millis() / 2, "{ms} ms of {left:?}");
    }
}

/// A hundred clients that do not wait say nothing about the peer that did not answer them.
#[tokio::test]
async fn clients_in_a_hurry_close_no_peer() {
    let peer = peer(slow().route("/", get(async || "well"))).await;
    for _ in 0..100 {
        let answer = peer.get("/silent", &RequestContext::background(Duration::from_millis(1))).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    assert_eq!(ask(&peer, "/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn so_many_calls_wait_for_a_peer_and_the_next_does_not() {
    let peer = peer_at(stub_peer(slow()).await, &PeerSettings { max_in_flight: 2, ..generous_timeouts() });
    let context = RequestContext::background(HOUR);
    let waits = || Box::pin(peer.get("/silent", &context));
    let (mut one, mut two) = (waits(), waits());
    for waiting in [&mut one, &mut two] {
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    let refused = ask(&peer, "/silent").await;
    assert!(matches!(&refused, Err(PeerError::NotSent { .. })), "{refused:?}");
    drop(one);
    assert!(waits().now_or_never().is_none(), "there is a place again");
}

/// Linux drops what asks to be connected when too many wait to be accepted: so a peer behind a dead switch looks.
#[tokio::test]
async fn a_connection_is_waited_for_only_so_long() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = time::timeout(A_WHILE, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    let settings = PeerSettings { connect_timeout: A_WHILE, ..generous_timeouts() };
    let peer = peer_at(Url::parse(&format!("http://{address}")).unwrap(), &settings);
    let answer = time::timeout(100 * A_WHILE, ask(&peer, "/")).await; // by itself it would be given up after half a minute
    assert!(matches!(&answer, Ok(Err(PeerError::Unreachable { .. }))), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_the_contract_does_not_have_says_what_is_wrong_with_it() {
    let peer = peer(Router::new().route("/", get(async || "[1, 2"))).await;
    let answer = ask(&peer, "/").await.unwrap();
    let error = peer.unexpected(&answer, answer.json::<Vec<u32>>().unwrap_err());
    assert!(error.to_string().starts_with("users answered 200 OK: EOF"), "{error}");
}
