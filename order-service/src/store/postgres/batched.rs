//! Concurrent steps of the same kind as one statement, and so one commit.

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;

use chassis::batch::{BatchError, BatchItem, Batcher, Limits};
use chassis::postgres::{Pool, is_row_error};
use shared::OrderId;
use sqlx::postgres::PgRow;
use sqlx::{Error, Row};
use uuid::Uuid;

use super::{PgQuery, StoreError};

/// Maximum orders per statement.
const MAX_ITEMS: usize = 128;
/// Maximum bytes per statement with more than one order.
const MAX_BYTES: usize = 1 << 20;
/// Maximum waiting steps: far above the number of admitted requests, each of which makes one step at a time.
const MAX_QUEUED: usize = 1_000_000;

/// One kind of step.
pub(super) struct StatementSpec<A, T> {
    /// The name in metrics and traces.
    pub name: &'static str,
    /// The order that a step belongs to.
    pub id: fn(&A) -> OrderId,
    /// The approximate bytes that a step adds to the statement and its result. Zero if all steps are small.
    pub item_bytes: fn(&A) -> usize,
    /// Builds the statement for several steps. It must be safe to repeat and must return a row, with `id`, per step done.
    pub statement: fn(&[&A]) -> PgQuery,
    /// Reads the row of one step.
    pub read: fn(&PgRow) -> Result<T, Error>,
}

/// The result of a step.
pub(super) struct StepResult<T> {
    /// What the statement returned for the step. `None` if it found the order in another state.
    pub value: Option<T>,
    /// Whether an earlier try, whose response was lost, may have done the step.
    pub is_ambiguous: bool,
}

/// The values of the steps of one batch by order, and whether an earlier try may have done some of the steps.
type BatchResult<T> = Result<(HashMap<Uuid, T>, bool), Error>;

type Item<A, T> = BatchItem<A, Result<StepResult<T>, StoreError>>;

/// Executes steps of one kind: a single step immediately, concurrent steps as one statement.
pub(super) struct BatchedStatement<A, T>(Batcher<A, Result<StepResult<T>, StoreError>>);

impl<A: Send + Sync + 'static, T: Send + 'static> BatchedStatement<A, T> {
    pub(super) fn new(pool: &Pool, spec: StatementSpec<A, T>) -> Self {
        let limits =
            Limits { max_items: MAX_ITEMS, max_bytes: MAX_BYTES, item_bytes: spec.item_bytes, max_queued: MAX_QUEUED };
        let sender = Arc::new((pool.clone(), spec));
        Self(Batcher::new(sender.1.name, limits, move |batch| {
            let sender = Arc::clone(&sender);
            async move { sender.1.execute_batch(&sender.0, batch).await }
        }))
    }

    pub(super) async fn execute(&self, step: A) -> Result<StepResult<T>, StoreError> {
        let reason = match self.0.submit(step, None).await {
            Ok(result) => return result,
            Err(BatchError::QueueFull) => "too many steps are waiting",
            Err(BatchError::Timeout) => "earlier steps took too long",
            Err(BatchError::Panicked) => return Err(StoreError::OutcomeUnknown("the step panicked".to_owned())),
        };
        Err(StoreError::Unavailable(reason.to_owned()))
    }
}

impl<A, T> StatementSpec<A, T> {
    async fn execute_batch(&self, pool: &Pool, mut batch: Vec<Item<A, T>>) {
        // Every batch locks its rows by ascending id, so batches cannot deadlock.
        batch.sort_unstable_by_key(|item| (self.id)(&item.item));
        let result = self.try_batch(pool, &batch).await;
        if batch.len() > 1 && result.as_ref().is_err_and(is_row_error) {
            // One row has caused the error. Each step is tried alone, so that only its own step fails.
            let pool = pool.short_lock_timeout();
            for item in batch {
                let result = self.try_batch(&pool, slice::from_ref(&item)).await;
                self.respond(vec![item], result);
            }
        } else {
            self.respond(batch, result);
        }
    }

    async fn try_batch(&self, pool: &Pool, batch: &[Item<A, T>]) -> BatchResult<T> {
        let steps: Vec<&A> = batch.iter().map(|item| &item.item).collect();
        let execute = || (self.statement)(&steps).fetch_all(pool);
        let (rows, is_ambiguous) = pool.retry_reporting_ambiguity(self.name, execute).await?;
        let values =
            rows.iter().map(|row| Ok((row.try_get("id")?, (self.read)(row)?))).collect::<Result<_, Error>>()?;
        Ok((values, is_ambiguous))
    }

    fn respond(&self, batch: Vec<Item<A, T>>, result: BatchResult<T>) {
        let mut result = result.map_err(StoreError::from);
        for item in batch {
            let id = (self.id)(&item.item).0;
            item.respond(match &mut result {
                Ok((values, is_ambiguous)) => Ok(StepResult { value: values.remove(&id), is_ambiguous: *is_ambiguous }),
                Err(error) => Err(error.clone()),
            });
        }
    }
}
