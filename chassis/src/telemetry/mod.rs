//! What a process tells of itself while it runs: log lines on stdout ([`lines`]), and traces to a collector, if there is one
//! ([`traces`]). What it counts is in [`crate::telemetry::metrics`].
//!
//! Code says what happens by `tracing`. Its events become lines; its spans become traces, and without a collector nothing:
//! then a span costs a nanosecond.

mod lines;
pub mod metrics;
pub mod traces;

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::OnceLock;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::lines::{Format, Lines, Log};
use crate::config::Settings;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text where stdout is a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json"),
        }
    }
}

/// What has to be ended with the process: spans are passed on a little later than they are written.
#[must_use = "what is not passed on yet is lost unless this is ended"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

static LINES: OnceLock<Lines> = OnceLock::new();

/// Writes the lines that wait. The last act of a process.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// Starts to log what the settings let through, and to trace if they name a collector. Call once, first.
///
/// # Errors
/// If `RUST_LOG` is not a `tracing` filter, or the exporter of the traces cannot be set up.
pub fn start(service: &'static str, settings: &Settings) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(&settings.rust_log);
    let filter = filter.map_err(|error| format!("RUST_LOG={}: {error}", settings.rust_log))?;
    let format = match (settings.log_format, io::stdout().is_terminal()) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => Format::Json,
        (LogFormat::Text, false) => Format::Text,
        (LogFormat::Text | LogFormat::Auto, true) => Format::Coloured,
    };
    let lines = LINES.get_or_init(|| Lines::start(io::stdout())).clone();
    let log = Log { format, lines }.with_filter(filter.and(filter_fn(|metadata| metadata.is_event())));
    let collector = settings.otel_exporter_otlp_endpoint.as_ref();
    let provider = collector.map(|collector| traces::provider(service, collector)).transpose()?;
    let traces = provider.as_ref().map(traces::layer);
    tracing_subscriber::registry().with(traces).with(log).try_init().map_err(|error| error.to_string())?;
    Ok(Telemetry { traces: provider })
}

impl Telemetry {
    /// Passes on the spans that are left, last of all. A collector that does not answer is not waited for longer than
    /// [`traces::LAST_CALL`].
    pub async fn end(self) {
        let Some(traces) = self.traces else { return };
        // The exporter blocks, in threads of its own.
        let sent = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(traces::LAST_CALL)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}
