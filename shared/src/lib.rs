//! The types that services exchange in JSON.
//!
//! A service in another language needs only the JSON that these types describe. So this crate has no runtime, no HTTP
//! library and no store. It does not depend on `chassis`, and `chassis` does not depend on it.

mod id;
mod money;
mod order_id;
pub mod orders;
pub mod products;
pub mod users;

/// The maximum number of ids, or of reservations, in one request.
pub const MAX_BATCH: usize = 128;

pub use id::{Id, lenient_schema};
pub use money::Money;
pub use order_id::OrderId;
