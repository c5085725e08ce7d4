//! Calls to a peer: the real client against stub servers, working and broken.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use testing::{dead_peer, eventually, stub_peer, with_timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time;
use url::Url;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const A_WHILE: Duration = Duration::from_millis(100);
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Returns settings with timeouts of an hour.
fn generous_timeouts() -> PeerSettings {
    PeerSettings { connect_timeout: HOUR, timeout: HOUR, ..defaults() }
}

fn peer_at(base: Url, settings: &PeerSettings) -> Peer {
    Peer::new("users", base, settings).expect("a client")
}

/// Returns a client of a stub peer with these routes.
async fn peer(routes: Router) -> Peer {
    peer_at(stub_peer(routes).await, &generous_timeouts())
}

/// Returns a client of a server that answers every request with these bytes and closes the connection.
async fn peer_that_sends(bytes: &'static str) -> Peer {
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

async fn get_from(peer: &Peer, path: &str) -> Result<PeerResponse, PeerError> {
    with_timeout("the end of the call", peer.get(path, &RequestContext::background(HOUR))).await
}

/// Returns routes that respond with the request that they received.
fn echo() -> Router {
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
async fn sends_method_path_body_and_the_ids_of_the_request() {
    let peer = peer(echo()).await;
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-request-id", "abc-1"), ("traceparent", TRACEPARENT), ("tracestate", "vendor=1")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let context = RequestContext::from_headers(&headers, HOUR);
    let received: Value = peer.put("/things/7", &json!({"a": 1}), &context).await.unwrap().json().unwrap();
    assert_eq!(
        (&received["method"], &received["uri"], &received["body"]),
        (&json!("PUT"), &json!("/things/7"), &json!("{\"a\":1}"))
    );
    assert_eq!(received["headers"]["content-type"], "application/json");
    for (name, value) in &headers {
        assert_eq!(received["headers"][name.as_str()], value.to_str().unwrap(), "{received}");
    }
    let received: Value = peer.get("/things?ids=1,2", &context).await.unwrap().json().unwrap();
    assert_eq!(
        (&received["method"], &received["uri"], &received["body"]),
        (&json!("GET"), &json!("/things?ids=1,2"), &json!(""))
    );
    let received: Value = peer.delete("/things/7", &context).await.unwrap().json().unwrap();
    assert_eq!((&received["method"], &received["uri"]), (&json!("DELETE"), &json!("/things/7")));
}

#[tokio::test]
async fn calls_a_peer_by_address_and_by_name_and_sends_its_host() {
    let address = stub_peer(echo()).await;
    let mut name = address.clone();
    name.set_host(Some("localhost")).expect("a host");
    for base in [address, name] {
        let peer = peer_at(base.clone(), &generous_timeouts());
        let received: Value = get_from(&peer, "/users/1").await.unwrap().json().unwrap();
        let host = format!("{}:{}", base.host_str().unwrap(), base.port().unwrap());
        assert_eq!((&received["headers"]["host"], &received["uri"]), (&json!(host), &json!("/users/1")));
    }
}

#[tokio::test]
async fn keeps_the_path_of_the_base_url() {
    let root = stub_peer(echo()).await;
    for (base, uri) in [("", "/users/1"), ("/", "/users/1"), ("/api", "/api/users/1"), ("/a/b/", "/a/b/users/1")] {
        let peer = peer_at(root.join(base).unwrap(), &generous_timeouts());
        let received: Value = get_from(&peer, "/users/1").await.unwrap().json().unwrap();
        assert_eq!(received["uri"], uri, "{base}");
    }
}

#[tokio::test]
async fn returns_every_status_and_follows_no_redirect() {
    let routes = Router::new()
        .route("/moved", get(async || Redirect::temporary("/elsewhere")))
        .route("/elsewhere", get(async || "not reached"))
        .route("/broken", get(async || (StatusCode::INTERNAL_SERVER_ERROR, "no problem+json")));
    let peer = peer(routes).await;
    let moved = get_from(&peer, "/moved").await.unwrap();
    assert_eq!(
        (moved.status, &moved.headers[header::LOCATION]),
        (StatusCode::TEMPORARY_REDIRECT, &HeaderValue::from_static("/elsewhere"))
    );
    let broken = get_from(&peer, "/broken").await.unwrap();
    assert_eq!(broken.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(broken.problem().is_none());
    assert!(peer.is_up().await, "a peer that responds 404 is up");
}

#[tokio::test]
async fn reports_a_dead_peer_as_unreachable_with_the_cause() {
    let base = dead_peer().await;
    let peer = peer_at(base.clone(), &generous_timeouts());
    let error = get_from(&peer, "/users/1?x=2").await.unwrap_err();
    assert!(matches!(&error, PeerError::Unreachable { peer: "users", cause } if cause.contains("refused")), "{error}");
    assert!(error.to_string().contains(&format!("GET {base}users/1?x=2: ")), "{error}");
    assert!(!peer.is_up().await);

    let problem = Problem::from(error);
    assert!(problem.cause().is_some_and(|cause| cause.contains("refused")), "{problem:?}");
    let body = problem.body("abc-1");
    assert_eq!((body.status, &*body.r#type), (503, "urn:problem-type:peer-unavailable"));
    assert_eq!(body.detail, "users does not answer", "the cause must only be logged");
}

#[tokio::test]
async fn reports_a_peer_without_an_address_as_unreachable() {
    let peer = peer_at(Url::parse("http://no-such-host.invalid/api").unwrap(), &generous_timeouts());
    let error = get_from(&peer, "/users").await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("GET http://no-such-host.invalid/api/users: "), "{error}");
}

#[tokio::test]
async fn reports_an_incomplete_response_as_unreachable() {
    for (bytes, why) in [
        ("", "a closed connection"),
        ("how do you do\r\n\r\n", "another protocol"),
        ("HTTP/1.1 200 OK\r\ncontent-le", "half a header"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half a body"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "chunks without an end"),
    ] {
        let response = get_from(&peer_that_sends(bytes).await, "/").await;
        assert!(matches!(&response, Err(PeerError::Unreachable { .. })), "{why}: {response:?}");
    }
}

#[tokio::test]
async fn reads_no_more_of_a_response_than_the_limit() {
    let chunks = || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 100])));
    let routes = Router::new()
        .route("/at-limit", get(async || "x".repeat(1000)))
        .route("/over-limit", get(async || "x".repeat(1001)))
        .route("/endless", get(async move || chunks()));
    let settings = PeerSettings { max_answer_bytes: 1000, ..generous_timeouts() };
    let peer = peer_at(stub_peer(routes).await, &settings);
    assert_eq!(get_from(&peer, "/at-limit").await.unwrap().body.len(), 1000);
    for path in ["/over-limit", "/endless"] {
        let response = get_from(&peer, path).await;
        assert!(matches!(&response, Err(PeerError::TooLarge { limit: 1000, .. })), "{path}: {response:?}");
    }
}

/// Returns routes that never finish: `/silent` sends nothing, `/begun` only the header.
fn slow() -> Router {
    let begun = || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    Router::new()
        .route("/silent", get(async || future::pending::<()>().await))
        .route("/begun", get(async move || begun()))
}

#[tokio::test]
async fn times_out_when_the_whole_response_takes_too_long() {
    let limit = Duration::from_millis(100);
    let peer = peer_at(stub_peer(slow()).await, &PeerSettings { timeout: limit, ..generous_timeouts() });
    for path in ["/silent", "/begun"] {
        let response = get_from(&peer, path).await;
        assert!(
            matches!(&response, Err(PeerError::TimedOut { limit: given, .. }) if *given == limit),
            "{path}: {response:?}"
        );
    }
}

#[tokio::test]
async fn times_out_at_the_deadline_of_the_request() {
    let peer = peer(slow()).await; // its own timeout is an hour
    let left = Duration::from_millis(100);
    for path in ["/silent", "/begun"] {
        let response = with_timeout("the end of the call", peer.get(path, &RequestContext::background(left))).await;
        assert!(matches!(&response, Err(PeerError::TimedOut { limit, .. }) if *limit <= left), "{path}: {response:?}");
    }
    let response = peer.get("/silent", &RequestContext::background(Duration::ZERO)).await;
    assert!(matches!(&response, Err(PeerError::NotSent { .. })), "{response:?}");
}

#[tokio::test]
async fn sends_the_remaining_time_in_x_deadline_ms() {
    let peer = peer_at(stub_peer(echo()).await, &PeerSettings { timeout: 2 * MINUTE, ..generous_timeouts() });
    for (left, sent) in [(MINUTE, MINUTE), (HOUR, 2 * MINUTE)] {
        let received: Value = peer.get("/", &RequestContext::background(left)).await.unwrap().json().unwrap();
        let ms: u128 = received["headers"]["x-deadline-ms"].as_str().and_then(|ms| ms.parse().ok()).expect("a number");
        assert!(ms <= sent.as_millis() && ms > sent.as_millis() / 2, "{ms} ms of {left:?}");
    }
}

/// A call that the caller's own deadline ends does not count as a failure of the peer.
#[tokio::test]
async fn does_not_throttle_a_peer_after_calls_with_short_deadlines() {
    let peer = peer(slow().route("/", get(async || "ok"))).await;
    for _ in 0..100 {
        let response = peer.get("/silent", &RequestContext::background(Duration::from_millis(1))).await;
        assert!(response.is_err(), "{response:?}");
    }
    assert_eq!(get_from(&peer, "/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn rejects_calls_over_max_in_flight_immediately() {
    let peer = peer_at(stub_peer(slow()).await, &PeerSettings { max_in_flight: 2, ..generous_timeouts() });
    let context = RequestContext::background(HOUR);
    let call = || Box::pin(peer.get("/silent", &context));
    let (mut first, mut second) = (call(), call());
    for waiting in [&mut first, &mut second] {
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    let rejected = get_from(&peer, "/silent").await;
    assert!(matches!(&rejected, Err(PeerError::NotSent { .. })), "{rejected:?}");
    drop(first);
    assert!(call().now_or_never().is_none(), "the permit was not released");
}

/// Linux drops connection requests when the accept queue is full. A peer behind a dead switch looks the same.
/// A server that counts the connections opened to it, and those that are still open.
async fn counting_server() -> (Url, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let counters = Arc::clone(&counts);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            for count in &*counters {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let counters = Arc::clone(&counters);
            tokio::spawn(async move {
                while stream.read(&mut [0; 1024]).await.is_ok_and(|bytes| bytes > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                }
                counters[1].fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (Url::parse(&format!("http://{address}")).expect("a URL"), counts)
}

/// A balancer leads new connections to replicas that were added.
#[tokio::test]
async fn replaces_connections_that_reach_their_maximum_age() {
    let (url, counts) = counting_server().await;
    let settings = PeerSettings { connection_max_age: Duration::from_millis(20), ..generous_timeouts() };
    let peer = peer_at(url, &settings);
    let calls_until_replaced = async || {
        get_from(&peer, "/").await.expect("no call fails while connections are replaced");
        counts[0].load(Ordering::Relaxed) >= 4
    };
    eventually("new connections", calls_until_replaced).await;
    eventually("the old connections to close", async || counts[1].load(Ordering::Relaxed) <= 1).await;
}

#[tokio::test]
async fn keeps_a_connection_until_its_maximum_age() {
    let (url, counts) = counting_server().await;
    let peer = peer_at(url, &PeerSettings { connection_max_age: HOUR, ..generous_timeouts() });
    for _ in 0..20 {
        get_from(&peer, "/").await.expect("a response");
    }
    assert_eq!(counts[0].load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn gives_up_connecting_after_the_connect_timeout() {
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
    // TCP itself gives up much later than the ten seconds here.
    let response = time::timeout(100 * A_WHILE, get_from(&peer, "/")).await;
    assert!(matches!(&response, Ok(Err(PeerError::Unreachable { .. }))), "{response:?}");
}

#[tokio::test]
async fn says_what_is_wrong_with_an_unexpected_response() {
    let peer = peer(Router::new().route("/", get(async || "[1, 2"))).await;
    let response = get_from(&peer, "/").await.unwrap();
    let error = peer.unexpected(&response, response.json::<Vec<u32>>().unwrap_err());
    assert!(error.to_string().starts_with("users answered 200 OK: EOF"), "{error}");
}
