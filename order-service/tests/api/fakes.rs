//! Fakes of the two services that order-service calls: in memory, and as faulty as a test needs them.
//!
//! They read and write JSON by hand, so the tests check the wire format itself and not our types.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::{future, stream};
use serde_json::{Value, json};
use testing::stub_peer;
use tokio::sync::watch;
use url::Url;

use crate::support::eventually;

/// A response size above the limit of order-service in these tests, which is half of it.
pub(crate) const TOO_LARGE: usize = 64 << 10;

/// How a fake handles a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StubBehaviour {
    /// Follows the contract.
    Normal,
    /// Waits until the behaviour changes, then continues with that, even if the caller is gone. So a call can be late.
    Hanging,
    /// Responds with 500.
    ServerError,
    /// Responds with 200 and a meaningless body.
    Garbage,
    /// Responds with 200 and a body above the limit.
    TooLarge,
    /// Breaks the connection before it does anything.
    LostRequest,
    /// Breaks the connection after it has done everything.
    LostResponse,
}

/// All faults except `Hanging`, which needs a timeout and so tests of its own.
pub(crate) const FAULTS: [StubBehaviour; 5] = [
    StubBehaviour::ServerError,
    StubBehaviour::Garbage,
    StubBehaviour::TooLarge,
    StubBehaviour::LostRequest,
    StubBehaviour::LostResponse,
];

/// One kind of call to a fake.
#[derive(Clone)]
pub(crate) struct StubEndpoint {
    behaviour: watch::Sender<StubBehaviour>,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// A call that a fake has received.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl StubEndpoint {
    fn new() -> Self {
        Self { behaviour: watch::Sender::new(StubBehaviour::Normal), calls: Arc::default() }
    }

    /// Sets the behaviour for further calls and for those that hang.
    pub(crate) fn set(&self, behaviour: StubBehaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// Returns the calls received so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    /// Waits until this many calls were received in total.
    pub(crate) async fn wait_for_calls(&self, count: usize) {
        eventually("a call", async || lock(&self.calls).len() >= count).await;
    }

    /// Handles one request, which may carry several calls as a batch.
    async fn handle(
        &self,
        calls: impl IntoIterator<Item = Call>,
        respond: impl FnOnce() -> Response + Send + 'static,
    ) -> Response {
        lock(&self.calls).extend(calls);
        let mut behaviour = self.behaviour.subscribe();
        let handling = tokio::spawn(async move {
            let not_hanging = behaviour.wait_for(|behaviour| *behaviour != StubBehaviour::Hanging).await;
            let behaviour = *not_hanging.expect("the endpoint outlives its calls");
            match behaviour {
                StubBehaviour::Normal => respond(),
                StubBehaviour::ServerError => (StatusCode::INTERNAL_SERVER_ERROR, "no problem+json").into_response(),
                StubBehaviour::Garbage => "how do you do".into_response(),
                StubBehaviour::TooLarge => "x".repeat(TOO_LARGE).into_response(),
                StubBehaviour::Hanging | StubBehaviour::LostRequest => broken(StatusCode::INTERNAL_SERVER_ERROR),
                StubBehaviour::LostResponse => match respond().status() {
                    StatusCode::NO_CONTENT => broken(StatusCode::OK), // a 204 has no body to break
                    status => broken(status),
                },
            }
        });
        handling.await.expect("a fake does not panic")
    }
}

/// Returns a response whose connection breaks within the body.
fn broken(status: StatusCode) -> Response {
    let end = stream::once(future::ready(Err::<Bytes, _>(io::Error::other("connection lost"))));
    (status, Body::from_stream(end)).into_response()
}

/// The batch requests to a fake: the size of each, and how the fake handles them.
#[derive(Clone, Default)]
pub(crate) struct Batches(Arc<Mutex<(Vec<usize>, BatchSupport)>>);

/// How a fake handles a batch request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BatchSupport {
    /// Follows the contract.
    #[default]
    Supported,
    /// Responds with 404 or 405: there is no such endpoint.
    NotFound,
    /// Ignores the list of ids and responds as if to another request.
    Misread,
}

impl Batches {
    /// Returns the size of each batch received so far.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        lock(&self.0).0.clone()
    }

    /// Sets how further batches are handled.
    pub(crate) fn set(&self, support: BatchSupport) {
        lock(&self.0).1 = support;
    }

    fn receive(&self, size: usize) -> BatchSupport {
        let mut batches = lock(&self.0);
        batches.0.push(size);
        batches.1
    }
}

/// A fake user-service.
#[derive(Clone)]
pub(crate) struct FakeUserService {
    /// `GET /users/{id}`, at the root and under `/api/v2`, and each id of `GET /users?ids=`.
    pub(crate) read: StubEndpoint,
    /// `GET /users?ids=`.
    pub(crate) batches: Batches,
    known: Arc<[i64]>,
}

impl FakeUserService {
    /// Serves a user-service with these users; returns it and its address.
    pub(crate) async fn serve(known: &[i64]) -> (Self, Url) {
        let users = Self { read: StubEndpoint::new(), batches: Batches::default(), known: known.into() };
        let routes = Router::new().route("/users/{id}", get(read)).route("/users", get(list)).with_state(users.clone());
        (users, stub_peer(routes.clone().nest("/api/v2", routes)).await)
    }
}

async fn read(
    State(users): State<FakeUserService>,
    OriginalUri(uri): OriginalUri,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Response {
    let known = users.known.contains(&id);
    let respond = move || match known {
        true => Json(json!({"id": id})).into_response(),
        false => (StatusCode::NOT_FOUND, Json(json!({"error": "User not found"}))).into_response(),
    };
    users.read.handle([Call { path: uri.path().to_owned(), headers }], respond).await
}

async fn list(
    State(users): State<FakeUserService>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let ids: Vec<i64> = query["ids"].split(',').map(|id| id.parse().expect("an id")).collect();
    let found: Vec<Value> = match users.batches.receive(ids.len()) {
        BatchSupport::NotFound => return StatusCode::NOT_FOUND.into_response(),
        BatchSupport::Misread => users.known.iter().take(1).map(|id| json!({"id": id, "name": "first"})).collect(),
        BatchSupport::Supported => {
            users.known.iter().filter(|id| ids.contains(id)).map(|id| json!({"id": id})).collect()
        }
    };
    let call = |id| Call { path: format!("{}/{id}", uri.path()), headers: headers.clone() };
    users.read.handle(ids.iter().map(call), move || Json(found).into_response()).await
}

/// A fake product-service.
#[derive(Clone)]
pub(crate) struct FakeProductService {
    /// `PUT /reservations/{id}`, and each item of `POST /reservations`.
    pub(crate) reserve: StubEndpoint,
    /// `DELETE /reservations/{id}`, and each id of `DELETE /reservations?ids=`.
    pub(crate) release: StubEndpoint,
    /// `POST /reservations`.
    pub(crate) reserve_batches: Batches,
    /// `DELETE /reservations?ids=`.
    pub(crate) release_batches: Batches,
    tables: Arc<Mutex<Tables>>,
}

#[derive(Default)]
struct Tables {
    products: BTreeMap<i64, Product>,
    reservations: BTreeMap<String, Reservation>,
}

struct Product {
    name: String,
    cents: i64,
    stock: i64,
}

/// A reservation, with its units as `(product, quantity)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) status: &'static str,
    pub(crate) units: Vec<(i64, i64)>,
    response: Value,
}

impl FakeProductService {
    /// Serves a product-service without products; returns it and its address.
    pub(crate) async fn serve() -> (Self, Url) {
        let products = Self {
            reserve: StubEndpoint::new(),
            release: StubEndpoint::new(),
            reserve_batches: Batches::default(),
            release_batches: Batches::default(),
            tables: Arc::default(),
        };
        let one = put(reserve).delete(release).get(reservation);
        let many = post(reserve_each).delete(release_each);
        let routes = Router::new().route("/reservations/{id}", one).route("/reservations", many);
        (products.clone(), stub_peer(routes.with_state(products)).await)
    }

    /// Adds a product, or replaces the one with this id.
    pub(crate) fn set_product(&self, id: i64, name: &str, cents: i64, stock: i64) {
        lock(&self.tables).products.insert(id, Product { name: name.to_owned(), cents, stock });
    }

    /// Returns the units of a product that are not reserved.
    pub(crate) fn stock(&self, id: i64) -> i64 {
        lock(&self.tables).products[&id].stock
    }

    /// Returns the units of each product that are not reserved.
    pub(crate) fn stocks(&self) -> BTreeMap<i64, i64> {
        lock(&self.tables).products.iter().map(|(id, product)| (*id, product.stock)).collect()
    }

    /// Returns every reservation, by the id of its order.
    pub(crate) fn reservations(&self) -> BTreeMap<String, Reservation> {
        lock(&self.tables).reservations.clone()
    }

    /// Returns the status of the reservation of an order: `taken`, `released`, or empty if there is none.
    pub(crate) fn status(&self, order: &str) -> &'static str {
        lock(&self.tables).reservations.get(order).map_or("", |reservation| reservation.status)
    }

    /// Handles `PUT /reservations/{order}` directly; returns status and body.
    pub(crate) fn put_reservation(&self, order: &str, wanted: &Value) -> (u16, Value) {
        lock(&self.tables).reserve(order, wanted)
    }
}

impl Tables {
    fn reserve(&mut self, order: &str, wanted: &Value) -> (u16, Value) {
        let Some(units) = units(wanted) else { return problem(400, "invalid-request", &[]) };
        match self.reservations.get(order) {
            Some(existing) if existing.status == "released" => return problem(409, "reservation-released", &[]),
            Some(existing) if existing.units == units => return (200, existing.response.clone()),
            Some(_) => return problem(409, "reservation-mismatch", &[]),
            None => {}
        }
        let (mut unknown, mut short, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (id, quantity)) in units.iter().enumerate() {
            match self.products.get(id) {
                None => {
                    let pointer = format!("/lines/{index}/productId");
                    unknown.push(json!({"pointer": pointer, "detail": "does not exist"}));
                }
                Some(Product { stock, .. }) if stock < quantity => {
                    let pointer = format!("/lines/{index}/quantity");
                    short.push(json!({"pointer": pointer, "detail": format!("only {stock} left"), "actual": stock}));
                }
                Some(Product { name, cents, .. }) => {
                    lines.push(json!({"productId": id, "name": name, "price": money(*cents), "quantity": quantity}));
                }
            }
        }
        if !unknown.is_empty() {
            return problem(400, "product-not-found", &unknown);
        }
        if !short.is_empty() {
            return problem(409, "insufficient-stock", &short);
        }
        self.change_stock(&units, -1);
        let response = json!({"orderId": order, "lines": lines});
        let reservation = Reservation { status: "taken", units, response: response.clone() };
        self.reservations.insert(order.to_owned(), reservation);
        (201, response)
    }

    fn release(&mut self, order: &str) {
        let released = Reservation { status: "released", units: Vec::new(), response: Value::Null };
        if let Some(existing) = self.reservations.insert(order.to_owned(), released) {
            self.change_stock(&existing.units, 1); // empty if it was released before
        }
    }

    fn change_stock(&mut self, units: &[(i64, i64)], sign: i64) {
        for (id, quantity) in units {
            self.products.get_mut(id).expect("products are never removed").stock += sign * quantity;
        }
    }
}

/// Returns the units of a reservation request, if its body has exactly the members of the contract.
fn units(wanted: &Value) -> Option<Vec<(i64, i64)>> {
    let line = |line: &Value| {
        let (id, quantity) = (line["productId"].as_i64()?, line["quantity"].as_i64()?);
        (line.as_object()?.len() == 2).then_some((id, quantity))
    };
    let lines = wanted["lines"].as_array().filter(|lines| (1..=100).contains(&lines.len()))?;
    lines.iter().map(line).collect()
}

/// Returns an amount as a JSON number with two decimals.
pub(crate) fn money(cents: i64) -> Value {
    serde_json::from_str(&format!("{}.{:02}", cents / 100, cents % 100)).expect("a decimal is JSON")
}

fn problem(status: u16, slug: &str, errors: &[Value]) -> (u16, Value) {
    let r#type = format!("urn:problem-type:{slug}");
    let problem = json!({"type": r#type, "title": slug, "status": status, "detail": slug, "requestId": "fake", "error": slug, "errors": errors});
    (status, problem)
}

async fn reserve(
    State(products): State<FakeProductService>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(wanted): Json<Value>,
) -> Response {
    let call = Call { path: format!("/reservations/{id}"), headers };
    let tables = Arc::clone(&products.tables);
    let respond = move || {
        let (status, body) = lock(&tables).reserve(&id, &wanted);
        let content_type = if status < 400 { "application/json" } else { "application/problem+json" };
        let status = StatusCode::from_u16(status).expect("a status");
        (status, [(header::CONTENT_TYPE, content_type)], body.to_string()).into_response()
    };
    products.reserve.handle([call], respond).await
}

async fn reserve_each(
    State(products): State<FakeProductService>,
    headers: HeaderMap,
    Json(wanted): Json<Vec<Value>>,
) -> Response {
    match products.reserve_batches.receive(wanted.len()) {
        BatchSupport::NotFound => return StatusCode::NOT_FOUND.into_response(),
        BatchSupport::Misread => return Json(json!([])).into_response(),
        BatchSupport::Supported => {}
    }
    let order = |wanted: &Value| wanted["orderId"].as_str().expect("an id").to_owned();
    let call = |wanted| Call { path: format!("/reservations/{}", order(wanted)), headers: headers.clone() };
    let calls: Vec<Call> = wanted.iter().map(call).collect();
    let tables = Arc::clone(&products.tables);
    let respond = move || {
        let results = wanted.iter().map(|wanted| lock(&tables).reserve(&order(wanted), wanted));
        let results = results.map(|(status, body)| json!({"status": status, "body": body}));
        Json(results.collect::<Vec<_>>()).into_response()
    };
    products.reserve.handle(calls, respond).await
}

async fn release(State(products): State<FakeProductService>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let call = Call { path: format!("/reservations/{id}"), headers };
    let tables = Arc::clone(&products.tables);
    let respond = move || {
        lock(&tables).release(&id);
        StatusCode::NO_CONTENT.into_response()
    };
    products.release.handle([call], respond).await
}

async fn release_each(
    State(products): State<FakeProductService>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let ids: Vec<String> = query["ids"].split(',').map(str::to_owned).collect();
    if products.release_batches.receive(ids.len()) != BatchSupport::Supported {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let calls = ids.iter().map(|id| Call { path: format!("/reservations/{id}"), headers: headers.clone() });
    let (calls, tables) = (calls.collect::<Vec<_>>(), Arc::clone(&products.tables));
    let respond = move || {
        ids.iter().for_each(|id| lock(&tables).release(id));
        StatusCode::NO_CONTENT.into_response()
    };
    products.release.handle(calls, respond).await
}

async fn reservation(State(products): State<FakeProductService>, Path(id): Path<String>) -> Response {
    let found = products.reservations().remove(&id);
    let found = found.map(|it| Json(json!({"orderId": id, "status": it.status, "lines": it.response["lines"]})));
    found.ok_or(StatusCode::NOT_FOUND).into_response()
}

/// Locks also after a panic, so that the failure of one test does not hide behind another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
