//! The log: one line on stdout for each event, as JSON or as text.
//!
//! tracing-subscriber formats a line, tracing-appender queues it, and a thread of its own writes it. A request never waits for
//! stdout: if the queue is full because stdout is read too slowly, the line is lost and counted.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogFormat;

/// Maximum number of queued lines, about 4 MiB.
const QUEUED_LINES: usize = 8192;

/// Time to write the queued lines when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether `LOG_FORMAT` is `json`. Then stderr has JSON, too.
static IS_JSON: OnceLock<bool> = OnceLock::new();

/// The queue, for the start-up line.
static QUEUE: OnceLock<NonBlocking> = OnceLock::new();

/// The target of the start-up event. It has a filter of its own, because the line is written whatever `RUST_LOG` is.
const START_UP: &str = "start_up";

/// Returns a layer that writes the events that pass `filter` to stdout, and the guard that flushes them.
pub(super) fn layer<S>(format: LogFormat, filter: &str) -> Result<(impl Layer<S> + use<S>, LogGuard), String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let _ = IS_JSON.set(format == LogFormat::Json);
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("RUST_LOG={filter}: {error}"))?;
    let start_up = format!("{START_UP}=info").parse().map_err(|error| format!("{START_UP}: {error}"))?;
    let filter = filter.add_directive(start_up).and(filter_fn(|metadata| metadata.is_event()));
    let is_json = is_json(format);
    let (writer, guard) = queue(io::stdout(), is_json);
    let _ = QUEUE.set(writer.clone());
    let lines = if is_json { json(writer) } else { text(writer, io::stdout().is_terminal()) };
    Ok((lines.with_filter(filter), guard))
}

/// Writes the start-up line: an event in JSON mode, otherwise the bare message.
pub(super) fn start_up(format: LogFormat, message: &str) {
    if is_json(format) {
        tracing::info!(target: START_UP, "{message}");
    } else if let Some(queue) = QUEUE.get() {
        let _ = queue.clone().write_all(format!("{message}\n").as_bytes());
    }
}

/// Writes to stderr why the process ends: a JSON object if `LOG_FORMAT` is `json`, otherwise text.
pub(super) fn failure(reason: &str) {
    let line = match IS_JSON.get() {
        Some(true) => json_line("ERROR", reason, None),
        _ => format!("error: {reason}\n"),
    };
    run_in_time(move || drop(io::stderr().write_all(line.as_bytes())));
}

fn is_json(format: LogFormat) -> bool {
    match format {
        LogFormat::Auto => !io::stdout().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

/// `{"timestamp":"2026-01-31T09:30:00.123456Z","level":"INFO","message":"request","method":"GET",…}`
fn json<S: Subscriber + for<'a> LookupSpan<'a>>(writer: NonBlocking) -> Box<dyn Layer<S> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(false);
    layer.with_current_span(false).with_span_list(false).with_writer(writer).boxed()
}

/// `2026-01-31T09:30:00.123456Z  INFO request method="GET" route="/users/{id}" status=200 ms=0.4`, in colours on a terminal
/// unless `NO_COLOR` is set.
fn text<S: Subscriber + for<'a> LookupSpan<'a>>(
    writer: NonBlocking,
    is_terminal: bool,
) -> Box<dyn Layer<S> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_target(false).fmt_fields(EscapedFields).with_writer(writer);
    // `with_ansi(true)` would override `NO_COLOR`, which the library reads by default.
    if is_terminal { layer.boxed() } else { layer.with_ansi(false).boxed() }
}

/// The library's text fields with all control characters escaped. The library itself leaves line breaks as they are, so a value
/// sent by a client could look like a second line.
struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        DefaultFields::new().format_fields(Writer::new(&mut Escape(&mut writer)), fields)
    }
}

struct Escape<'a, 'writer>(&'a mut Writer<'writer>);

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let safe = part.trim_end_matches(char::is_control);
            self.0.write_str(safe)?;
            write!(self.0, "{}", part[safe.len()..].escape_default())?;
        }
        Ok(())
    }
}

/// Starts the thread that writes lines to `out`. Returns the queue, and the guard that flushes it.
fn queue(out: impl Write + Send + 'static, is_json: bool) -> (NonBlocking, LogGuard) {
    let lost = Arc::<OnceLock<ErrorCounter>>::default();
    let output = Output { out: BufWriter::new(out), is_json, lost: Arc::clone(&lost), reported: 0 };
    let (writer, worker) = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).finish(output);
    let _ = lost.set(writer.error_counter()); // the counter is made after the output
    (writer, LogGuard(Some(worker)))
}

/// The end of the queue, in the writing thread. It ignores errors of `out`: if it returned one, a service whose stdout is closed
/// would end a second late.
struct Output<W: Write> {
    out: BufWriter<W>,
    is_json: bool,
    /// Counts the lines that were lost because the queue was full.
    lost: Arc<OnceLock<ErrorCounter>>,
    reported: usize,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.out.write_all(bytes);
        Ok(bytes.len())
    }

    /// The writing thread calls this when it has emptied the queue.
    fn flush(&mut self) -> io::Result<()> {
        let total = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        if total > self.reported {
            let _ = self.out.write_all(lost_lines(total - self.reported, self.is_json).as_bytes());
            self.reported = total;
        }
        let _ = self.out.flush();
        Ok(())
    }
}

/// Returns the line that reports lost lines. Not an event: it would have to pass the queue.
fn lost_lines(lines: usize, is_json: bool) -> String {
    const MESSAGE: &str = "log lines lost; stdout is read too slowly";
    match is_json {
        true => json_line("WARN", MESSAGE, Some(lines)),
        false => format!("{:.6}  WARN {MESSAGE} lines={lines}\n", Timestamp::now()),
    }
}

/// Returns a line as JSON that does not pass the queue.
fn json_line(level: &str, message: &str, lines: Option<usize>) -> String {
    let timestamp = format!("{:.6}", Timestamp::now());
    let mut line = json!({"timestamp": timestamp, "level": level, "message": message});
    if let Some(lines) = lines {
        line["lines"] = lines.into();
    }
    format!("{line}\n")
}

/// Writes the queued lines when it is dropped: at the end of the process, or when a panic unwinds `main`.
#[derive(Debug)]
pub(super) struct LogGuard(Option<WorkerGuard>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let worker = self.0.take();
        // `WorkerGuard` reports a full queue by `println!`. If stdout is not read, that never returns.
        run_in_time(|| drop(worker));
    }
}

/// Runs a write in a thread, and waits for its end for at most [`FLUSH_TIMEOUT`]: it may block, if nothing reads the output.
fn run_in_time(write: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel::<()>();
    let write = move || {
        write();
        drop(done);
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = wait.recv_timeout(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::Value;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Passes on each write. It blocks while the channel is full, as a pipe does that is not read.
    struct Pipe(mpsc::SyncSender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            sent.map(|()| bytes.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

    /// Returns what `log` writes in this format.
    fn logged(format: fn(NonBlocking) -> Boxed, log: impl FnOnce()) -> String {
        let (pipe, written) = mpsc::sync_channel(100);
        let (writer, guard) = queue(Pipe(pipe), true);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(format(writer)), log);
        drop(guard);
        written.try_iter().collect()
    }

    fn plain_text(writer: NonBlocking) -> Boxed {
        text(writer, false)
    }

    #[test]
    fn writes_one_json_object_whatever_the_fields_contain() {
        let line = logged(json, || {
            tracing::info!(text = "a \"quoted\"\nline", shown = %1.5, number = 7, is = true, none = f64::NAN, "said");
        });
        let json: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!((&json["level"], &json["message"]), (&"INFO".into(), &"said".into()), "{line}");
        assert_eq!((&json["text"], &json["shown"]), (&"a \"quoted\"\nline".into(), &"1.5".into()), "{line}");
        assert_eq!((&json["number"], &json["is"], &json["none"]), (&7.into(), &true.into(), &Value::Null), "{line}");
        assert!(json["timestamp"].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok()), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }

    #[test]
    fn writes_one_line_of_text_without_control_characters() {
        const EVIL: &str = "evil\n2026 INFO \u{1b}[2J\u{9b}\u{7f}";
        let line = logged(plain_text, || tracing::info!(text = "evil\n2026 INFO \u{1b}[2J", "said"));
        let (_, rest) = line.split_once(' ').expect("a time");
        assert_eq!(rest, " INFO said text=\"evil\\n2026 INFO \\u{1b}[2J\"\n");
        for line in [
            logged(plain_text, || tracing::info!("{EVIL}")),
            logged(plain_text, || tracing::info!(text = %EVIL)),
            logged(plain_text, || tracing::info!(text = EVIL)),
        ] {
            assert!(line.ends_with('\n') && line.matches(char::is_control).count() == 1, "{line:?}");
        }
    }

    #[test]
    fn writes_a_line_without_waiting_for_the_next() {
        let (pipe, written) = mpsc::sync_channel(100);
        let (writer, _guard) = queue(Pipe(pipe), false);
        let log = tracing_subscriber::registry().with(plain_text(writer));
        tracing::subscriber::with_default(log, || tracing::info!("one"));
        let line = written.recv_timeout(Duration::from_secs(10)).expect("a line");
        assert!(line.ends_with("INFO one\n"), "{line}");
    }

    #[test]
    fn writes_the_queued_lines_when_a_panic_unwinds() {
        let (pipe, written) = mpsc::sync_channel(100);
        let (writer, guard) = queue(Pipe(pipe), false);
        let log = tracing_subscriber::registry().with(plain_text(writer));
        let panicked = thread::spawn(move || {
            let _guard = guard;
            tracing::subscriber::with_default(log, || tracing::info!("the last words"));
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(written.try_iter().any(|line| line.contains("the last words")));
    }

    #[test]
    fn loses_and_counts_lines_when_nothing_reads_them() {
        const LINES: usize = 2 * QUEUED_LINES;
        let (pipe, written) = mpsc::sync_channel(0);
        let (writer, guard) = queue(Pipe(pipe), false);
        let log = tracing_subscriber::registry().with(plain_text(writer));
        tracing::subscriber::with_default(log, || (0..LINES).for_each(|n| tracing::info!(n, "line")));
        let reader = thread::spawn(move || written.iter().collect::<String>());
        drop(guard);
        let written = reader.join().expect("the lines");
        let (_, lost) = written.rsplit_once("WARN log lines lost; stdout is read too slowly lines=").expect("a report");
        let lost: usize = lost.trim_end().parse().expect("a number");
        let lines = written.lines().filter(|line| line.contains("INFO line n=")).count();
        assert_eq!(lines + lost, LINES);
        assert!(lines >= QUEUED_LINES && lost > 0, "{lines} lines, {lost} lost");
    }

    #[test]
    fn reports_lost_lines_in_json() {
        let json: Value = serde_json::from_str(&lost_lines(7, true)).expect("JSON");
        assert_eq!((&json["level"], &json["lines"]), (&"WARN".into(), &7.into()), "{json}");
        assert!(json["timestamp"].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok()), "{json}");
    }

    #[test]
    fn ends_in_time_when_nothing_reads_the_lines() {
        let (pipe, _unread) = mpsc::sync_channel(0);
        let (writer, guard) = queue(Pipe(pipe), false);
        let log = tracing_subscriber::registry().with(plain_text(writer));
        tracing::subscriber::with_default(log, || {
            (0..2 * QUEUED_LINES).for_each(|n| tracing::info!(n, "line"));
            let began = Instant::now();
            drop(guard);
            assert!(began.elapsed() < 2 * FLUSH_TIMEOUT);
        });
    }

    #[test]
    fn ends_immediately_when_stdout_is_closed() {
        let (pipe, read) = mpsc::sync_channel(0);
        drop(read);
        let (writer, guard) = queue(Pipe(pipe), false);
        let log = tracing_subscriber::registry().with(plain_text(writer));
        tracing::subscriber::with_default(log, || tracing::info!("unread"));
        let began = Instant::now();
        drop(guard);
        assert!(began.elapsed() < FLUSH_TIMEOUT / 4);
    }
}
