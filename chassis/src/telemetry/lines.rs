//! Log lines: how they look, and how they get out without keeping a request waiting.
//!
//! A line is written into memory, and a thread passes on what has gathered ten times a second: a write for each line would
//! cost more than most requests. For a warning or an error it does not wait, nor when the process panics or ends. A process
//! that is killed loses the lines of its last tenth of a second, none of them bad news.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How long a line may wait.
const PAUSE: Duration = Duration::from_millis(100);
/// So much may wait to be written, in bytes. If whoever reads our lines is that slow, the next ones are lost and counted:
/// a service does not stand still for its log.
const ROOM: usize = 4 << 20;

/// Where lines gather. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    /// Held to add a line or to take all of them, never while they are written.
    gathered: Mutex<Gathered>,
    /// Something has been gathered where there was nothing, or something urgent.
    something: Condvar,
    /// Held while they are written: whoever flushes waits for who is at it.
    out: Mutex<Out>,
}

struct Out {
    to: Box<dyn Write + Send>,
    /// Changes places with what has been gathered: to have new memory each time would cost more than to write.
    lines: Vec<u8>,
}

#[derive(Default)]
struct Gathered {
    lines: Vec<u8>,
    urgent: bool,
    lost: usize,
}

impl Lines {
    /// Gathers lines that are written only when it is flushed.
    fn to(out: impl Write + Send + 'static) -> Self {
        let out = Mutex::new(Out { to: Box::new(out), lines: Vec::new() });
        Self(Arc::new(Shared { gathered: Mutex::default(), something: Condvar::new(), out }))
    }

    /// Writes them by itself, in a thread, and before the process panics.
    pub(super) fn start(out: impl Write + Send + 'static) -> Self {
        let lines = Self::to(out);
        let this = lines.clone();
        thread::spawn(move || {
            loop {
                this.wait();
                this.flush();
            }
        });
        let this = lines.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            this.flush();
            before(panic);
        }));
        lines
    }

    /// Writes all that has been gathered.
    pub(super) fn flush(&self) {
        let Out { to, lines } = &mut *lock(&self.0.out);
        let lost = {
            let mut gathered = lock(&self.0.gathered);
            mem::swap(&mut gathered.lines, lines);
            gathered.urgent = false;
            mem::take(&mut gathered.lost)
        };
        if lost > 0 {
            lines.extend(format!("{lost} log lines were lost, since nobody read them\n").bytes());
        }
        let _ = to.write_all(lines).and_then(|()| to.flush()); // nobody may be reading any more
        lines.clear();
    }

    /// Until there is something to write, and for as long as that may wait.
    fn wait(&self) {
        let gathered = self.0.something.wait_while(lock(&self.0.gathered), |gathered| gathered.lines.is_empty());
        let gathered = gathered.unwrap_or_else(PoisonError::into_inner);
        drop(self.0.something.wait_timeout_while(gathered, PAUSE, |gathered| !gathered.urgent));
    }

    fn add(&self, line: &[u8], urgent: bool) {
        let mut gathered = lock(&self.0.gathered);
        if gathered.lines.len() + line.len() > ROOM {
            gathered.lost += 1;
            return;
        }
        if gathered.lines.is_empty() || urgent {
            self.0.something.notify_one();
        }
        gathered.urgent |= urgent;
        gathered.lines.extend_from_slice(line);
    }
}

/// Nothing that is locked here is ever left half changed.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each event as a line: a layer for `tracing`, whose own one takes a third longer.
pub(super) struct Log {
    pub(super) format: Format,
    pub(super) lines: Lines,
}

/// How an event becomes a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `2026-01-31T09:30:00.123456Z  INFO request method=GET route=/users/{id} status=200 ms=0.4`
    Text,
    /// The same in colours, for a terminal.
    Coloured,
    /// `{"timestamp":"2026-01-31T09:30:00.123456Z","level":"INFO","message":"request","method":"GET",…}`
    Json,
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let is_urgent = *event.metadata().level() <= Level::WARN;
        self.lines.add(self.format.line(event).as_bytes(), is_urgent);
    }
}

impl Format {
    fn line(self, event: &Event<'_>) -> String {
        /// In bytes. Few lines are longer.
        const USUAL: usize = 512;
        const TIME: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
        let (now, level) = (TIME.timestamp_to_string(&Timestamp::now()), *event.metadata().level());
        let (name, colour) = match level {
            Level::ERROR => ("ERROR", "\x1b[31m"),
            Level::WARN => (" WARN", "\x1b[33m"),
            Level::INFO => (" INFO", "\x1b[32m"),
            Level::DEBUG => ("DEBUG", "\x1b[34m"),
            Level::TRACE => ("TRACE", "\x1b[34m"),
        };
        let mut line = String::with_capacity(USUAL);
        match self {
            Self::Json => line.extend(["{\"timestamp\":\"", &now, "\",\"level\":\"", name.trim_start(), "\""]),
            Self::Text => line.extend([&now, " ", name]),
            Self::Coloured => line.extend(["\x1b[2m", &now, "\x1b[0m ", colour, name, "\x1b[0m"]),
        }
        event.record(&mut Members { json: self == Self::Json, line: &mut line });
        line.push_str(if self == Self::Json { "}\n" } else { "\n" });
        line
    }
}

/// Writes the fields of an event, its message among them and, as `tracing` has it, first. (Writing to a line cannot fail.)
struct Members<'a> {
    json: bool,
    line: &'a mut String,
}

impl Members<'_> {
    /// A number or a truth, as it is.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field);
        let _ = write!(self.line, "{value}");
    }

    /// Anything else, as a text.
    fn text(&mut self, field: &Field, write: impl FnOnce(&mut Escaping<'_>) -> fmt::Result) {
        let quote = if self.json { "\"" } else { "" };
        self.name(field);
        self.line.push_str(quote);
        let _ = write(&mut Escaping { json: self.json, line: self.line });
        self.line.push_str(quote);
    }

    /// What comes before a value. In pieces, as most of a line: to have them formatted takes several times as long.
    fn name(&mut self, field: &Field) {
        self.line.extend(match (self.json, field.name()) {
            (false, "message") => [" ", "", ""],
            (false, name) => [" ", name, "="],
            (true, name) => [",\"", name, "\":"],
        });
    }
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() {
            true => self.plain(field, value),
            false => self.text(field, |out| write!(out, "{value}")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, |out| out.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, |out| write!(out, "{value:?}"));
    }
}

/// Writes a text without the characters that would move a terminal's cursor, begin a line of their own or end a JSON string:
/// much of what is logged came from a client.
struct Escaping<'a> {
    json: bool,
    line: &'a mut String,
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bad = |c: char| c.is_control() || self.json && matches!(c, '"' | '\\');
        // Next to always there is nothing to escape. Every byte is looked at, for that is done many at a time.
        let safe =
            text.bytes().fold(true, |safe, byte| safe & matches!(byte, b' '..=b'~') & !matches!(byte, b'"' | b'\\'));
        let mut rest = text;
        while let Some(at) = if safe { None } else { rest.find(bad) } {
            let (good, from) = rest.split_at(at);
            self.line.push_str(good);
            let c = from.chars().next().unwrap_or_default();
            match (self.json, c) {
                (false, _) => self.line.extend(c.escape_default()),
                (true, '"' | '\\') => self.line.extend(['\\', c]),
                (true, _) => write!(self.line, "\\u{:04x}", c as u32)?, // all of them are in the basic plane
            }
            rest = &from[c.len_utf8()..];
        }
        self.line.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;

    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What is written, write by write.
    struct ClientLog(mpsc::Sender<String>);

    impl Write for ClientLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines, mpsc::Receiver<String>) {
        let (sender, written) = mpsc::channel();
        (Lines::to(ClientLog(sender)), written)
    }

    /// What `say` logs in this format.
    fn logged(format: Format, say: impl FnOnce()) -> String {
        let (lines, written) = lines();
        let log = Log { format, lines: lines.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), say);
        lines.flush();
        written.try_iter().collect()
    }

    #[test]
    fn a_line_of_json_is_one_object_whatever_is_in_it() {
        let line = logged(Format::Json, || {
            tracing::info!(text = "a \"quoted\"\nline", shown = %1.5, number = 7, is = true, none = f64::NAN, "said");
        });
        let json: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!((&json["level"], &json["message"]), (&"INFO".into(), &"said".into()), "{line}");
        assert_eq!((&json["text"], &json["shown"]), (&"a \"quoted\"\nline".into(), &"1.5".into()), "{line}");
        assert_eq!((&json["number"], &json["is"], &json["none"]), (&7.into(), &true.into(), &"NaN".into()), "{line}");
        assert!(json["timestamp"].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok()), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }

    #[test]
    fn a_line_of_text_is_one_line_and_moves_no_cursor() {
        let line = logged(Format::Text, || tracing::info!(text = "evil\n2026 INFO \u{1b}[2J", "said"));
        let (_, rest) = line.split_once(' ').expect("a time");
        assert_eq!(rest, " INFO said text=evil\\n2026 INFO \\u{1b}[2J\n");
    }

    #[test]
    fn good_news_waits_and_bad_news_takes_it_along() {
        let (lines, written) = lines();
        let this = lines.clone();
        let is_urgent = || lock(&this.0.gathered).urgent;
        let log = Log { format: Format::Text, lines };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            tracing::info!("good");
            assert!(!is_urgent());
            tracing::warn!("bad");
            assert!(is_urgent());
        });
        this.wait();
        this.flush();
        assert!(!is_urgent());
        let written = written.try_recv().expect("all in one");
        assert!(written.contains("good") && written.contains("bad"), "{written}");
    }

    #[test]
    fn what_nobody_reads_is_lost_and_counted() {
        let (lines, written) = lines();
        for _ in 0..ROOM / 1000 + 5 {
            lines.add(&[b'x'; 1000], false);
        }
        lines.flush();
        let written: String = written.try_iter().collect();
        assert!(written.len() < ROOM + 100 && written.ends_with(" log lines were lost, since nobody read them\n"));
    }
}
