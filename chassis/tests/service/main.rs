//! The chassis as a service meets it: a tiny service, called in the process and over real connections.

mod connections;
mod ending;
mod fuzz;
mod peers;
mod requests;
mod tiny;
mod wire;
