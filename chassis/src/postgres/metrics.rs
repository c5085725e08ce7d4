//! Metrics of the store calls and of the pool.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use sqlx::PgPool;

use crate::telemetry::metrics::{self, Counter, Durations, Family, Gauge, Labels};

static CALLS: LazyLock<Family<Labels<2>, Counter>> =
    LazyLock::new(|| metrics::register("store_calls", "Store calls, by step and outcome", Family::default()));
static DURATIONS: LazyLock<Durations<Labels<1>>> = LazyLock::new(|| {
    metrics::register("store_call_duration_seconds", "Duration of a store call, retries included", metrics::durations())
});

/// Counts a store call.
pub(super) fn record_call(step: &'static str, failed: bool, duration: Duration) {
    CALLS.get_or_create(&[("step", step), ("outcome", if failed { "failed" } else { "ok" })]).inc();
    DURATIONS.get_or_create(&[("step", step)]).observe(duration.as_secs_f64());
}

/// Registers gauges of the connections in `pool`.
pub(super) fn register_pool(pool: PgPool) {
    metrics::register_collector(PoolGauges(pool));
}

#[derive(Debug)]
struct PoolGauges(PgPool);

impl Collector for PoolGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (open, idle) = (i64::from(self.0.size()), self.0.num_idle() as i64);
        let by_state = Family::<Labels<1>, Gauge>::default();
        // sqlx counts the two separately: while one changes, the difference may be negative.
        for (state, connections) in [("idle", idle), ("used", (open - idle).max(0))] {
            by_state.get_or_create(&[("state", state)]).set(connections);
        }
        let help = "Open connections to the database, by state";
        by_state.encode(encoder.encode_descriptor("store_connections", help, None, by_state.metric_type())?)?;
        let limit = ConstGauge::new(i64::from(self.0.options().get_max_connections()));
        let help = "Maximum connections to the database";
        limit.encode(encoder.encode_descriptor("store_connections_max", help, None, limit.metric_type())?)
    }
}
