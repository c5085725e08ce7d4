//! The services this one calls: typed calls, and one match each from status to meaning.

mod products;
mod users;

pub use self::products::{Products, Take};
pub use self::users::Users;
