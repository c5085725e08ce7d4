//! Clients of the services that order-service calls: typed calls, and one match per call from status to meaning.

mod products;
mod users;

pub use self::products::{Products, ReserveOutcome};
pub use self::users::Users;
