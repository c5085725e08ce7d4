//! The chassis as a service uses it: a sample service, called in the process and over real connections.

mod auth;
mod connections;
mod fuzz;
mod panics;
mod peers;
mod raw_http;
mod requests;
mod sample_service;
mod shutdown;
