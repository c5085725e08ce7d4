//! Shared by the tests: order-service with two fake peers, and helpers to use it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chassis::config::{PeerSettings, Settings, defaults};
use order_service::peers::{Products, Users};
use order_service::placement::Placement;
use order_service::store::{MemoryStore, OrderStore, PostgresStore};
use order_service::{AppState, SERVICE, app};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;
use testing::{Client, DEADLINE, Received, Sending, TestIssuer};
pub(crate) use testing::{eventually, expect_bad, next_page, with_timeout};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

use crate::fakes::{FakeProductService, FakeUserService, TOO_LARGE};

/// A timeout that no test reaches.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// A timeout that tests reach on purpose. On a slow machine other calls may reach it too.
pub(crate) const SHORT_TIMEOUT: Duration = Duration::from_millis(100);
/// A timeout that tests reach on purpose. Calls that do not hang finish within it on any machine.
pub(crate) const MEDIUM_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit of order-service for a release in the background.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// More orders than any test places at the same time.
const MAX_CONCURRENT: usize = 1000;

/// Users who exist, and one who does not.
pub(crate) const ANN: i64 = 1;
pub(crate) const BOB: i64 = 2;
pub(crate) const UNKNOWN_USER: i64 = 404;

/// Products that exist, and one that does not.
pub(crate) const LAPTOP: i64 = 1;
pub(crate) const PHONE: i64 = 2;
pub(crate) const PEN: i64 = 3;
pub(crate) const UNKNOWN_PRODUCT: i64 = 404;

/// order-service with its two peers.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) users: FakeUserService,
    pub(crate) products: FakeProductService,
    pub(crate) placement: Placement,
    store: Arc<dyn OrderStore>,
    /// The stock of each product at the start.
    pub(crate) stocks: BTreeMap<i64, i64>,
    started: Instant,
}

/// The timeouts of a call to a peer and of an order.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) call: Duration,
    pub(crate) order: Duration,
}

impl World {
    /// Starts a world without a timeout that a test reaches.
    pub(crate) async fn new() -> Self {
        Self::with(Timeouts { call: HOUR, order: HOUR }).await
    }

    /// Starts a world with these timeouts.
    pub(crate) async fn with(timeouts: Timeouts) -> Self {
        Self::over(Arc::new(MemoryStore::default()), timeouts).await
    }

    /// Starts a world over PostgreSQL. `None` if PostgreSQL is not installed.
    pub(crate) async fn over_postgres(timeouts: Timeouts) -> Option<Self> {
        Some(Self::over_database(&testing::postgres::database().await?, timeouts).await)
    }

    /// Starts a world over this database.
    pub(crate) async fn over_database(url: &PgConnectOptions, timeouts: Timeouts) -> Self {
        let store = PostgresStore::open(url, &generous_timeouts()).await.expect("an empty database");
        Self::over(Arc::new(store), timeouts).await
    }

    /// Starts a world over this store.
    pub(crate) async fn over(store: Arc<dyn OrderStore>, timeouts: Timeouts) -> Self {
        let (users, users_url) = FakeUserService::serve(&[ANN, BOB]).await;
        let (products, products_url) = FakeProductService::serve().await;
        products.set_product(LAPTOP, "Laptop", 99_999, 50);
        products.set_product(PHONE, "Phone", 59_900, 100);
        products.set_product(PEN, "Pen", 10, 20_000);
        let placement = placement(Arc::clone(&store), users_url, products_url, timeouts);
        let (client, stocks, started) = (client(placement.clone()), products.stocks(), Instant::now());
        Self { client, users, products, placement, store, stocks, started }
    }

    /// Returns another replica of order-service over the same store, with these timeouts.
    pub(crate) fn replica(&self, timeouts: Timeouts) -> Placement {
        self.replica_of(timeouts, MAX_CONCURRENT)
    }

    /// Returns a client of another replica that places at most `max_concurrent` orders at the same time.
    pub(crate) fn client_of_a_small_replica(&self, max_concurrent: usize) -> Client {
        client(self.replica_of(Timeouts { call: HOUR, order: HOUR }, max_concurrent))
    }

    /// Returns a client of the same service with sign-in on.
    pub(crate) fn with_sign_in(&self, issuer: &TestIssuer) -> Client {
        let state = AppState::new(self.placement.clone()).with_sign_in(issuer.authenticator(SERVICE, false));
        Client::new(app(state, &defaults()))
    }

    fn replica_of(&self, timeouts: Timeouts, max_concurrent: usize) -> Placement {
        let peers = self.placement.peers();
        let (users, products) = (peers[0].base().clone(), peers[1].base().clone());
        new_placement(Arc::clone(&self.store), users, products, timeouts, max_concurrent)
    }

    /// Returns a request to place this order.
    pub(crate) fn post_order(&self, order: &Value) -> Sending {
        self.client.request("POST", "/orders").json(order)
    }

    /// Returns a request to place this order with this idempotency key.
    pub(crate) fn post_with_key(&self, key: &str, order: &Value) -> Sending {
        self.post_order(order).header("idempotency-key", key)
    }

    /// Places an order, which must succeed.
    pub(crate) async fn place(&self, order: Value) -> Value {
        self.client.post("/orders", order).await.expect(201).json()
    }

    /// Returns the visible orders, up to 1,000.
    pub(crate) async fn orders(&self) -> Vec<Value> {
        let list = self.client.get("/orders?limit=1000").await.expect(200).json();
        list.as_array().expect("a plain array").clone()
    }

    /// Returns the order with this id.
    pub(crate) async fn read(&self, id: &str) -> Value {
        self.client.get(&format!("/orders/{id}")).await.expect(200).json()
    }

    /// Requests a status step of an order.
    pub(crate) async fn step(&self, id: &str, status: &str) -> Received {
        self.client.patch(&format!("/orders/{id}"), json!({"status": status})).await
    }

    /// Waits until no row is placing, aborting or cancelling. Call it when no order is being placed any more: an intent
    /// that is left is aborted here and never released, so the wait fails. (It does not see a row with an unexpired
    /// claim.)
    ///
    /// If enough time has passed for a release to time out on a slow machine, another replica releases what is left.
    /// Otherwise every release that was started must have finished without help.
    pub(crate) async fn wait_until_settled(&self) {
        with_timeout("the running tasks", self.placement.finish(HOUR)).await;
        if self.started.elapsed() >= RELEASE_TIMEOUT {
            self.reconcile_with_another_replica().await;
        }
        let unfinished = async || {
            let store = self.placement.store();
            store.claim(Duration::ZERO, Duration::ZERO, 1000).await.expect("the store answers")
        };
        eventually("no unfinished orders", async || unfinished().await.is_empty()).await;
    }

    /// Waits as [`World::wait_until_settled`] does, in a world with a short call timeout. Another replica with more time
    /// releases what a slow machine did not release within the timeout.
    pub(crate) async fn settle_with_another_replica(&self) {
        with_timeout("the running tasks", self.placement.finish(HOUR)).await;
        self.reconcile_with_another_replica().await;
        self.wait_until_settled().await;
    }

    async fn reconcile_with_another_replica(&self) {
        let replica = self.replica(Timeouts { call: HOUR, order: HOUR });
        replica.reconcile(1000).await.expect("the store answers");
    }

    /// Checks, after a rejected request, that no order exists and that all units are back in stock. Each reservation
    /// must be released for good, also one that was never created: a duplicate of its request may still arrive.
    pub(crate) async fn expect_nothing_sold(&self) {
        assert_eq!(self.orders().await, [] as [Value; 0]);
        self.wait_until_settled().await;
        assert_eq!(self.orders().await, [] as [Value; 0]);
        assert_eq!(self.products.stocks(), self.stocks);
        let reservations = self.products.reservations();
        assert!(reservations.values().all(|reservation| reservation.status == "released"), "{reservations:?}");
        for call in self.products.reserve.calls() {
            let id = call.path.strip_prefix("/reservations/").expect("the path of a reservation");
            assert_eq!(self.products.status(id), "released", "{id}");
        }
    }

    /// Checks that no peer was called.
    #[track_caller]
    pub(crate) fn expect_no_peer_calls(&self) {
        for endpoint in [&self.users.read, &self.products.reserve, &self.products.release] {
            assert!(endpoint.calls().is_empty(), "{:?}", endpoint.calls());
        }
    }

    /// Returns the order id of the last call that asked for a reservation.
    pub(crate) fn last_reserved_id(&self) -> String {
        let call = self.products.reserve.calls().pop().expect("a call for a reservation");
        call.path.strip_prefix("/reservations/").expect("the path of a reservation").to_owned()
    }
}

/// Returns a placement over this store, with the peers at these addresses.
pub(crate) fn placement(store: Arc<dyn OrderStore>, users: Url, products: Url, timeouts: Timeouts) -> Placement {
    new_placement(store, users, products, timeouts, MAX_CONCURRENT)
}

fn new_placement(
    store: Arc<dyn OrderStore>,
    users: Url,
    products: Url,
    timeouts: Timeouts,
    max_concurrent: usize,
) -> Placement {
    let connect_timeout = timeouts.call.min(DEADLINE);
    let max_answer_bytes = TOO_LARGE / 2;
    let settings = PeerSettings { connect_timeout, timeout: timeouts.call, max_answer_bytes, ..defaults() };
    let users = Users::new(users, &settings, None).expect("a client");
    let products = Products::new(products, &settings, None).expect("a client");
    Placement::new(store, users, products, timeouts.order, max_concurrent)
}

/// Returns a client of order-service with this placement.
pub(crate) fn client(placement: Placement) -> Client {
    // A request that hangs by mistake ends with this timeout, after the deadline of the test. With a shorter one the
    // 503 would look as if another timeout had worked.
    let settings = Settings { request_timeout: 2 * DEADLINE, ..defaults() };
    Client::new(app(AppState::new(placement), &settings))
}

/// Returns the body of an order with these lines, given as `(product, quantity)`.
pub(crate) fn order(user: i64, lines: &[(i64, i64)]) -> Value {
    let lines: Vec<Value> = lines.iter().map(|(id, quantity)| json!({"productId": id, "quantity": quantity})).collect();
    json!({"userId": user, "products": lines})
}

/// Returns the id of an order.
pub(crate) fn id(order: &Value) -> &str {
    order["id"].as_str().unwrap_or_else(|| panic!("no id: {order}"))
}

/// Returns the ids of orders.
pub(crate) fn ids(orders: &[Value]) -> Vec<&str> {
    orders.iter().map(id).collect()
}

/// Sends a request in a task of its own.
pub(crate) fn spawn(request: Sending) -> JoinHandle<Received> {
    tokio::spawn(request.send())
}

/// Waits for the response to a spawned request.
pub(crate) async fn response_of(request: JoinHandle<Received>) -> Received {
    with_timeout("a response", request).await.expect("a request does not panic")
}

/// Checks for 409 `request-in-progress`. Unlike other 409s it has a `Retry-After`.
#[track_caller]
pub(crate) fn expect_in_progress(received: &Received) {
    assert_eq!(received.status, 409, "{received}");
    assert_eq!(received.json()["type"], "urn:problem-type:request-in-progress", "{received}");
    assert!(received.header("retry-after").parse().is_ok_and(|seconds: u32| seconds > 0), "{received}");
}

/// A boxed future, for arrays of different futures.
pub(crate) type Pinned<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
