//! Every known way in which a peer can fail: the client gets a 503 in time, reads still work, no unit is lost or stays taken,
//! and orders succeed again when the peer is back.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use system_tests::{Fault, Launch, Links, PRODUCTS, Proxy, Response, System, USERS, eventually, order, seed};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const LAPTOP: i64 = 1;
const LAPTOPS: i64 = 50;
const PHONE: i64 = 2;
const PHONES: i64 = 100;

/// The time limit of a call to a peer. Three calls take longer than an order may, so a missing deadline would be seen.
const CALL: Duration = Duration::from_millis(1500);
/// The time limit of an order.
const ORDER: Duration = Duration::from_secs(2);
/// The extra time that a busy machine may need.
const NOISE: Duration = Duration::from_millis(1500);
/// The size limit of a response to order-service.
const MAX_ANSWER_BYTES: usize = 4096;
/// The time within which orders succeed after the peer is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// Every failure, and the state of the peer in `/readyz`.
const FAILURES: [(Failure, &str); 12] = [
    (Failure::Link("dead", Fault::Refuse), "down"),
    (Failure::Link("black-holed", Fault::BlackHole), "down"),
    (Failure::Link("resetting", Fault::Reset), "down"),
    (Failure::Link("slow", Fault::Delay { base: ORDER, jitter: ORDER }), "down"),
    (Failure::Link("throttled", Fault::Throttle(100)), "down"),
    (Failure::Link("closing after 20 bytes", Fault::CloseAfter(20)), "down"),
    (Failure::Link("losing its responses", Fault::LoseAnswers(1.0)), "down"),
    (Failure::Answer("answering 500", |_| http(500, "{}")), "up"),
    (Failure::Answer("answering 503", |_| http(503, "{}")), "up"),
    (Failure::Answer("answering garbage", |_| "\u{0}\u{7}garbage\r\n\r\n".to_owned()), "down"),
    (Failure::Answer("answering with another status and type", |_| http(418, "<p>teapot</p>")), "up"),
    (Failure::Answer("answering twice the size limit", |request| http(200, &twice_the_limit(request))), "down"),
];

#[tokio::test]
async fn answers_503_in_time_and_loses_nothing_however_user_service_fails() {
    all_failures_of(USERS).await;
}

#[tokio::test]
async fn answers_503_in_time_and_loses_nothing_however_product_service_fails() {
    all_failures_of(PRODUCTS).await;
}

/// If every service retried, the attempts would multiply: three by the caller, three by each service that it calls.
#[tokio::test]
async fn retries_only_in_order_service() {
    let (system, links) = System::start_linked(seed(), |launch| launch).await.unwrap();
    for proxy in [&links.orders_to_users, &links.products_to_users] {
        proxy.set(Fault::LoseAnswers(1.0));
    }
    system.products.get("/users").await.expect_problem(503, "peer-unavailable");
    assert_eq!(eventually(1, || system.users.answered("GET", "/users", 200..=299)).await, 1);
    system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect_problem(503, "peer-unavailable");
    assert_eq!(eventually(3, || system.users.answered("GET", "/users/{id}", 200..=299)).await, 3);
}

/// Runs each failure in its own system, four at the same time, because most of it is waiting.
async fn all_failures_of(peer: &'static str) {
    let cases = FAILURES.iter().enumerate().map(async |(at, (failure, readiness))| {
        let case = Case::start(peer, failure, at as u64).await;
        case.run(failure, readiness).await;
    });
    stream::iter(cases).buffer_unordered(4).collect::<()>().await;
}

/// A way in which a peer fails.
enum Failure {
    /// The link to it is faulty.
    Link(&'static str, Fault),
    /// It sends this response to a request.
    Answer(&'static str, fn(&PeerRequest) -> String),
}

/// One failure of one peer.
struct Case {
    name: String,
    peer: &'static str,
    system: System,
    links: Links,
}

impl Case {
    async fn start(peer: &'static str, failure: &Failure, number: u64) -> Self {
        let (Failure::Link(what, _) | Failure::Answer(what, _)) = failure;
        let (name, seed) = (format!("{peer} {what}, seed {}", seed()), seed().wrapping_add(10 * number));
        let limits = |launch: Launch| {
            let launch = launch.env("PEER_TIMEOUT_SECONDS", CALL.as_secs_f64());
            let launch = launch.env("ORDER_TIMEOUT_SECONDS", ORDER.as_secs_f64());
            launch.env("PEER_MAX_ANSWER_BYTES", MAX_ANSWER_BYTES)
        };
        let (system, links) = System::start_linked(seed, limits).await.unwrap_or_else(|why| panic!("{name}: {why}"));
        Self { name, peer, system, links }
    }

    async fn run(&self, failure: &Failure, readiness: &str) {
        let Self { name, system, .. } = self;
        let placed = self.order(LAPTOP).await.expect(201);
        let fake_peer = self.begin(failure).await;

        let began = Instant::now();
        let failed = self.order(LAPTOP).await;
        let waited = began.elapsed();
        assert_eq!(failed.status, 503, "{name}: {failed}");
        let problem = failed.expect_problem(503, "peer-unavailable"); // checks for a Retry-After as well
        assert_eq!(problem["error"], format!("{} does not answer", self.peer), "{name}");
        assert!(waited < ORDER + NOISE, "{name}: 503 after {waited:?}");
        self.reads_are_not_affected(&placed).await;
        self.readiness_is(readiness).await;

        self.link().heal();
        drop(fake_peer);
        let healed = Instant::now();
        let (settled, recovered) = tokio::join!(self.settles(healed), self.recovers(healed));
        assert_eq!(eventually(PHONES - 1, || system.stock(PHONE)).await, PHONES - 1, "{name}");
        assert_eq!(system.stock(LAPTOP).await, LAPTOPS - 1, "{name}: it stays settled");
        let orders = system.orders.get("/orders").await.expect(200).json();
        assert_eq!(orders.as_array().map(Vec::len), Some(2), "{name}: {orders}");
        self.readiness_is("up").await;
        let [waited, settled, recovered] = [waited, settled, recovered].map(|time| time.as_millis());
        println!(
            "peer_faults: {name}: 503 after {waited} ms, settled {settled} ms and orders {recovered} ms after healing"
        );
    }

    /// Returns the link from order-service to the failing peer.
    fn link(&self) -> &Proxy {
        if self.peer == USERS { &self.links.orders_to_users } else { &self.links.orders_to_products }
    }

    async fn begin(&self, failure: &Failure) -> Option<JoinSet<()>> {
        match failure {
            Failure::Link(_, fault) => {
                self.link().set(*fault);
                None
            }
            Failure::Answer(_, answer) => {
                let (address, fake_peer) = start_fake_peer(*answer).await;
                self.link().redirect(address);
                Some(fake_peer)
            }
        }
    }

    async fn order(&self, product: i64) -> Response {
        self.system.orders.post("/orders", order(1, product, 1)).await
    }

    async fn reads_are_not_affected(&self, placed: &Response) {
        let Self { name, system, .. } = self;
        let read = system.orders.get(placed.header("location")).await.expect(200);
        assert_eq!(read.json(), placed.json(), "{name}");
        assert_eq!(system.orders.get("/orders").await.expect(200).json(), json!([placed.json()]), "{name}");
        assert_eq!(
            system.products.get("/products").await.expect(200).json().as_array().map(Vec::len),
            Some(2),
            "{name}"
        );
        system.users.get("/users/1").await.expect(200);
    }

    /// Checks that `/readyz` reports the state of the peer, and that the service stays ready. (It looks until that is so: on a
    /// busy machine a probe may time out.)
    async fn readiness_is(&self, wanted: &str) {
        let mut peers = json!({USERS: "up", PRODUCTS: "up"});
        peers[self.peer] = json!(wanted);
        let seen = eventually(peers.clone(), async || {
            self.system.orders.get("/readyz").await.expect(200).json()["peers"].take()
        });
        assert_eq!(seen.await, peers, "{}", self.name);
    }

    /// Waits until the failed order is released and holds no unit. Returns the time since healing.
    async fn settles(&self, healed: Instant) -> Duration {
        let wanted = (true, LAPTOPS - 1);
        let state = async || {
            let released = self.system.products.answered("DELETE", "/reservations", 200..=299).await;
            (released > 0, self.system.stock(LAPTOP).await)
        };
        assert_eq!(eventually(wanted, state).await, wanted, "{}: released, stock", self.name);
        healed.elapsed()
    }

    /// Orders until an order is placed. Returns the time since healing.
    async fn recovers(&self, healed: Instant) -> Duration {
        let status = eventually(201, async || self.order(PHONE).await.status).await;
        let took = healed.elapsed();
        assert!(status == 201 && took < RECOVERY, "{}: {status} after {took:?}", self.name);
        took
    }
}

/// A request to the fake peer.
struct PeerRequest {
    path: String,
    body: String,
}

/// Starts a fake peer that answers every request so, until the tasks are dropped.
async fn start_fake_peer(answer: fn(&PeerRequest) -> String) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            connections.spawn(async move { answer_one(client, answer).await.unwrap_or_default() });
        }
    });
    (address, tasks)
}

async fn answer_one(mut client: TcpStream, answer: fn(&PeerRequest) -> String) -> io::Result<()> {
    let mut reader = BufReader::new(&mut client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).await? > 0 {}
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).await?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let request = PeerRequest { path, body: String::from_utf8_lossy(&body).into_owned() };
    client.write_all(answer(&request).as_bytes()).await?;
    client.shutdown().await
}

fn http(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Returns a valid response to a request, padded with blanks to twice the size limit.
fn twice_the_limit(request: &PeerRequest) -> String {
    let id = request.path.rsplit('/').next();
    let mut reserved = serde_json::from_str::<Value>(&request.body).unwrap_or_default();
    for line in reserved["lines"].as_array_mut().into_iter().flatten() {
        line["name"] = json!("Laptop");
        line["price"] = json!(999.99);
    }
    reserved["orderId"] = json!(id);
    format!("{:1$}", reserved.to_string(), 2 * MAX_ANSWER_BYTES)
}
