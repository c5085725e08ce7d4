//! Steps of one kind that several orders make at the same time: one statement for all, and so one commit.

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

/// Most orders of one statement, and most bytes, if it has more than one.
const MOST: usize = 128;
const MOST_BYTES: usize = 1 << 20;
/// Most that wait: far more than the requests that are let in, each of which makes one step after the other.
const ROOM: usize = 1_000_000;

/// A kind of step.
pub(super) struct StatementSpec<A, T> {
    /// What metrics and traces call it.
    pub name: &'static str,
    /// Whose step it is.
    pub id: fn(&A) -> OrderId,
    /// How many bytes it adds to a statement and to its answer, near enough; nothing where all are small.
    pub size: fn(&A) -> usize,
    /// Makes several, each if it can be made, and answers the rows of those that were. It may be repeated.
    pub statement: fn(&[&A]) -> PgQuery,
    /// What is told of one that was made.
    pub read: fn(&PgRow) -> Result<T, Error>,
}

/// What came of a step: what is told of it, if it was made; and else whether an earlier try may have made it.
type Made<T> = Result<(Option<T>, bool), StoreError>;

/// Makes steps of one kind: one at once, and together what is asked for while others are on their way.
pub(super) struct BatchedStatement<A, T>(Batcher<A, Made<T>>);

impl<A: Send + Sync + 'static, T: Send + 'static> BatchedStatement<A, T> {
    pub(super) fn new(pool: &Pool, kind: StatementSpec<A, T>) -> Self {
        let limits = Limits { max_items: MOST, max_bytes: MOST_BYTES, item_bytes: kind.size, max_queued: ROOM };
        let sender = Arc::new((pool.clone(), kind));
        Self(Batcher::new(sender.1.name, limits, move |batch| {
            let sender = Arc::clone(&sender);
            async move { sender.1.make(&sender.0, batch).await }
        }))
    }

    pub(super) async fn make(&self, ask: A) -> Made<T> {
        match self.0.submit(ask, None).await {
            Ok(made) => made,
            Err(BatchError::QueueFull) => Err(StoreError("too many steps wait for it".to_owned())),
            Err(BatchError::Timeout) => Err(StoreError("the steps before it take too long".to_owned())),
            Err(BatchError::Panicked) => Err(StoreError("the step has panicked".to_owned())),
        }
    }
}

impl<A, T> StatementSpec<A, T> {
    async fn make(&self, pool: &Pool, mut batch: Vec<BatchItem<A, Made<T>>>) {
        // All lock the rows of orders by ascending id, so that nobody waits for somebody who waits for him.
        batch.sort_unstable_by_key(|asked| (self.id)(&asked.item));
        let made = self.try_make(pool, &batch).await;
        if batch.len() > 1 && made.as_ref().is_err_and(is_row_error) {
            // For that one of them the others are not to blame.
            let pool = pool.short_lock_timeout();
            for asked in batch {
                let made = self.try_make(&pool, slice::from_ref(&asked)).await;
                self.answer(vec![asked], made);
            }
        } else {
            self.answer(batch, made);
        }
    }

    async fn try_make(&self, pool: &Pool, batch: &[BatchItem<A, Made<T>>]) -> Result<(HashMap<Uuid, T>, bool), Error> {
        let asks: Vec<&A> = batch.iter().map(|asked| &asked.item).collect();
        let (rows, may_be_made) =
            pool.retry_reporting_ambiguity(self.name, || (self.statement)(&asks).fetch_all(pool)).await?;
        let made = rows.iter().map(|row| Ok((row.try_get("id")?, (self.read)(row)?))).collect::<Result<_, Error>>()?;
        Ok((made, may_be_made))
    }

    fn answer(&self, batch: Vec<BatchItem<A, Made<T>>>, made: Result<(HashMap<Uuid, T>, bool), Error>) {
        let mut made = made.map_err(StoreError::from);
        for asked in batch {
            let id = (self.id)(&asked.item).0;
            asked.respond(match &mut made {
                Ok((made, may_be_made)) => Ok((made.remove(&id), *may_be_made)),
                Err(error) => Err(error.clone()),
            });
        }
    }
}
