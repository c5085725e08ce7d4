//! Logs: one line of text on stdout for each request and for each failure at its cause.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets through. Call once, first.
///
/// # Errors
/// If `filter` is not a `tracing` filter.
pub fn start(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("RUST_LOG={filter}: {error}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stdout().is_terminal());
    lines.with_target(false).try_init().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let refused = start("user_service=loud").expect_err("no level of that name");
        assert!(refused.starts_with("RUST_LOG=user_service=loud: "), "{refused}");
    }
}
