//! The PostgreSQL database of a service: opened at the start, a pool with a timeout on every wait, and retries.

mod connections;
#[cfg(test)]
mod faults;
mod metrics;
mod opening;
mod pool;
mod retry;
mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls;
mod url;

pub use self::opening::Storage;
pub use self::pool::{Pool, READ_ONLY};
pub use self::retry::{Failure, is_constraint_violation, is_row_error};
