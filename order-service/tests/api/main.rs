//! The HTTP API of order-service, tested through the router with a fake user-service and a fake product-service.
//!
//! Each module covers a part of the HTTP contract or of order placement.

mod auth;
mod bad_input;
mod batches;
mod client_disconnect;
mod conditional;
mod conservation;
mod fakes;
mod flaky_store;
mod fuzz;
mod health;
mod idempotency;
mod openapi;
mod outages;
mod page;
mod paging;
mod placing;
mod reconciling;
mod rejections;
mod routing;
mod settings;
mod status_steps;
mod store_unavailable;
mod support;
