//! The PostgreSQL database of a service: opened at the start, a pool with a timeout on every wait, and retries.

mod connections;
mod metrics;
mod opening;
mod pool;
mod retry;
#[cfg(test)]
mod tests;

pub use self::opening::Storage;
pub use self::pool::Pool;
pub use self::retry::is_row_error;
