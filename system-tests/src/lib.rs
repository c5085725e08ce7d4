//! The three real processes, started, asked, killed and stopped: for the tests in `tests/`, the demo and `make run`.
//!
//! [`System`] is all three; [`Service`] is one of them, which is asked like a colleague (`system.orders.get("/orders")`)
//! and answers with [`Received`]. Nothing here links a service: all that is used is what anybody can use, a binary, its
//! environment, its output, signals and HTTP.

mod balancer;
mod binaries;
#[cfg(feature = "durable")]
pub mod durable;
mod http;
#[cfg(feature = "durable")]
pub mod invariants;
mod launch;
pub mod load;
mod proxy;
mod service;
pub mod story;
mod system;
pub mod terminal;
pub mod wrk;

use std::env;
use std::time::Duration;

use tokio::time::{self, Instant};

pub use crate::balancer::Balancer;
pub use crate::binaries::build;
pub use crate::http::{Received, Sending};
pub use crate::launch::Launch;
pub use crate::proxy::{Fault, Proxy};
pub use crate::service::{Service, Signal};
pub use crate::system::{Links, ORDERS, PRODUCTS, System, USERS, order};

/// How long the system may take for what it promises to do by itself: as long as the contract gives a placement that
/// failed to leave no trace.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until it sees `wanted`, and answers what it saw last: something else if the [`DEADLINE`] has passed. So the
/// caller's assertion says what there was instead.
pub async fn eventually<T: PartialEq>(wanted: T, look: impl AsyncFn() -> T) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let seen = look().await;
        if seen == wanted || Instant::now() > deadline {
            return seen;
        }
        time::sleep(PAUSE).await;
    }
}

/// Where the chance in a test comes from: the number in the environment variable `TEST_SEED`, else always the same. A test
/// that uses it says it when it fails, and fails again with it.
pub fn seed() -> u64 {
    env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42)
}
