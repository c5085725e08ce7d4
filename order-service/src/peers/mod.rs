//! Clients of the services that order-service calls: typed calls, and one match per call from status to meaning.

mod products;
mod users;

pub use self::products::{PRODUCT_SERVICE, Products, ReserveOutcome};
pub use self::users::{USER_SERVICE, Users};
