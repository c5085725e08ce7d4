//! What must hold whatever was killed, looked up in the databases themselves: who asks the services only learns what they
//! believe. I1 to I8 are the names that these have had since the protocol was designed:
//!
//! - **I1** every product: the units there were at first = its stock + the units in reservations that are taken
//! - **I2** an order that is pending or later, and not cancelled, has its reservation taken, with the same lines
//! - **I3** a reservation that is taken has its order's row, in any state but `cancelled`
//! - **I4** at most one order for each idempotency key, those still being placed counted
//! - **I5** an order answered with 201 is readable ever after: asked by HTTP, by who was answered
//! - **I6** an attempt answered 4xx never becomes an order: the same
//! - **I8** within ten seconds of the last fault no row is `placing`, `aborting` or `cancelling`
//!
//! (I7 was that from each state of the protocol a settled one can be reached: order-service's model shows it.)

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::{Error, PgConnection, query_as, query_scalar};
use tokio::time::{self, Instant};
use uuid::Uuid;

use crate::durable::Durable;
use crate::system::{ORDERS, PRODUCTS};
use crate::{DEADLINE, PAUSE};

/// What the databases hold.
pub struct DatabaseSnapshot {
    /// All rows, those included that no client sees.
    pub orders: Vec<OrderRow>,
    /// By the order's id.
    pub reservations: BTreeMap<Uuid, Reservation>,
    /// By product: the units that are free to sell.
    pub stock: BTreeMap<i64, i64>,
}

/// A row of order-service.
#[derive(Debug)]
pub struct OrderRow {
    /// The order's id.
    pub id: Uuid,
    /// Its state, in full.
    pub state: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// What was sold.
    pub lines: Vec<Line>,
}

/// A row of product-service.
#[derive(Debug)]
pub struct Reservation {
    /// Whether it holds its units; else it is released.
    pub taken: bool,
    /// What it holds or held.
    pub lines: Vec<Line>,
}

/// A line of either.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Which product.
    pub product: i64,
    /// How many units.
    pub quantity: i64,
    /// The price of one, in cents.
    pub cents: i64,
    /// Its name.
    pub name: String,
}

const UNSETTLED: &str = "select count(*) from orders where state in ('placing', 'aborting', 'cancelling')";

/// Waits until no order is half done; how long that took. `None` if the [`DEADLINE`] has passed before (I8).
///
/// # Panics
/// If the database does not answer.
pub async fn settled(durable: &Durable) -> Option<Duration> {
    let began = Instant::now();
    let mut orders = durable.database(ORDERS).await.expect("the database answers");
    loop {
        let unsettled: i64 = query_scalar(UNSETTLED).fetch_one(&mut orders).await.expect("the database answers");
        match (unsettled, began.elapsed()) {
            (0, elapsed) => return Some(elapsed),
            (_, elapsed) if elapsed > DEADLINE => return None,
            _ => time::sleep(PAUSE).await,
        }
    }
}

impl DatabaseSnapshot {
    /// Reads them. They fit each other only while nothing is being placed.
    ///
    /// # Errors
    /// If a database does not answer.
    pub async fn read(durable: &Durable) -> Result<Self, Error> {
        Self::read_from(&mut durable.database(ORDERS).await?, &mut durable.database(PRODUCTS).await?).await
    }

    /// The same from the databases of order-service and of product-service.
    ///
    /// # Errors
    /// If a database does not answer.
    pub async fn read_from(orders: &mut PgConnection, products: &mut PgConnection) -> Result<Self, Error> {
        Ok(Self {
            orders: read_orders(orders).await?,
            reservations: read_reservations(products).await?,
            stock: query_as("select id, stock from products").fetch_all(products).await?.into_iter().collect(),
        })
    }

    /// Every case in which something does not hold of I1 to I4, and of I8 if it is high time. `initial` are the units of
    /// each product at first; nobody may have changed them since but by orders.
    pub fn violations(&self, initial: &BTreeMap<i64, i64>) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                found.push(what)
            }
        };
        for (product, units) in initial {
            let (stock, taken) = (self.stock.get(product).copied().unwrap_or(-1), self.taken(*product));
            check(
                stock + taken == *units,
                format!("I1: product {product}: {units} at first, {stock} left, {taken} taken"),
            );
            check(stock >= 0, format!("I1: product {product}: {stock} left"));
        }
        for order in &self.orders {
            let reservation = self.reservations.get(&order.id);
            let sold = ["pending", "confirmed", "shipped", "delivered"].contains(&&*order.state);
            let held = reservation.is_some_and(|held| held.taken && held.lines == order.lines);
            check(!sold || held, format!("I2: {order:?} with {reservation:?}"));
            let half_done = ["placing", "aborting", "cancelling"].contains(&&*order.state);
            check(!half_done, format!("I8: {order:?} with {reservation:?}"));
        }
        let states: BTreeMap<_, _> = self.orders.iter().map(|order| (order.id, &*order.state)).collect();
        for (id, reservation) in self.reservations.iter().filter(|(_, reservation)| reservation.taken) {
            let state = states.get(id);
            check(state.is_some_and(|state| *state != "cancelled"), format!("I3: {id} is {state:?}: {reservation:?}"));
        }
        for (key, orders) in self.by_key() {
            check(orders.len() <= 1, format!("I4: key {key}: {orders:?}"));
        }
        found
    }

    /// The rows of each key, those that are given up left out.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&OrderRow>> {
        let mut keys = BTreeMap::<_, Vec<_>>::new();
        for order in self.orders.iter().filter(|order| order.state != "aborting") {
            if let Some(key) = &order.key {
                keys.entry(&**key).or_default().push(order);
            }
        }
        keys
    }

    fn taken(&self, product: i64) -> i64 {
        let taken = self.reservations.values().filter(|reservation| reservation.taken);
        taken.flat_map(|held| &held.lines).filter(|line| line.product == product).map(|line| line.quantity).sum()
    }
}

async fn read_orders(database: &mut PgConnection) -> Result<Vec<OrderRow>, Error> {
    let sql = "select id, state, idempotency_key, lines from orders";
    let rows: Vec<(Uuid, String, Option<String>, Value)> = query_as(sql).fetch_all(database).await?;
    Ok(rows
        .into_iter()
        .map(|(id, state, key, kept)| OrderRow { id, state, key, lines: lines(&kept, "price") })
        .collect())
}

async fn read_reservations(database: &mut PgConnection) -> Result<BTreeMap<Uuid, Reservation>, Error> {
    let sql = "select order_id, status = 'taken', lines from reservations";
    let rows: Vec<(Uuid, bool, Value)> = query_as(sql).fetch_all(database).await?;
    Ok(rows.into_iter().map(|(id, taken, kept)| (id, Reservation { taken, lines: lines(&kept, "cents") })).collect())
}

/// The lines that a row keeps. What is no number there is -1, and so in nobody's favour.
fn lines(kept: &Value, cents: &str) -> Vec<Line> {
    let line = |kept: &Value| {
        let number = |name: &str| kept[name].as_i64().unwrap_or(-1);
        let name = kept["name"].as_str().unwrap_or_default().to_owned();
        Line { product: number("product"), quantity: number("quantity"), cents: number(cents), name }
    };
    kept.as_array().into_iter().flatten().map(line).collect()
}
