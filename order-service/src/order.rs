//! An order and its life.
//!
//! ```text
//!             ┌─ settle ─▶ pending ─▶ confirmed ─▶ shipped ─▶ delivered
//!  placing ───┤               └──────────┴─ cancel ─▶ cancelling ─ released ─▶ cancelled
//!             └─ abort ──▶ aborting ─ released ─▶ (gone)
//! ```
//!
//! The stores make these steps, and the model in `tests/model` searches what can come of them, by the same functions.

use bytes::Bytes;
use chassis::http::body::values::{any, integer, parsed};
use chassis::http::body::{FromJson, Members};
use shared::orders::{OrderStatus, WantedLine};
use shared::products::{MAX_LINES, MAX_QUANTITY};
use shared::{Id, Money};

/// Where an order stands, in full. Clients see less of it: [`State::shown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The intent: written before anyone is asked, so that whatever is begun is also finished.
    Placing,
    /// Given up; the stock, if any was taken, is to be released, and then the row goes.
    Aborting,
    /// Placed.
    Pending,
    /// Accepted by the seller.
    Confirmed,
    /// On its way.
    Shipped,
    /// Arrived.
    Delivered,
    /// Cancelled; the stock is to be released.
    Cancelling,
    /// Cancelled, and the stock is back.
    Cancelled,
}

/// What becomes of an order whose stock was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It never was one: the row goes.
    Gone,
    /// It stays, in this state.
    Kept(State),
}

impl State {
    /// All of them, in the order in which they are reached.
    pub const ALL: [Self; 8] = [
        Self::Placing,
        Self::Aborting,
        Self::Pending,
        Self::Confirmed,
        Self::Shipped,
        Self::Delivered,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The name that a database keeps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Placing => "placing",
            Self::Aborting => "aborting",
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Where an order stands that clients see here.
    pub const fn of(status: OrderStatus) -> Self {
        match status {
            OrderStatus::Pending => Self::Pending,
            OrderStatus::Confirmed => Self::Confirmed,
            OrderStatus::Shipped => Self::Shipped,
            OrderStatus::Delivered => Self::Delivered,
            OrderStatus::Cancelled => Self::Cancelled, // or on its way there; no step leads on from either
        }
    }

    /// The intent becomes an order: only if nobody has given it up meanwhile.
    pub const fn settle(self) -> Option<Self> {
        if matches!(self, Self::Placing) { Some(Self::Pending) } else { None }
    }

    /// The intent is given up: only if it has not become an order meanwhile.
    pub const fn abort(self) -> Option<Self> {
        if matches!(self, Self::Placing) { Some(Self::Aborting) } else { None }
    }

    /// The step that a client asks for, if it is one of the steps that there are.
    pub const fn step(self, to: OrderStatus) -> Option<Self> {
        match (self, to) {
            (Self::Pending, OrderStatus::Confirmed) => Some(Self::Confirmed),
            (Self::Confirmed, OrderStatus::Shipped) => Some(Self::Shipped),
            (Self::Shipped, OrderStatus::Delivered) => Some(Self::Delivered),
            (Self::Pending | Self::Confirmed, OrderStatus::Cancelled) => Some(Self::Cancelling),
            _ => None,
        }
    }

    /// Whether the stock is to be released.
    pub const fn wants_release(self) -> bool {
        matches!(self, Self::Aborting | Self::Cancelling)
    }

    /// What follows when the release is acknowledged, never before: until then only this row knows of the stock.
    pub const fn released(self) -> Option<Released> {
        match self {
            Self::Aborting => Some(Released::Gone),
            Self::Cancelling => Some(Released::Kept(Self::Cancelled)),
            _ => None,
        }
    }

    /// Whether the order's idempotency key is in use. An attempt that failed gives it up at once.
    pub const fn holds_key(self) -> bool {
        !matches!(self, Self::Aborting)
    }

    /// What clients see of it; nothing while it is no order.
    pub const fn shown(self) -> Option<OrderStatus> {
        match self {
            Self::Placing | Self::Aborting => None,
            Self::Pending => Some(OrderStatus::Pending),
            Self::Confirmed => Some(OrderStatus::Confirmed),
            Self::Shipped => Some(OrderStatus::Shipped),
            Self::Delivered => Some(OrderStatus::Delivered),
            Self::Cancelling | Self::Cancelled => Some(OrderStatus::Cancelled),
        }
    }
}

/// An order that a client wants placed. Its parts follow the rules; whether they exist is for others to say.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Whose order it is.
    pub user_id: Id,
    /// What is wanted: 1 to 100 lines, a product at most once.
    pub lines: Vec<WantedLine>,
    /// The body that said so, byte for byte.
    pub body: Bytes,
}

impl FromJson for NewOrder {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let user_id = body.required("userId", any::<Id>);
        let mut seen = Vec::new();
        let lines = body.list("products", 1..=MAX_LINES, |line| wanted_line(line, &mut seen));
        Some(Self { user_id: user_id?, lines: lines?, body: body.body().clone() })
    }
}

/// Of at most a hundred products, those that were seen are looked through sooner than hashed.
fn wanted_line(line: &mut Members<'_>, seen: &mut Vec<Id>) -> Option<WantedLine> {
    let product_id = line.required("productId", any::<Id>);
    let quantity = line.required("quantity", integer(1..=MAX_QUANTITY));
    let price = line.optional("price", any::<Money>);
    if product_id.is_some_and(|id| seen.contains(&id)) {
        line.reject("productId", "is in an earlier line already");
    }
    seen.extend(product_id);
    Some(WantedLine { product_id: product_id?, quantity: quantity?, price: price? })
}

/// The step that a client wants an order to take.
#[derive(Clone, Copy, Debug)]
pub struct StatusChange(pub OrderStatus);

impl FromJson for StatusChange {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        // By its name only: a derived enum would also be read from `{"confirmed": null}`.
        body.required("status", parsed::<OrderStatus>).map(Self)
    }
}
