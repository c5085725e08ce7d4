//! Colours, for a terminal only; and how a person, or a supervisor, ends a program.

use std::env;
use std::future::Future;
use std::io::{self, IsTerminal};

use tokio::signal::unix::{SignalKind, signal};

/// The colours that are used, by their ANSI number.
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    /// Something is wrong.
    Red = 31,
    /// All is well.
    Green = 32,
    /// order-service.
    Yellow = 33,
    /// user-service.
    Blue = 34,
    /// product-service.
    Magenta = 35,
}

/// The text in this colour; as it is when stdout is no terminal, or `NO_COLOR` is set (<https://no-color.org>).
pub fn paint(text: &str, colour: Colour) -> String {
    let plain = !io::stdout().is_terminal() || env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    if plain { text.to_owned() } else { format!("\x1b[{}m{text}\x1b[0m", colour as u8) }
}

/// Comes when this process is asked to end: by Ctrl-C, a supervisor, or a terminal that is closed. From the call on,
/// those signals no longer end it by themselves.
///
/// # Errors
/// If signals cannot be caught.
pub fn asked_to_end() -> io::Result<impl Future<Output = ()>> {
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
