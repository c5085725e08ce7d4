//! What crosses the wire: the types of requests and answers, and the rules that both sides of a call must agree on.
//!
//! A service written in another language needs nothing from here but the JSON these types describe. So this crate
//! knows no runtime, no HTTP library and no store; `chassis` (how a service runs) and this one do not know each other.

mod id;
mod money;
mod order_id;
pub mod orders;
pub mod products;
pub mod users;

/// Most ids, or reservations, in one call.
pub const MAX_BATCH: usize = 128;

pub use id::{Id, lenient_schema};
pub use money::Money;
pub use order_id::OrderId;
