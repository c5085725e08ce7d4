//! What clients can rely on, through the router, with a user-service that is as faulty as a test wants it: each module
//! is a part of the HTTP contract.

mod batches;
mod changes;
mod conservation;
mod edge;
mod fakes;
mod fuzz;
mod lists;
mod openapi;
mod prices;
mod products;
mod reservations;
mod settings;
mod store_away;
mod support;
mod users;
