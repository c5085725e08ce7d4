//! What clients can rely on, tested through the router. Each module tests one part of the HTTP contract. A stub replaces
//! user-service.

mod auth;
mod bad_input;
mod batches;
mod conditional;
mod conservation;
mod fakes;
mod fuzz;
mod openapi;
mod paging;
mod prices;
mod products;
mod reservations;
mod routing;
mod settings;
mod store_unavailable;
mod support;
mod users;
