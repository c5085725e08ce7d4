//! The invariants of the order protocol, checked in the databases: the services only report what they believe.
//!
//! - **I1** per product: initial units = stock + units in reservations that are taken
//! - **I2** an order that is pending or later, and not cancelled, has a taken reservation with the same lines
//! - **I3** a taken reservation has an order row, in any state except `cancelled`
//! - **I4** at most one order per idempotency key, orders in placement included
//! - **I5** an order answered with 201 stays readable: the clients check it by HTTP
//! - **I6** an attempt answered with 4xx never becomes an order: the clients check it by HTTP
//! - **I8** ten seconds after the last fault no row is `placing`, `aborting` or `cancelling`
//!
//! (I7 says that a settled state is reachable from each state. The model of order-service checks it.)

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Error, PgConnection, query_as, query_scalar};
use tokio::time::{self, Instant};
use uuid::Uuid;

use crate::durable::{Databases, Durable};
use crate::system::{ORDERS, PRODUCTS};
use crate::{DEADLINE, PAUSE};

/// The contents of the databases.
pub struct DatabaseSnapshot {
    /// All rows of orders, also those that clients cannot see.
    pub orders: Vec<OrderRow>,
    /// The reservations, by the order's id.
    pub reservations: BTreeMap<Uuid, Reservation>,
    /// The units that are free to sell, by product.
    pub stock: BTreeMap<i64, i64>,
}

/// A row of order-service.
#[derive(Debug)]
pub struct OrderRow {
    /// The order's id.
    pub id: Uuid,
    /// The state, internal ones included.
    pub state: String,
    /// The idempotency key.
    pub key: Option<String>,
    /// The order lines.
    pub lines: Vec<Line>,
}

/// A row of product-service.
#[derive(Debug)]
pub struct Reservation {
    /// Whether it holds its units. Otherwise it is released.
    pub taken: bool,
    /// The lines that it holds or held.
    pub lines: Vec<Line>,
}

/// A line of an order or of a reservation.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The product's id.
    pub product: i64,
    /// The number of units.
    pub quantity: i64,
    /// The price of one unit, in cents.
    pub cents: i64,
    /// The product's name.
    pub name: String,
}

/// The attempts and orders with their states. An attempt has no row in `orders`: it is an intent, or waits for its release.
const ORDER_ROWS: &str = "select id, state, lines from orders
    union all select id, 'placing', '[]' from intents
    union all select order_id, 'aborting', '[]' from releases where order_id not in (select id from orders)";

const UNSETTLED: &str = "select (select count(*) from intents) + (select count(*) from releases)
    + (select count(*) from orders where state in ('placing', 'aborting', 'cancelling'))";

/// Waits until every order is settled, and returns how long that took. Returns `None` after the [`DEADLINE`] (I8).
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
    /// Reads the databases one after the other. The parts are consistent only while no order is being placed.
    ///
    /// # Errors
    /// If a database does not answer.
    pub async fn read(durable: &Durable) -> Result<Self, Error> {
        Self::read_from(&durable.databases).await
    }

    /// Reads these databases in the same way.
    ///
    /// # Errors
    /// If a database does not answer.
    pub async fn read_from(databases: &Databases) -> Result<Self, Error> {
        let (mut orders, mut products) = (databases.connect(ORDERS).await?, databases.connect(PRODUCTS).await?);
        Ok(Self {
            orders: read_orders(&mut orders).await?,
            reservations: read_reservations(&mut products).await?,
            stock: query_as("select id, stock from products").fetch_all(&mut products).await?.into_iter().collect(),
        })
    }

    /// Returns every violation of I1 to I4 and I8. `initial` has the initial units of each product, whose stock only orders
    /// may have changed since.
    pub fn violations(&self, initial: &BTreeMap<i64, i64>) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |holds: bool, violation: String| {
            if !holds {
                found.push(violation)
            }
        };
        for (product, units) in initial {
            let (stock, taken) = (self.stock.get(product).copied().unwrap_or(-1), self.taken(*product));
            check(
                stock + taken == *units,
                format!("I1: product {product}: {units} initially, {stock} in stock, {taken} taken"),
            );
            check(stock >= 0, format!("I1: product {product}: {stock} in stock"));
        }
        for order in &self.orders {
            let reservation = self.reservations.get(&order.id);
            let sold = ["pending", "confirmed", "shipped", "delivered"].contains(&&*order.state);
            let held = reservation.is_some_and(|held| held.taken && held.lines == order.lines);
            check(!sold || held, format!("I2: {order:?} with {reservation:?}"));
            let unsettled = ["placing", "aborting", "cancelling"].contains(&&*order.state);
            check(!unsettled, format!("I8: {order:?} with {reservation:?}"));
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

    /// Returns the rows of each key, except those that are `aborting`.
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
    let sql = format!(
        "select id, state, key, lines from ({ORDER_ROWS}) as orders left join idempotency_keys on order_id = id"
    );
    let rows: Vec<(Uuid, String, Option<String>, Value)> = query_as(AssertSqlSafe(sql)).fetch_all(database).await?;
    Ok(rows
        .into_iter()
        .map(|(id, state, key, stored)| OrderRow { id, state, key, lines: lines(&stored, "price") })
        .collect())
}

async fn read_reservations(database: &mut PgConnection) -> Result<BTreeMap<Uuid, Reservation>, Error> {
    let sql = "select order_id, status = 'taken', lines from reservations";
    let rows: Vec<(Uuid, bool, Value)> = query_as(sql).fetch_all(database).await?;
    Ok(rows
        .into_iter()
        .map(|(id, taken, stored)| (id, Reservation { taken, lines: lines(&stored, "cents") }))
        .collect())
}

/// Reads the lines of a row. A missing number becomes -1, so that it violates an invariant.
fn lines(stored: &Value, cents: &str) -> Vec<Line> {
    let line = |stored: &Value| {
        let number = |name: &str| stored[name].as_i64().unwrap_or(-1);
        let name = stored["name"].as_str().unwrap_or_default().to_owned();
        Line { product: number("product"), quantity: number("quantity"), cents: number(cents), name }
    };
    stored.as_array().into_iter().flatten().map(line).collect()
}
