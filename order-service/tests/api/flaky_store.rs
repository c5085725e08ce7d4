//! A store whose steps fail when a test wants it, and that can let concurrent requests meet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use order_service::order::State;
use order_service::store::{BeginOutcome, Filter, Intent, MemoryStore, OrderStore, StoreError};
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Money, OrderId};
use tokio::sync::Barrier;

/// The cause of every failure.
pub(crate) const CAUSE: &str = "no route to 10.0.0.7";

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step was not done.
    NotDone,
    /// The step was done and its response is lost.
    ResponseLost,
}

/// The store in memory, with faults per step.
#[derive(Default)]
pub(crate) struct FlakyStore {
    store: MemoryStore,
    faults: Mutex<HashMap<&'static str, Fault>>,
    failures: AtomicUsize,
    /// Where the next status steps wait for each other, and how many have not arrived there yet.
    barrier: Mutex<Option<(Arc<Barrier>, usize)>>,
}

impl FlakyStore {
    /// Lets further calls of this step fail.
    pub(crate) fn fail(&self, step: &'static str, fault: Fault) {
        self.faults.lock().expect("no panic under the lock").insert(step, fault);
    }

    /// Lets no further call fail.
    pub(crate) fn recover(&self) {
        self.faults.lock().expect("no panic under the lock").clear();
    }

    /// Lets the next `count` status steps wait for each other, after their requests have read the order.
    pub(crate) fn synchronize_steps(&self, count: usize) {
        *self.barrier.lock().expect("no panic under the lock") = Some((Arc::new(Barrier::new(count)), count));
    }

    async fn wait_for_other_steps(&self) {
        let barrier = {
            let mut barrier = self.barrier.lock().expect("no panic under the lock");
            barrier.as_mut().filter(|(_, missing)| *missing > 0).map(|(barrier, missing)| {
                *missing -= 1;
                Arc::clone(barrier)
            })
        };
        if let Some(barrier) = barrier {
            barrier.wait().await;
        }
    }

    /// Returns how many calls have failed so far.
    pub(crate) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    async fn run<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.faults.lock().expect("no panic under the lock").get(step).copied();
        if fault.is_none() {
            return call.await;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        if fault == Some(Fault::ResponseLost) {
            call.await?;
            return Err(StoreError::OutcomeUnknown(CAUSE.to_owned()));
        }
        Err(StoreError::Unavailable(CAUSE.to_owned()))
    }
}

#[async_trait]
impl OrderStore for FlakyStore {
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError> {
        self.run("begin", self.store.begin(intent)).await
    }

    async fn settle(
        &self,
        id: OrderId,
        lines: Vec<OrderLine>,
        total: Money,
    ) -> Result<Option<Entity<Order>>, StoreError> {
        self.run("settle", self.store.settle(id, lines, total)).await
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        self.run("abort", self.store.abort(id)).await
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Entity<Order>>, StoreError> {
        self.wait_for_other_steps().await;
        self.run("step", self.store.step(id, from, to)).await
    }

    async fn finish_release(&self, id: OrderId) -> Result<(), StoreError> {
        self.run("finish_release", self.store.finish_release(id)).await
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Entity<Order>>, StoreError> {
        self.run("by_id", self.store.by_id(id)).await
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Entity<Order>>, StoreError> {
        self.run("page", self.store.page(page, filter)).await
    }

    async fn claim(&self, abandon_after: Duration, lease: Duration, limit: usize) -> Result<Vec<OrderId>, StoreError> {
        self.run("claim", self.store.claim(abandon_after, lease, limit)).await
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        self.run("unsettled", self.store.unsettled()).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.run("ping", self.store.ping()).await
    }
}
