//! Colours on a terminal, and the signals that end a program.

use std::env;
use std::future::Future;
use std::io::{self, IsTerminal};

use tokio::signal::unix::{SignalKind, signal};

/// The colours in use, by their ANSI number.
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    /// A failure.
    Red = 31,
    /// A success.
    Green = 32,
    /// order-service.
    Yellow = 33,
    /// user-service.
    Blue = 34,
    /// product-service.
    Magenta = 35,
}

/// Returns the text in this colour. Returns it unchanged if stdout is no terminal, or if `NO_COLOR` is set
/// (<https://no-color.org>).
pub fn paint(text: &str, colour: Colour) -> String {
    let plain = !io::stdout().is_terminal() || env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    if plain { text.to_owned() } else { format!("\x1b[{}m{text}\x1b[0m", colour as u8) }
}

/// Completes at the first SIGINT, SIGTERM or SIGHUP. From the call on, these signals no longer end the process.
///
/// # Errors
/// If signals cannot be caught.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
