//! An order, its life cycle, and the request bodies that create and change it.
//!
//! ```text
//!             ┌─ settle ─▶ pending ─▶ confirmed ─▶ shipped ─▶ delivered
//!  placing ───┤               └──────────┴─ cancel ─▶ cancelling ─ stock released ─▶ cancelled
//!             └─ abort ──▶ aborting ─ stock released ─▶ (row deleted)
//! ```
//!
//! Both stores and the model in `tests/model` use these functions, so the model checks the rules that really run.

use bytes::Bytes;
use chassis::http::body::values::{any, integer, parsed};
use chassis::http::body::{self, FromJson, Members};
use chassis::problem::Problem;
use shared::orders::OrderStatus;
use shared::products::{MAX_LINES, MAX_QUANTITY};
use shared::{Id, Money, lenient_schema};
use utoipa::ToSchema;

/// The full state of an order. Clients see only [`State::visible_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The intent is recorded, before any peer is called.
    Placing,
    /// The attempt has failed. Its stock must be released, then the row is deleted.
    Aborting,
    /// The order is placed.
    Pending,
    /// The seller has accepted the order.
    Confirmed,
    /// The order is on its way.
    Shipped,
    /// The customer has the order.
    Delivered,
    /// The order is cancelled. Its stock must be released.
    Cancelling,
    /// The order is cancelled and its stock is released.
    Cancelled,
}

/// What happens to an order when its stock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRelease {
    /// The row is deleted: the attempt never became an order.
    Deleted,
    /// The order stays, in this state.
    Kept(State),
}

impl State {
    /// All states, in the order in which they are reached.
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

    /// Returns the name that the database stores.
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

    /// Returns the state behind a visible status.
    ///
    /// `cancelled` may also stand for [`State::Cancelling`]. No status step leads on from either, so it makes no
    /// difference.
    pub const fn from_status(status: OrderStatus) -> Self {
        match status {
            OrderStatus::Pending => Self::Pending,
            OrderStatus::Confirmed => Self::Confirmed,
            OrderStatus::Shipped => Self::Shipped,
            OrderStatus::Delivered => Self::Delivered,
            OrderStatus::Cancelled => Self::Cancelled,
        }
    }

    /// Returns the state after an intent has become an order. `None` unless the state is [`State::Placing`].
    pub const fn settle(self) -> Option<Self> {
        if matches!(self, Self::Placing) { Some(Self::Pending) } else { None }
    }

    /// Returns the state after an intent was aborted. `None` unless the state is [`State::Placing`].
    pub const fn abort(self) -> Option<Self> {
        if matches!(self, Self::Placing) { Some(Self::Aborting) } else { None }
    }

    /// Returns the state after the status step that a client requests. `None` if the step is not legal.
    pub const fn step(self, to: OrderStatus) -> Option<Self> {
        match (self, to) {
            (Self::Pending, OrderStatus::Confirmed) => Some(Self::Confirmed),
            (Self::Confirmed, OrderStatus::Shipped) => Some(Self::Shipped),
            (Self::Shipped, OrderStatus::Delivered) => Some(Self::Delivered),
            (Self::Pending | Self::Confirmed, OrderStatus::Cancelled) => Some(Self::Cancelling),
            _ => None,
        }
    }

    /// Returns whether the stock of the order must be released.
    pub const fn needs_release(self) -> bool {
        matches!(self, Self::Aborting | Self::Cancelling)
    }

    /// Returns what follows once product-service has acknowledged the release. `None` if no release is needed.
    ///
    /// The row must not change earlier: until then it is the only record that the stock is still reserved.
    pub const fn after_release(self) -> Option<AfterRelease> {
        match self {
            Self::Aborting => Some(AfterRelease::Deleted),
            Self::Cancelling => Some(AfterRelease::Kept(Self::Cancelled)),
            _ => None,
        }
    }

    /// Returns whether the order holds its idempotency key. A failed attempt frees its key immediately.
    pub const fn holds_key(self) -> bool {
        !matches!(self, Self::Aborting)
    }

    /// Returns the status that clients see. `None` if the row is not an order.
    pub const fn visible_status(self) -> Option<OrderStatus> {
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

/// The body of `POST /orders`.
#[derive(Clone, Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct PlaceOrder {
    /// The user who places the order; must exist.
    #[schema(schema_with = lenient_schema)]
    pub user_id: Id,
    /// 1 to 100 lines, each product at most once.
    #[schema(min_items = 1, max_items = 100)]
    pub products: Vec<WantedLine>,
    /// The bytes of the whole body, for the fingerprint of an idempotent request.
    #[schema(ignore)]
    pub body: Bytes,
}

/// One line of the body of `POST /orders`.
#[derive(Clone, Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct WantedLine {
    /// The product; must exist.
    #[schema(schema_with = lenient_schema)]
    pub product_id: Id,
    /// The number of units: 1 to 10,000.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
    /// The price of one unit that the client expects, with at most two decimals. If the real price differs, no order is placed.
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 9_999_999_999_999.99, example = 999.99)]
    pub price: Option<Money>,
}

impl PlaceOrder {
    /// Reads the body. The order is for `account` if the body names no user.
    ///
    /// # Errors
    /// If the body is not JSON, or a member is invalid: one error for each. Without an account the user is required.
    pub fn read(body: &Bytes, account: Option<Id>) -> Result<Self, Problem> {
        body::read_object_with(body, |members| {
            let user_id = match account {
                Some(own) => members.optional("userId", any::<Id>).map(|user| user.unwrap_or(own)),
                None => members.required("userId", any::<Id>),
            };
            let mut seen = Vec::new();
            let products = members.list("products", 1..=MAX_LINES, |line| WantedLine::from_json(line, &mut seen));
            Some(Self { user_id: user_id?, products: products?, body: body.clone() })
        })
    }
}

impl WantedLine {
    /// Reads one line. `seen` holds the products of the earlier lines; for up to 100 ids a scan is faster than a hash
    /// set.
    fn from_json(line: &mut Members<'_>, seen: &mut Vec<Id>) -> Option<Self> {
        let product_id = line.required("productId", any::<Id>);
        let quantity = line.required("quantity", integer(1..=MAX_QUANTITY));
        let price = line.optional("price", any::<Money>);
        if product_id.is_some_and(|id| seen.contains(&id)) {
            line.reject("productId", "is in an earlier line already");
        }
        seen.extend(product_id);
        Some(Self { product_id: product_id?, quantity: quantity?, price: price? })
    }
}

/// The body of `PATCH /orders/{id}`, a JSON Merge Patch. A status cannot be removed with `null`.
#[derive(Clone, Copy, Debug, ToSchema)]
pub struct UpdateOrder {
    /// The step to take: pending → confirmed → shipped → delivered, or pending or confirmed → cancelled.
    pub status: OrderStatus,
}

impl FromJson for UpdateOrder {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        // Parsed by name: the derived `Deserialize` of an enum would also accept `{"confirmed": null}`.
        body.required("status", parsed::<OrderStatus>).map(|status| Self { status })
    }
}
