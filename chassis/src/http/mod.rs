//! HTTP: the server, the middleware of every request, and what handlers use to read requests and write answers.
//!
//! A request passes [`pipeline`], is read by [`extract`] and [`body`], and leaves as [`json`] (see [`page`] and
//! [`conditional`]) or as a [`crate::problem`].

pub(crate) mod access_log;
pub mod body;
pub mod conditional;
pub(crate) mod cors;
pub mod entity;
pub mod extract;
pub mod health;
pub mod json;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod openapi;
pub mod page;
pub(crate) mod pipeline;
pub(crate) mod server;
