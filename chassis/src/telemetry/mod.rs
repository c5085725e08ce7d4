//! What a process reports about itself: log lines on stdout, [`traces`] to a collector, and [`metrics`].
//!
//! Code reports by `tracing`: events become log lines, and spans become traces. Without a collector no span is made.

mod export;
mod log;
pub mod metrics;
pub mod traces;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::log::LogGuard;
use crate::config::Settings;

/// Paths of health checks and scrapes. If they succeed, they make no log line and no span. They are served under any load: a busy
/// service would otherwise look dead.
pub(crate) const PROBES: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Keeps log and traces running until the process ends. Dropping it writes the queued log lines.
#[must_use = "when it is dropped, the log ends"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    _log: LogGuard,
}

/// Starts the log, and the traces if the settings name a collector. Call it once, before all else.
///
/// # Errors
/// If `RUST_LOG` is not a `tracing` filter, or if the trace exporter cannot be set up.
pub fn start(service: &'static str, settings: &Settings) -> Result<Telemetry, String> {
    let (log, guard) = log::layer(settings.log_format, &settings.rust_log)?;
    let collector = settings.otel_exporter_otlp_endpoint.as_ref();
    let max_spans = settings.otel_bsp_max_queue_size;
    let provider = collector.map(|collector| traces::provider(service, collector, max_spans)).transpose()?;
    let traces = provider.as_ref().map(traces::layer);
    tracing_subscriber::registry().with(traces).with(log).try_init().map_err(|error| error.to_string())?;
    panic::set_hook(Box::new(log_panic));
    Ok(Telemetry { traces: provider, _log: guard })
}

/// Logs a panic. The default hook would write text to stderr, and wait for its reader.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let location = panic.location().map(ToString::to_string);
    tracing::error!(cause = panic.payload_as_str(), location, backtrace, "a thread panicked");
}

/// Reports on stderr why the process ends: as a JSON object if `LOG_FORMAT` is `json`, otherwise as text.
pub(crate) fn report_failure(reason: &str) {
    log::failure(reason);
}

/// Writes the line that says that the service has started. `RUST_LOG` does not suppress it: supervisors and scripts read it.
pub(crate) fn log_start_up(settings: &Settings, message: &str) {
    log::start_up(settings.log_format, message);
}

impl Telemetry {
    /// Exports the remaining spans, then writes the queued log lines. Waits for the collector at most [`traces::EXPORT_TIMEOUT`].
    pub async fn end(self) {
        let Some(traces) = &self.traces else { return };
        let traces = traces.clone();
        // The export blocks its thread.
        let sent = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(traces::EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "export of the last spans failed");
        }
    }
}
