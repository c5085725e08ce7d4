//! What clients can rely on, through the router, with a user-service and a product-service that are as faulty as a test
//! wants them: each module is a part of the HTTP contract, or of the placement's.

mod bad_input;
mod batches;
mod conservation;
mod edge;
mod fakes;
mod fuzz;
mod hanging_up;
mod idempotency;
mod lists;
mod outages;
mod placing;
mod reconciling;
mod refusals;
mod steps;
mod store_away;
mod support;
