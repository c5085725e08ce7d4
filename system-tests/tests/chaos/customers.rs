//! The customers: what each asks for, what it is told, and what it may conclude.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use serde_json::{Value, json};
use system_tests::Received;
use system_tests::load::Caller;
use tokio::sync::watch;
use tokio::time;

/// A customer hangs up after this long, and knows nothing.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Between two tries.
const PAUSES_MS: std::ops::Range<u64> = 50..250;
/// So many tries are enough once all is well.
const TRIES: u32 = 200;

/// What there is to buy, and where.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) orders: String,
    pub(crate) products: String,
    /// Users 1 to this.
    pub(crate) users: i64,
    /// The units at first, by product.
    pub(crate) units: BTreeMap<i64, i64>,
    /// Of how many orders it is known so far what came of them.
    pub(crate) definite: Arc<AtomicUsize>,
}

/// One who orders, cancels and looks, one thing after the other, and keeps a record.
pub(crate) struct Customer {
    number: u64,
    shop: Shop,
    dice: StdRng,
    caller: Caller,
    pub(crate) purchases: Vec<Purchase>,
    /// What may never be answered, and was.
    pub(crate) outrages: Vec<String>,
}

/// An order that a customer wanted, under one key, and all it knows of it.
pub(crate) struct Purchase {
    pub(crate) key: String,
    wanted: Value,
    pub(crate) state: Known,
    /// Whether an attempt is in the dark: its answer was lost, or there was none. It may still become an order.
    in_the_dark: bool,
}

/// What a customer knows of an order.
pub(crate) enum Known {
    /// Nothing yet.
    Nothing,
    /// It was refused, for a reason that is the customer's.
    Refused,
    /// It was placed.
    Placed {
        /// As it was answered.
        order: Value,
        cancel: Cancel,
    },
}

/// What a customer knows of the cancelling of its order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    NotSent,
    InTheDark,
    Done,
}

/// What one attempt was told.
enum Answer {
    Placed(Value),
    Refused,
    /// Another attempt with this key is running.
    InProgress,
    /// No answer, or none that says what happened.
    None,
}

impl Customer {
    pub(crate) fn new(number: u64, shop: Shop, dice: StdRng) -> Self {
        Self { number, shop, dice, caller: Caller::default(), purchases: Vec::new(), outrages: Vec::new() }
    }

    /// Shops until it closes.
    pub(crate) async fn shop(mut self, open: watch::Receiver<bool>) -> Self {
        while *open.borrow() {
            match self.dice.random_range(0..10) {
                0..=5 => self.buy(&open).await,
                6..=7 => self.cancel().await,
                _ => self.look().await,
            }
        }
        self
    }

    /// Orders something; what it does not know, it asks again under the same key, until it knows or the shop closes.
    async fn buy(&mut self, open: &watch::Receiver<bool>) {
        let key = format!("customer {}, order {}", self.number, self.purchases.len()).replace(' ', "-");
        let wanted = self.wanted();
        self.purchases.push(Purchase { key, wanted, state: Known::Nothing, in_the_dark: false });
        let twice = self.dice.random_ratio(1, 3);
        self.attempt(self.purchases.len() - 1, twice).await;
        while *open.borrow() && matches!(self.last().state, Known::Nothing) {
            self.pause().await;
            self.attempt(self.purchases.len() - 1, false).await;
        }
        self.shop.definite.fetch_add(usize::from(self.last().is_definite()), Ordering::Relaxed);
    }

    fn last(&self) -> &Purchase {
        self.purchases.last().expect("something was bought")
    }

    /// One to three products, one to three units of each; now and then somebody or something that there is not.
    fn wanted(&mut self) -> Value {
        let products = self.shop.units.keys().copied();
        let count = self.dice.random_range(1..=3);
        let mut chosen = products.sample(&mut self.dice, count);
        if self.dice.random_ratio(1, 30) {
            chosen[0] = 999;
        }
        let user = if self.dice.random_ratio(1, 20) { 999 } else { self.dice.random_range(1..=self.shop.users) };
        let mut line = |product| json!({"productId": product, "quantity": self.dice.random_range(1..=3)});
        json!({"userId": user, "products": chosen.into_iter().map(&mut line).collect::<Vec<_>>()})
    }

    /// Asks for a purchase once, or twice at the same time, and concludes what can be concluded.
    async fn attempt(&mut self, at: usize, twice: bool) {
        let ask = async |purchase: &Purchase| {
            let request = self.caller.request("POST", format!("{}/orders", self.shop.orders));
            let request = request.header("idempotency-key", &purchase.key).json(&purchase.wanted);
            time::timeout(PATIENCE, request.try_send()).await.unwrap_or_else(|_| Err("no answer".to_owned()))
        };
        let purchase = &self.purchases[at];
        let received = if twice {
            let (one, other) = tokio::join!(ask(purchase), ask(purchase));
            vec![one, other]
        } else {
            vec![ask(purchase).await]
        };
        for received in received {
            match understand(received, &mut self.outrages) {
                Answer::Placed(order) => {
                    let Purchase { key, wanted, state, .. } = &mut self.purchases[at];
                    match state {
                        Known::Placed { order: before, .. } if before["id"] != order["id"] => {
                            self.outrages.push(format!("doubled: {key} is {before} and {order}"));
                        }
                        Known::Placed { .. } => {}
                        _ if !fits(&order, wanted) => self.outrages.push(format!("wanted {wanted}, got {order}")),
                        _ => *state = Known::Placed { order, cancel: Cancel::NotSent },
                    }
                }
                Answer::Refused => {
                    if let state @ Known::Nothing = &mut self.purchases[at].state {
                        *state = Known::Refused;
                    }
                }
                Answer::InProgress => self.purchases[at].unclear(),
                Answer::None => {
                    self.purchases[at].in_the_dark = true;
                    self.purchases[at].unclear();
                }
            }
        }
    }

    /// Cancels one of its orders.
    async fn cancel(&mut self) {
        let is_placed =
            |at: &usize| matches!(&self.purchases[*at].state, Known::Placed { cancel, .. } if *cancel != Cancel::Done);
        if let Some(at) = (0..self.purchases.len()).filter(is_placed).choose(&mut self.dice) {
            self.cancel_once(at).await;
        }
    }

    async fn cancel_once(&mut self, at: usize) {
        let Known::Placed { order, cancel } = &mut self.purchases[at].state else { return };
        let asked_before = *cancel != Cancel::NotSent;
        *cancel = Cancel::InTheDark;
        let request = self.caller.request("PATCH", format!("{}/orders/{}", self.shop.orders, id(order)));
        let request = request.json(&json!({"status": "cancelled"}));
        match time::timeout(PATIENCE, request.try_send()).await {
            Ok(Ok(answer)) if answer.status == 200 => *cancel = Cancel::Done,
            Ok(Ok(answer)) if answer.status == 409 && asked_before => *cancel = Cancel::Done,
            Ok(Ok(answer)) if answer.status == 503 => {}
            Ok(Ok(answer)) => self.outrages.push(format!("cancelling {order}: {answer}")),
            _ => {}
        }
    }

    /// Looks at one of its orders, which must be there, or at a list.
    async fn look(&mut self) {
        let orders = self.purchases.iter().filter_map(|purchase| match &purchase.state {
            Known::Placed { order, .. } => Some(order),
            _ => None,
        });
        let order = orders.choose(&mut self.dice);
        let user = self.dice.random_range(1..=self.shop.users);
        let is_whole = |order: &Value| order["products"].as_array().is_some_and(|lines| !lines.is_empty());
        type Fits<'a> = Box<dyn Fn(&Value) -> bool + Send + 'a>;
        let (url, fits): (String, Fits<'_>) = match (self.dice.random_range(0..4), order) {
            (0, Some(order)) => {
                let same =
                    |seen: &Value| ["id", "userId", "products", "total"].iter().all(|part| seen[part] == order[part]);
                (format!("{}/orders/{}", self.shop.orders, id(order)), Box::new(same))
            }
            (1, _) => (format!("{}/products", self.shop.products), Box::new(Value::is_array)),
            (2, _) => (format!("{}/users", self.shop.products), Box::new(Value::is_array)), // it asks user-service
            _ => {
                let listed = move |order: &Value| order["userId"] == user && is_whole(order);
                let all = move |seen: &Value| seen.as_array().is_some_and(|orders| orders.iter().all(listed));
                (format!("{}/orders?userId={user}&limit=20", self.shop.orders), Box::new(all))
            }
        };
        let request = self.caller.request("GET", url);
        if let Ok(Ok(answer)) = time::timeout(PATIENCE, request.try_send()).await
            && !(answer.status == 503 || answer.status == 200 && fits(&answer.json()))
        {
            self.outrages.push(format!("looking: {answer}"));
        }
    }

    /// When all is well, asks for everything again that it does not know for sure.
    pub(crate) async fn ask_until_definite(&mut self) {
        for at in 0..self.purchases.len() {
            for _ in 0..TRIES {
                match self.purchases[at].state {
                    Known::Placed { cancel: Cancel::InTheDark, .. } => self.cancel_once(at).await,
                    _ => break,
                }
            }
            let mut tries = 0;
            while !self.purchases[at].is_definite() && tries < TRIES {
                // All that is still on its way has arrived by now, so what is refused now stays refused.
                self.purchases[at].in_the_dark = false;
                self.purchases[at].state = Known::Nothing;
                self.attempt(at, false).await;
                if !self.purchases[at].is_definite() {
                    self.pause().await;
                }
                tries += 1;
            }
        }
    }

    async fn pause(&mut self) {
        time::sleep(Duration::from_millis(self.dice.random_range(PAUSES_MS))).await;
    }
}

impl Purchase {
    /// Whether it is known what came of it, and nothing can change that.
    pub(crate) fn is_definite(&self) -> bool {
        match self.state {
            Known::Nothing => false,
            Known::Refused => !self.in_the_dark,
            Known::Placed { .. } => true,
        }
    }

    /// One of two attempts is not known: then a refusal of the other says nothing of both.
    fn unclear(&mut self) {
        if matches!(self.state, Known::Refused) {
            self.state = Known::Nothing;
        }
    }
}

/// What an answer to `POST /orders` says.
fn understand(received: Result<Received, String>, outrages: &mut Vec<String>) -> Answer {
    let Ok(answer) = received else { return Answer::None };
    if answer.status == 201 {
        return Answer::Placed(answer.json());
    }
    let problem = answer.json()["type"].as_str().unwrap_or_default().trim_start_matches("urn:problem-type:").to_owned();
    match (answer.status, &*problem) {
        (400, "user-not-found" | "product-not-found") | (409, "insufficient-stock") => Answer::Refused,
        (409, "request-in-progress") => Answer::InProgress,
        (503, _) => Answer::None,
        _ => {
            outrages.push(format!("ordering: {answer}"));
            Answer::None
        }
    }
}

/// Whether an order is what was wanted.
fn fits(order: &Value, wanted: &Value) -> bool {
    let lines = |of: &Value| {
        let line = |line: &Value| (line["productId"].clone(), line["quantity"].clone());
        of["products"].as_array().into_iter().flatten().map(line).collect::<Vec<_>>()
    };
    order["userId"] == wanted["userId"] && lines(order) == lines(wanted) && order["status"] == "pending"
}

/// The id in an order.
pub(crate) fn id(order: &Value) -> &str {
    order["id"].as_str().unwrap_or_default()
}
