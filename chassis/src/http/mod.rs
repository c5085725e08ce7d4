//! HTTP: the server, the middleware, and what handlers use to read requests and build responses.
//!
//! A request passes [`pipeline`] and is read by [`extract`] and [`body`]. Its response shows an [`entity`], alone
//! ([`conditional`]) or with others ([`page`]), or is a [`crate::problem`].

pub(crate) mod access_log;
pub mod body;
pub mod client_address;
mod compression;
pub mod conditional;
pub(crate) mod cors;
pub mod entity;
pub mod extract;
pub(crate) mod forwarded;
pub mod health;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod openapi;
pub mod page;
pub(crate) mod pipeline;
pub(crate) mod resource_metadata;
pub(crate) mod routes;
pub(crate) mod self_check;
pub(crate) mod server;
