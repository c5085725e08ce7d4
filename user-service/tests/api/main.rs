//! What clients can rely on, through the router: each module is a part of the HTTP contract.

mod accounts;
mod bad_input;
mod conditional;
mod edge;
mod fuzz;
mod lists;
mod openapi;
mod paging;
mod passwords;
mod store_away;
mod support;
mod users;
