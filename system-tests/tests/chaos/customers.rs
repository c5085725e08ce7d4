//! The customers: what each orders, the responses, and what it may conclude from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use serde_json::{Value, json};
use system_tests::Response;
use system_tests::load::Client;
use tokio::sync::watch;
use tokio::time;

/// The time limit of a request. After it, the outcome is unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(2500);
/// Between two attempts.
const PAUSES_MS: std::ops::Range<u64> = 50..250;
/// The most attempts after all faults have ended.
const ATTEMPTS: u32 = 200;

/// The URLs, the users and the products.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) orders: String,
    pub(crate) products: String,
    /// The ids of the users are 1 to this number.
    pub(crate) users: i64,
    /// The initial units, by product.
    pub(crate) units: BTreeMap<i64, i64>,
    /// The number of orders so far whose outcome is known.
    pub(crate) definite: Arc<AtomicUsize>,
}

/// A customer that orders, cancels and reads, one request after the other, and keeps a record.
pub(crate) struct Customer {
    number: u64,
    shop: Shop,
    random: StdRng,
    client: Client,
    pub(crate) purchases: Vec<Purchase>,
    /// Responses that violate the contract.
    pub(crate) violations: Vec<String>,
}

/// An order with its idempotency key, and what the customer knows about it.
pub(crate) struct Purchase {
    pub(crate) key: String,
    body: Value,
    pub(crate) state: Known,
    /// Whether the outcome of an attempt is unknown because it got no response. It may still become an order.
    unresolved: bool,
}

/// What a customer knows about an order.
pub(crate) enum Known {
    /// Nothing yet.
    Nothing,
    /// It was rejected with a 4xx.
    Rejected,
    /// It was placed.
    Placed {
        /// The order in the response.
        order: Value,
        cancel: Cancel,
    },
}

/// What a customer knows about the cancellation of its order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    NotSent,
    Unknown,
    Done,
}

/// The result of one attempt.
enum Outcome {
    Placed(Value),
    Rejected,
    /// Another attempt with this key is running.
    InProgress,
    /// No response, or one that does not tell the outcome.
    Unknown,
}

impl Customer {
    pub(crate) fn new(number: u64, shop: Shop, random: StdRng) -> Self {
        Self { number, shop, random, client: Client::default(), purchases: Vec::new(), violations: Vec::new() }
    }

    /// Orders until the shop closes.
    pub(crate) async fn shop(mut self, open: watch::Receiver<bool>) -> Self {
        while *open.borrow() {
            match self.random.random_range(0..10) {
                0..=5 => self.buy(&open).await,
                6..=7 => self.cancel().await,
                _ => self.read().await,
            }
        }
        self
    }

    /// Places an order. Repeats it with the same key until the outcome is known or the shop closes.
    async fn buy(&mut self, open: &watch::Receiver<bool>) {
        let key = format!("customer {}, order {}", self.number, self.purchases.len()).replace(' ', "-");
        let body = self.random_order();
        self.purchases.push(Purchase { key, body, state: Known::Nothing, unresolved: false });
        let twice = self.random.random_ratio(1, 3);
        self.attempt(self.purchases.len() - 1, twice).await;
        while *open.borrow() && matches!(self.last().state, Known::Nothing) {
            self.pause().await;
            self.attempt(self.purchases.len() - 1, false).await;
        }
        self.shop.definite.fetch_add(usize::from(self.last().is_definite()), Ordering::Relaxed);
    }

    fn last(&self) -> &Purchase {
        self.purchases.last().expect("there is a purchase")
    }

    /// Returns an order of one to three products, one to three units each. Some have an unknown user or product.
    fn random_order(&mut self) -> Value {
        let products = self.shop.units.keys().copied();
        let count = self.random.random_range(1..=3);
        let mut chosen = products.sample(&mut self.random, count);
        if self.random.random_ratio(1, 30) {
            chosen[0] = 999;
        }
        let user = if self.random.random_ratio(1, 20) { 999 } else { self.random.random_range(1..=self.shop.users) };
        let mut line = |product| json!({"productId": product, "quantity": self.random.random_range(1..=3)});
        json!({"userId": user, "products": chosen.into_iter().map(&mut line).collect::<Vec<_>>()})
    }

    /// Places an order once, or twice at the same time, and records what the responses prove.
    async fn attempt(&mut self, at: usize, twice: bool) {
        let place = async |purchase: &Purchase| {
            let request = self.client.request("POST", format!("{}/orders", self.shop.orders));
            let request = request.header("idempotency-key", &purchase.key).json(&purchase.body);
            time::timeout(REQUEST_TIMEOUT, request.try_send()).await.unwrap_or_else(|_| Err("no response".to_owned()))
        };
        let purchase = &self.purchases[at];
        let responses = if twice {
            let (one, other) = tokio::join!(place(purchase), place(purchase));
            vec![one, other]
        } else {
            vec![place(purchase).await]
        };
        for response in responses {
            match outcome(response, &mut self.violations) {
                Outcome::Placed(order) => {
                    let Purchase { key, body, state, .. } = &mut self.purchases[at];
                    match state {
                        Known::Placed { order: before, .. } if before["id"] != order["id"] => {
                            self.violations.push(format!("two orders: {key} is {before} and {order}"));
                        }
                        Known::Placed { .. } => {}
                        _ if !fits(&order, body) => self.violations.push(format!("ordered {body}, got {order}")),
                        _ => *state = Known::Placed { order, cancel: Cancel::NotSent },
                    }
                }
                Outcome::Rejected => {
                    if let state @ Known::Nothing = &mut self.purchases[at].state {
                        *state = Known::Rejected;
                    }
                }
                Outcome::InProgress => self.purchases[at].discard_rejection(),
                Outcome::Unknown => {
                    self.purchases[at].unresolved = true;
                    self.purchases[at].discard_rejection();
                }
            }
        }
    }

    /// Cancels one of its orders.
    async fn cancel(&mut self) {
        let is_placed =
            |at: &usize| matches!(&self.purchases[*at].state, Known::Placed { cancel, .. } if *cancel != Cancel::Done);
        if let Some(at) = (0..self.purchases.len()).filter(is_placed).choose(&mut self.random) {
            self.cancel_once(at).await;
        }
    }

    async fn cancel_once(&mut self, at: usize) {
        let Known::Placed { order, cancel } = &mut self.purchases[at].state else { return };
        let sent_before = *cancel != Cancel::NotSent;
        *cancel = Cancel::Unknown;
        let request = self.client.request("PATCH", format!("{}/orders/{}", self.shop.orders, id(order)));
        let request = request.json(&json!({"status": "cancelled"}));
        match time::timeout(REQUEST_TIMEOUT, request.try_send()).await {
            Ok(Ok(answer)) if answer.status == 200 => *cancel = Cancel::Done,
            Ok(Ok(answer)) if answer.status == 409 && sent_before => *cancel = Cancel::Done,
            Ok(Ok(answer)) if answer.status == 503 => {}
            Ok(Ok(answer)) => self.violations.push(format!("cancelling {order}: {answer}")),
            _ => {}
        }
    }

    /// Reads one of its orders, which must exist, or a list.
    async fn read(&mut self) {
        let orders = self.purchases.iter().filter_map(|purchase| match &purchase.state {
            Known::Placed { order, .. } => Some(order),
            _ => None,
        });
        let order = orders.choose(&mut self.random);
        let user = self.random.random_range(1..=self.shop.users);
        let is_whole = |order: &Value| order["products"].as_array().is_some_and(|lines| !lines.is_empty());
        type Fits<'a> = Box<dyn Fn(&Value) -> bool + Send + 'a>;
        let (url, fits): (String, Fits<'_>) = match (self.random.random_range(0..4), order) {
            (0, Some(order)) => {
                let same =
                    |seen: &Value| ["id", "userId", "products", "total"].iter().all(|part| seen[part] == order[part]);
                (format!("{}/orders/{}", self.shop.orders, id(order)), Box::new(same))
            }
            (1, _) => (format!("{}/products", self.shop.products), Box::new(Value::is_array)),
            (2, _) => (format!("{}/users", self.shop.products), Box::new(Value::is_array)), // product-service calls user-service
            _ => {
                let listed = move |order: &Value| order["userId"] == user && is_whole(order);
                let all = move |seen: &Value| seen.as_array().is_some_and(|orders| orders.iter().all(listed));
                (format!("{}/orders?userId={user}&limit=20", self.shop.orders), Box::new(all))
            }
        };
        let request = self.client.request("GET", url);
        if let Ok(Ok(answer)) = time::timeout(REQUEST_TIMEOUT, request.try_send()).await
            && !(answer.status == 503 || answer.status == 200 && fits(&answer.json()))
        {
            self.violations.push(format!("reading: {answer}"));
        }
    }

    /// Repeats every request whose outcome is unknown. Called after all faults have ended.
    pub(crate) async fn resolve(&mut self) {
        for at in 0..self.purchases.len() {
            for _ in 0..ATTEMPTS {
                match self.purchases[at].state {
                    Known::Placed { cancel: Cancel::Unknown, .. } => self.cancel_once(at).await,
                    _ => break,
                }
            }
            let mut attempts = 0;
            while !self.purchases[at].is_definite() && attempts < ATTEMPTS {
                // No earlier attempt is in flight any more, so a rejection now is final.
                self.purchases[at].unresolved = false;
                self.purchases[at].state = Known::Nothing;
                self.attempt(at, false).await;
                if !self.purchases[at].is_definite() {
                    self.pause().await;
                }
                attempts += 1;
            }
        }
    }

    async fn pause(&mut self) {
        time::sleep(Duration::from_millis(self.random.random_range(PAUSES_MS))).await;
    }
}

impl Purchase {
    /// Returns whether the outcome is known and final.
    pub(crate) fn is_definite(&self) -> bool {
        match self.state {
            Known::Nothing => false,
            Known::Rejected => !self.unresolved,
            Known::Placed { .. } => true,
        }
    }

    /// Discards a rejection: it does not hold for another attempt whose outcome is unknown.
    fn discard_rejection(&mut self) {
        if matches!(self.state, Known::Rejected) {
            self.state = Known::Nothing;
        }
    }
}

/// Returns what a response to `POST /orders` proves.
fn outcome(response: Result<Response, String>, violations: &mut Vec<String>) -> Outcome {
    let Ok(response) = response else { return Outcome::Unknown };
    if response.status == 201 {
        return Outcome::Placed(response.json());
    }
    let problem =
        response.json()["type"].as_str().unwrap_or_default().trim_start_matches("urn:problem-type:").to_owned();
    match (response.status, &*problem) {
        (400, "user-not-found" | "product-not-found") | (409, "insufficient-stock") => Outcome::Rejected,
        (409, "request-in-progress") => Outcome::InProgress,
        (503, _) => Outcome::Unknown,
        _ => {
            violations.push(format!("ordering: {response}"));
            Outcome::Unknown
        }
    }
}

/// Returns whether an order has the user and the lines of its request.
fn fits(order: &Value, body: &Value) -> bool {
    let lines = |of: &Value| {
        let line = |line: &Value| (line["productId"].clone(), line["quantity"].clone());
        of["products"].as_array().into_iter().flatten().map(line).collect::<Vec<_>>()
    };
    order["userId"] == body["userId"] && lines(order) == lines(body) && order["status"] == "pending"
}

/// Returns the id of an order.
pub(crate) fn id(order: &Value) -> &str {
    order["id"].as_str().unwrap_or_default()
}
