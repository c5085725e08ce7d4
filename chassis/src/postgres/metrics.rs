//! Metrics of the store calls and of the pool.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::connections::Connections;
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

/// Registers gauges of the connections.
pub(super) fn register_pool(connections: Arc<Connections>) {
    metrics::register_collector(PoolGauges(connections));
}

#[derive(Debug)]
struct PoolGauges(Arc<Connections>);

impl Collector for PoolGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (open, idle) = self.0.count();
        let by_state = Family::<Labels<1>, Gauge>::default();
        // The two are counted one after the other. If a connection is closed in between, more may be idle than open.
        for (state, connections) in [("idle", idle), ("used", open.saturating_sub(idle))] {
            by_state.get_or_create(&[("state", state)]).set(connections.into());
        }
        let help = "Open connections to the database, by state";
        by_state.encode(encoder.encode_descriptor("store_connections", help, None, by_state.metric_type())?)?;
        let limit = ConstGauge::new(i64::from(self.0.max_connections()));
        let help = "Maximum connections to the database";
        limit.encode(encoder.encode_descriptor("store_connections_max", help, None, limit.metric_type())?)
    }
}
