//! What the tests have in common: a world with the three services in it, and words for what is done there.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chassis::config::{PeerSettings, Settings, defaults};
use jiff::Timestamp;
use order_service::peers::{Products, Users};
use order_service::placement::Placement;
use order_service::store::{MemoryStore, OrderStore, PostgresStore};
use order_service::{AppState, app};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;
use testing::{Client, DEADLINE, Received, Sending};
pub(crate) use testing::{eventually, expect_bad, next_page, with_timeout};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

use crate::fakes::{FakeUserService, Shop, TOO_MUCH};

/// A time limit that no test comes near.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// A time limit that a test waits for, when it does not matter what a slow machine makes of it.
pub(crate) const SOON: Duration = Duration::from_millis(100);
/// A time limit that a test waits for, and within which all that does not hang comes about, on any machine.
pub(crate) const ENOUGH: Duration = Duration::from_secs(2);
/// How long a release may take before it is given up, and left to the reconciler.
const RELEASE: Duration = Duration::from_secs(3);

/// More orders than a test places at the same time.
const MANY_AT_ONCE: usize = 1000;

/// Users who exist, and one who does not.
pub(crate) const ANN: i64 = 1;
pub(crate) const BOB: i64 = 2;
pub(crate) const NOBODY: i64 = 404;

/// The products that a world starts with, and one that does not exist.
pub(crate) const LAPTOP: i64 = 1;
pub(crate) const PHONE: i64 = 2;
pub(crate) const PEN: i64 = 3;
pub(crate) const NOTHING: i64 = 404;

/// order-service and whom it calls.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) people: FakeUserService,
    pub(crate) shop: Shop,
    pub(crate) placement: Placement,
    store: Arc<dyn OrderStore>,
    /// What there was to sell at first.
    pub(crate) stocks: BTreeMap<i64, i64>,
    began: Instant,
}

/// How much time there is for a call to a peer, and for an order.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) call: Duration,
    pub(crate) order: Duration,
}

impl World {
    /// One without any time limit that a test comes near.
    pub(crate) async fn new() -> Self {
        Self::with(Limits { call: HOUR, order: HOUR }).await
    }

    /// One with these time limits.
    pub(crate) async fn with(limits: Limits) -> Self {
        Self::over(Arc::new(MemoryStore::default()), limits).await
    }

    /// One over PostgreSQL, if that is installed here.
    pub(crate) async fn over_postgres(limits: Limits) -> Option<Self> {
        Some(Self::over_database(&testing::postgres::database().await?, limits).await)
    }

    /// One over this database, with these time limits.
    pub(crate) async fn over_database(url: &PgConnectOptions, limits: Limits) -> Self {
        let store = PostgresStore::open(url, &generous_timeouts()).await.expect("an empty database");
        Self::over(Arc::new(store), limits).await
    }

    /// One over this store, with these time limits.
    pub(crate) async fn over(store: Arc<dyn OrderStore>, limits: Limits) -> Self {
        let (people, users) = FakeUserService::serve(&[ANN, BOB]).await;
        let (shop, products) = Shop::serve().await;
        shop.offer(LAPTOP, "Laptop", 99_999, 50);
        shop.offer(PHONE, "Phone", 59_900, 100);
        shop.offer(PEN, "Pen", 10, 20_000);
        let placement = placement(Arc::clone(&store), users, products, limits);
        let stocks = shop.stocks();
        Self { client: client(placement.clone()), people, shop, placement, store, stocks, began: Instant::now() }
    }

    /// Another replica of order-service, over the same store, with these time limits.
    pub(crate) fn replica(&self, limits: Limits) -> Placement {
        self.replica_of(limits, MANY_AT_ONCE)
    }

    /// A client of another replica, which places only so many orders at once.
    pub(crate) fn client_of_a_small_replica(&self, at_once: usize) -> Client {
        client(self.replica_of(Limits { call: HOUR, order: HOUR }, at_once))
    }

    fn replica_of(&self, limits: Limits, at_once: usize) -> Placement {
        let peers = self.placement.peers();
        let (users, products) = (peers[0].base().clone(), peers[1].base().clone());
        placement_of(Arc::clone(&self.store), users, products, limits, at_once)
    }

    /// A request to place this order.
    pub(crate) fn posting(&self, order: &Value) -> Sending {
        self.client.request("POST", "/orders").json(order)
    }

    /// A request to place this order under this key.
    pub(crate) fn keyed(&self, key: &str, order: &Value) -> Sending {
        self.posting(order).header("idempotency-key", key)
    }

    /// Places an order, which must succeed.
    pub(crate) async fn place(&self, order: Value) -> Value {
        self.client.post("/orders", order).await.expect(201).json()
    }

    /// The orders that clients see (up to the thousand of one page).
    pub(crate) async fn orders(&self) -> Vec<Value> {
        let list = self.client.get("/orders?limit=1000").await.expect(200).json();
        list.as_array().expect("a plain array").clone()
    }

    /// The order of this id, as it is now.
    pub(crate) async fn read(&self, id: &str) -> Value {
        self.client.get(&format!("/orders/{id}")).await.expect(200).json()
    }

    /// Asks for a step of an order.
    pub(crate) async fn step(&self, id: &str, status: &str) -> Received {
        self.client.patch(&format!("/orders/{id}"), json!({"status": status})).await
    }

    /// Until no row is placing, aborting or cancelling. To be called when nothing is being placed any more: an intent
    /// that is still there then was forgotten, and is for ever given up here and never released. (A row that somebody
    /// has claimed and failed to release is not seen.)
    ///
    /// What a slow machine did not release in its time is left to another replica. Nobody helps where all that ran has ended
    /// before the time of a release can have been over: there, whoever begins a release has to bring it to its end.
    pub(crate) async fn at_rest(&self) {
        with_timeout("the end of what runs", self.placement.finish(HOUR)).await;
        if self.began.elapsed() >= RELEASE {
            self.help().await;
        }
        let unfinished = async || {
            let store = self.placement.store();
            store.claim(Timestamp::now(), Timestamp::MAX, Duration::ZERO, 1000).await.expect("a store that answers")
        };
        eventually("the end of all that was begun", async || unfinished().await.is_empty()).await;
    }

    /// The same in a world with a short time limit for a call: what a slow machine did not release within that is left
    /// to a replica that has more time.
    pub(crate) async fn at_rest_with_help(&self) {
        with_timeout("the end of what runs", self.placement.finish(HOUR)).await;
        self.help().await;
        self.at_rest().await;
    }

    /// Lets a replica with all the time of the world release what waits for it.
    async fn help(&self) {
        let generous_timeouts = self.replica(Limits { call: HOUR, order: HOUR });
        generous_timeouts.reconcile(1000).await.expect("a store that answers");
    }

    /// Checks, after a request was refused, that nothing came of it: no order is there, and its units, if there were
    /// any, are back. Its reservation is refused for ever, even if none was seen: a copy of the take may be on its way.
    pub(crate) async fn nothing_happened(&self) {
        assert_eq!(self.orders().await, [] as [Value; 0]);
        self.at_rest().await;
        assert_eq!(self.orders().await, [] as [Value; 0]);
        assert_eq!(self.shop.stocks(), self.stocks);
        let reservations = self.shop.reservations();
        assert!(reservations.values().all(|reservation| reservation.status == "released"), "{reservations:?}");
        for call in self.shop.takes.calls() {
            let id = call.path.strip_prefix("/reservations/").expect("the path of a take");
            assert_eq!(self.shop.status(id), "released", "{id}");
        }
    }

    /// Checks that nobody was asked for anything.
    #[track_caller]
    pub(crate) fn expect_no_calls(&self) {
        for door in [&self.people.reads, &self.shop.takes, &self.shop.releases] {
            assert!(door.calls().is_empty(), "{:?}", door.calls());
        }
    }

    /// The id that order-service has given to the order of the last take.
    pub(crate) fn last_taken(&self) -> String {
        let call = self.shop.takes.calls().pop().expect("a take");
        call.path.strip_prefix("/reservations/").expect("the path of a take").to_owned()
    }
}

/// What places orders over this store, by calls to these addresses.
pub(crate) fn placement(store: Arc<dyn OrderStore>, users: Url, products: Url, limits: Limits) -> Placement {
    placement_of(store, users, products, limits, MANY_AT_ONCE)
}

/// The same, so many at once.
fn placement_of(store: Arc<dyn OrderStore>, users: Url, products: Url, limits: Limits, at_once: usize) -> Placement {
    let connect_timeout = limits.call.min(DEADLINE);
    let settings = PeerSettings { connect_timeout, timeout: limits.call, max_answer_bytes: TOO_MUCH / 2, ..defaults() };
    let users = Users::at(users, &settings).expect("a client");
    let products = Products::at(products, &settings).expect("a client");
    Placement::new(store, users, products, limits.order, at_once)
}

/// A client of the service that places orders like this.
pub(crate) fn client(placement: Placement) -> Client {
    // A request that hangs though it should not is told so in the end, and fails its test; not before who waits for it
    // has given up, to whom that would look like another limit that was kept.
    let settings = Settings { request_timeout: 2 * DEADLINE, ..defaults() };
    Client::new(app(AppState::new(placement), &settings))
}

/// An order of so many units of these products.
pub(crate) fn order(user: i64, lines: &[(i64, i64)]) -> Value {
    let lines: Vec<Value> = lines.iter().map(|(id, quantity)| json!({"productId": id, "quantity": quantity})).collect();
    json!({"userId": user, "products": lines})
}

/// The id of an order.
pub(crate) fn id(order: &Value) -> &str {
    order["id"].as_str().unwrap_or_else(|| panic!("no id: {order}"))
}

/// The ids of the orders in a list.
pub(crate) fn ids(orders: &[Value]) -> Vec<&str> {
    orders.iter().map(id).collect()
}

/// Sends a request in a task of its own.
pub(crate) fn begin(request: Sending) -> JoinHandle<Received> {
    tokio::spawn(request.send())
}

/// The answer to a request that was begun.
pub(crate) async fn answer(request: JoinHandle<Received>) -> Received {
    with_timeout("an answer", request).await.expect("a request does not panic")
}

/// Checks that it is the answer to a request whose first is still running. (It has a `Retry-After`, unlike other 409s.)
#[track_caller]
pub(crate) fn expect_in_progress(received: &Received) {
    assert_eq!(received.status, 409, "{received}");
    assert_eq!(received.json()["type"], "urn:problem-type:request-in-progress", "{received}");
    assert!(received.header("retry-after").parse().is_ok_and(|seconds: u32| seconds > 0), "{received}");
}

/// A future of any type: for tables of them.
pub(crate) type Pinned<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
