//! The two services that order-service calls, as far as it calls them: small, in memory, and as faulty as a test tells
//! them to be. They read and write the wire's JSON by hand, so that they, and none of our types, say what it is.

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

/// More than order-service takes of an answer: its limit in these tests is half of it.
pub(crate) const TOO_MUCH: usize = 64 << 10;

/// How a fake treats a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StubBehaviour {
    /// It does and answers what the contract says.
    Well,
    /// It waits until its mood is another, and then goes on in that, whether or not anybody still waits for it: so a
    /// call can be late.
    Hanging,
    /// It answers 500.
    Broken,
    /// It answers 200 with something that means nothing.
    Garbage,
    /// It answers 200 with more than anybody takes.
    Verbose,
    /// The connection breaks before it has done anything: the call is lost.
    LosingCalls,
    /// The connection breaks after it has done everything: the answer is lost.
    LosingAnswers,
}

/// All that can be wrong with a call. (One that hangs has to be waited for, so it is tested apart.)
pub(crate) const FAULTS: [StubBehaviour; 5] = [
    StubBehaviour::Broken,
    StubBehaviour::Garbage,
    StubBehaviour::Verbose,
    StubBehaviour::LosingCalls,
    StubBehaviour::LosingAnswers,
];

/// Where one kind of call comes in.
#[derive(Clone)]
pub(crate) struct StubEndpoint {
    mood: watch::Sender<StubBehaviour>,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// A call that has come.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl StubEndpoint {
    fn open() -> Self {
        Self { mood: watch::Sender::new(StubBehaviour::Well), calls: Arc::default() }
    }

    /// From now on, calls are treated like this; also those that hang.
    pub(crate) fn is(&self, mood: StubBehaviour) {
        self.mood.send_replace(mood);
    }

    /// The calls that have come so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    /// Until so many calls have come.
    pub(crate) async fn called(&self, times: usize) {
        eventually("a call", async || lock(&self.calls).len() >= times).await;
    }

    /// One call, or several in one.
    async fn enter(
        &self,
        calls: impl IntoIterator<Item = Call>,
        act: impl FnOnce() -> Response + Send + 'static,
    ) -> Response {
        lock(&self.calls).extend(calls);
        let mut mood = self.mood.subscribe();
        let acting = tokio::spawn(async move {
            let mood =
                *mood.wait_for(|mood| *mood != StubBehaviour::Hanging).await.expect("the door outlives its calls");
            match mood {
                StubBehaviour::Well => act(),
                StubBehaviour::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "no problem+json").into_response(),
                StubBehaviour::Garbage => "how do you do".into_response(),
                StubBehaviour::Verbose => "x".repeat(TOO_MUCH).into_response(),
                StubBehaviour::Hanging | StubBehaviour::LosingCalls => broken_off(StatusCode::INTERNAL_SERVER_ERROR),
                StubBehaviour::LosingAnswers => match act().status() {
                    StatusCode::NO_CONTENT => broken_off(StatusCode::OK), // a 204 has nothing to break off
                    status => broken_off(status),
                },
            }
        });
        acting.await.expect("a fake does not panic")
    }
}

/// An answer in the midst of which the connection breaks.
fn broken_off(status: StatusCode) -> Response {
    let end = stream::once(future::ready(Err::<Bytes, _>(io::Error::other("hung up"))));
    (status, Body::from_stream(end)).into_response()
}

/// The calls for several at once.
#[derive(Clone, Default)]
pub(crate) struct Batches(Arc<Mutex<(Vec<usize>, Knowledge)>>);

/// What a fake makes of a call for several at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// What the contract says.
    #[default]
    Knows,
    /// It has never heard of it.
    NotFound,
    /// It takes it for another call, and answers what it has for that.
    Misunderstands,
}

impl Batches {
    /// How many were in each call so far.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        lock(&self.0).0.clone()
    }

    /// From now on, this is what is made of them.
    pub(crate) fn are(&self, knowledge: Knowledge) {
        lock(&self.0).1 = knowledge;
    }

    fn come(&self, size: usize) -> Knowledge {
        let mut batches = lock(&self.0);
        batches.0.push(size);
        batches.1
    }
}

/// The fake user-service.
#[derive(Clone)]
pub(crate) struct FakeUserService {
    /// `GET /users/{id}`, at the root and under `/api/v2`; also each of those of `GET /users?ids=`.
    pub(crate) reads: StubEndpoint,
    /// How many were asked for in each call of `GET /users?ids=`.
    pub(crate) batches: Batches,
    known: Arc<[i64]>,
}

impl FakeUserService {
    /// A user-service that knows just these, and where it is.
    pub(crate) async fn serve(known: &[i64]) -> (Self, Url) {
        let people = Self { reads: StubEndpoint::open(), batches: Batches::default(), known: known.into() };
        let routes =
            Router::new().route("/users/{id}", get(read)).route("/users", get(list)).with_state(people.clone());
        (people, stub_peer(routes.clone().nest("/api/v2", routes)).await)
    }
}

async fn read(
    State(people): State<FakeUserService>,
    OriginalUri(uri): OriginalUri,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Response {
    let known = people.known.contains(&id);
    let act =
        move || if known { Json(json!({"id": id})).into_response() } else { StatusCode::NOT_FOUND.into_response() };
    people.reads.enter([Call { path: uri.path().to_owned(), headers }], act).await
}

async fn list(
    State(people): State<FakeUserService>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let ids: Vec<i64> = query["ids"].split(',').map(|id| id.parse().expect("an id")).collect();
    let found: Vec<Value> = match people.batches.come(ids.len()) {
        Knowledge::NotFound => return StatusCode::NOT_FOUND.into_response(),
        Knowledge::Misunderstands => people.known.iter().take(1).map(|id| json!({"id": id, "name": "first"})).collect(),
        Knowledge::Knows => people.known.iter().filter(|id| ids.contains(id)).map(|id| json!({"id": id})).collect(),
    };
    let call = |id| Call { path: format!("{}/{id}", uri.path()), headers: headers.clone() };
    people.reads.enter(ids.iter().map(call), move || Json(found).into_response()).await
}

/// The fake product-service.
#[derive(Clone)]
pub(crate) struct Shop {
    /// `PUT /reservations/{id}`; also each of those of `POST /reservations`.
    pub(crate) takes: StubEndpoint,
    /// `DELETE /reservations/{id}`; also each of those of `DELETE /reservations?ids=`.
    pub(crate) releases: StubEndpoint,
    /// How many takes were in each call of `POST /reservations`.
    pub(crate) batches: Batches,
    /// How many releases were in each call of `DELETE /reservations`.
    pub(crate) release_batches: Batches,
    shelves: Arc<Mutex<Shelves>>,
}

#[derive(Default)]
struct Shelves {
    products: BTreeMap<i64, Product>,
    reservations: BTreeMap<String, Reservation>,
}

struct Product {
    name: String,
    cents: i64,
    stock: i64,
}

/// Units that an order has taken, as `(product, quantity)`, or given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) status: &'static str,
    pub(crate) units: Vec<(i64, i64)>,
    answer: Value,
}

impl Shop {
    /// A product-service with nothing to sell yet, and where it is.
    pub(crate) async fn serve() -> (Self, Url) {
        let (batches, release_batches) = (Batches::default(), Batches::default());
        let (takes, releases, shelves) = (StubEndpoint::open(), StubEndpoint::open(), Arc::default());
        let shop = Self { takes, releases, batches, release_batches, shelves };
        let reservation = put(take).delete(release).get(reservation);
        let several = post(take_each).delete(release_each);
        let routes = Router::new().route("/reservations/{id}", reservation).route("/reservations", several);
        let routes = routes.with_state(shop.clone());
        (shop, stub_peer(routes).await)
    }

    /// Puts a product on the shelf, in the place of the one that had its id.
    pub(crate) fn offer(&self, id: i64, name: &str, cents: i64, stock: i64) {
        lock(&self.shelves).products.insert(id, Product { name: name.to_owned(), cents, stock });
    }

    /// The units still free to sell.
    pub(crate) fn stock(&self, id: i64) -> i64 {
        lock(&self.shelves).products[&id].stock
    }

    /// The units still free to sell of each product.
    pub(crate) fn stocks(&self) -> BTreeMap<i64, i64> {
        lock(&self.shelves).products.iter().map(|(id, product)| (*id, product.stock)).collect()
    }

    /// Every reservation ever heard of, by its order's id.
    pub(crate) fn reservations(&self) -> BTreeMap<String, Reservation> {
        lock(&self.shelves).reservations.clone()
    }

    /// How the reservation of this order stands: `taken`, `released`, or empty if nobody has heard of it.
    pub(crate) fn status(&self, order: &str) -> &'static str {
        lock(&self.shelves).reservations.get(order).map_or("", |reservation| reservation.status)
    }

    /// What a `PUT` does and answers.
    pub(crate) fn take(&self, order: &str, wanted: &Value) -> (u16, Value) {
        lock(&self.shelves).take(order, wanted)
    }
}

impl Shelves {
    fn take(&mut self, order: &str, wanted: &Value) -> (u16, Value) {
        let Some(units) = units(wanted) else { return problem(400, "invalid-request", &[]) };
        match self.reservations.get(order) {
            Some(held) if held.status == "released" => return problem(409, "reservation-released", &[]),
            Some(held) if held.units == units => return (200, held.answer.clone()),
            Some(_) => return problem(409, "reservation-mismatch", &[]),
            None => {}
        }
        let (mut unknown, mut short, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (id, quantity)) in units.iter().enumerate() {
            match self.products.get(id) {
                None => unknown.push(json!({"pointer": format!("/lines/{at}/productId"), "detail": "does not exist"})),
                Some(Product { stock, .. }) if stock < quantity => {
                    let pointer = format!("/lines/{at}/quantity");
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
        self.restock(&units, -1);
        let answer = json!({"orderId": order, "lines": lines});
        let reservation = Reservation { status: "taken", units, answer: answer.clone() };
        self.reservations.insert(order.to_owned(), reservation);
        (201, answer)
    }

    fn release(&mut self, order: &str) {
        let released = Reservation { status: "released", units: Vec::new(), answer: Value::Null };
        if let Some(held) = self.reservations.insert(order.to_owned(), released) {
            self.restock(&held.units, 1); // of a released one there are none
        }
    }

    fn restock(&mut self, units: &[(i64, i64)], sign: i64) {
        for (id, quantity) in units {
            self.products.get_mut(id).expect("products are never taken away").stock += sign * quantity;
        }
    }
}

/// The units that a take asks for, if its body is what the contract says and no more.
fn units(wanted: &Value) -> Option<Vec<(i64, i64)>> {
    let line = |line: &Value| {
        let (id, quantity) = (line["productId"].as_i64()?, line["quantity"].as_i64()?);
        (line.as_object()?.len() == 2).then_some((id, quantity))
    };
    let lines = wanted["lines"].as_array().filter(|lines| (1..=100).contains(&lines.len()))?;
    lines.iter().map(line).collect()
}

/// An amount as a JSON number with two decimals.
pub(crate) fn money(cents: i64) -> Value {
    serde_json::from_str(&format!("{}.{:02}", cents / 100, cents % 100)).expect("a decimal is JSON")
}

fn problem(status: u16, slug: &str, errors: &[Value]) -> (u16, Value) {
    let r#type = format!("urn:problem-type:{slug}");
    let problem = json!({"type": r#type, "title": slug, "status": status, "detail": slug, "requestId": "fake", "error": slug, "errors": errors});
    (status, problem)
}

async fn take(
    State(shop): State<Shop>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(wanted): Json<Value>,
) -> Response {
    let call = Call { path: format!("/reservations/{id}"), headers };
    let acting = shop.clone();
    let act = move || {
        let (status, body) = acting.take(&id, &wanted);
        let kind = if status < 400 { "application/json" } else { "application/problem+json" };
        let status = StatusCode::from_u16(status).expect("a status");
        (status, [(header::CONTENT_TYPE, kind)], body.to_string()).into_response()
    };
    shop.takes.enter([call], act).await
}

async fn take_each(State(shop): State<Shop>, headers: HeaderMap, Json(wanted): Json<Vec<Value>>) -> Response {
    match shop.batches.come(wanted.len()) {
        Knowledge::NotFound => return StatusCode::NOT_FOUND.into_response(),
        Knowledge::Misunderstands => return Json(json!([])).into_response(),
        Knowledge::Knows => {}
    }
    let order = |wanted: &Value| wanted["orderId"].as_str().expect("an id").to_owned();
    let call = |wanted| Call { path: format!("/reservations/{}", order(wanted)), headers: headers.clone() };
    let calls: Vec<Call> = wanted.iter().map(call).collect();
    let acting = shop.clone();
    let act = move || {
        let each = wanted.iter().map(|wanted| acting.take(&order(wanted), wanted));
        Json(each.map(|(status, body)| json!({"status": status, "body": body})).collect::<Vec<_>>()).into_response()
    };
    shop.takes.enter(calls, act).await
}

async fn release_each(
    State(shop): State<Shop>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let ids: Vec<String> = query["ids"].split(',').map(str::to_owned).collect();
    if shop.release_batches.come(ids.len()) != Knowledge::Knows {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let calls = ids.iter().map(|id| Call { path: format!("/reservations/{id}"), headers: headers.clone() });
    let (calls, acting) = (calls.collect::<Vec<_>>(), shop.clone());
    let act = move || {
        ids.iter().for_each(|id| lock(&acting.shelves).release(id));
        StatusCode::NO_CONTENT.into_response()
    };
    shop.releases.enter(calls, act).await
}

async fn release(State(shop): State<Shop>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let call = Call { path: format!("/reservations/{id}"), headers };
    let acting = shop.clone();
    let act = move || {
        lock(&acting.shelves).release(&id);
        StatusCode::NO_CONTENT.into_response()
    };
    shop.releases.enter([call], act).await
}

async fn reservation(State(shop): State<Shop>, Path(id): Path<String>) -> Response {
    let held = shop.reservations().remove(&id);
    let held = held.map(|held| Json(json!({"orderId": id, "status": held.status, "lines": held.answer["lines"]})));
    held.ok_or(StatusCode::NOT_FOUND).into_response()
}

/// Locks; a test that panicked elsewhere is none of a fake's business.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
