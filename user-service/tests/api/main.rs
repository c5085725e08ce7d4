//! The HTTP contract with clients, tested through the router.

mod accounts;
mod auth;
mod bad_input;
mod conditional;
mod fuzz;
mod openapi;
mod paging;
mod passwords;
mod routing;
mod settings;
mod store_unavailable;
mod support;
mod users;
