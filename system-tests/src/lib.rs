//! Starts, calls, kills and stops the three real processes: for the tests in `tests/`, the demo and `make run`.
//!
//! [`System`] is all three services, [`Service`] is one of them. A call reads `system.orders.get("/orders")` and returns a
//! [`Response`]. Nothing here links a service: only its binary, environment, output, signals and HTTP are used.

mod balancer;
mod binaries;
#[cfg(feature = "durable")]
pub mod durable;
mod http;
#[cfg(feature = "durable")]
pub mod invariants;
mod launch;
pub mod load;
pub mod narration;
mod proxy;
mod service;
mod sign_in;
mod system;
pub mod terminal;
pub mod wrk;

use std::env;
use std::time::Duration;

use tokio::time::{self, Instant};

pub use crate::balancer::Balancer;
pub use crate::binaries::build;
pub use crate::http::{Request, Response};
pub use crate::launch::Launch;
pub use crate::proxy::{Fault, Proxy};
pub use crate::service::{Service, Signal};
pub use crate::sign_in::{ADMIN, SignIn, sign_in};
pub use crate::system::{Links, ORDERS, PRODUCTS, System, USERS, order};

/// The time within which the system must do what happens in the background. The contract allows as long until a failed
/// placement leaves no trace.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `look` until it returns `wanted` or the [`DEADLINE`] has passed. Returns the last result, so that the caller's
/// assertion shows what was there instead.
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

/// Returns the seed of random tests: the number in the environment variable `TEST_SEED`, or 42. A random test prints its
/// seed when it fails.
pub fn seed() -> u64 {
    env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42)
}

/// Returns whether the environment has `THOROUGH=1`, as in CI. Random tests then run longer and with more seeds.
pub fn is_thorough() -> bool {
    env::var_os("THOROUGH").is_some_and(|value| value == "1")
}
