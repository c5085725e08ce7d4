//! The services that this one calls: typed calls, and one match each from status to meaning.

mod users;

pub use self::users::{UserList, Users};
