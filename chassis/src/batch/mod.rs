//! Natural batching: items that arrive while a batch is in flight go out together in the next one.
//!
//! A lone item goes out immediately, so batching adds no waiting when there is little load; the higher the load, the larger the
//! batches and the less each item costs. No timer and no setting decides. (Databases do the same with commits and call it
//! group commit.) Each item has its own result, and a slow batch does not hold up later items: see [`STALL_TIMEOUT`].

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::{task, time};
use tracing::{Instrument, Span};

use crate::telemetry::metrics::{self, Counter, Family, Labels};
use crate::{limit_point, pause_point};

/// Batches in flight at the same time. With two, one slow batch does not hold up the items that follow.
const MAX_WORKERS: usize = 2;
/// When no queued item has gone out for this time, because the batches in flight are slow, one more worker starts.
const STALL_TIMEOUT: Duration = Duration::from_millis(25);

static ITEMS: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("batch_items", "Items submitted to be sent in batches", Family::default()));
static BATCHES: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("batches", "Batches sent", Family::default()));

/// Collects items and sends them in batches. Clones share one queue.
pub struct Batcher<T, R>(Arc<Inner<T, R>>);

struct Inner<T, R> {
    limits: Limits<T>,
    send: Box<SendBatch<T, R>>,
    /// One permit for each item without a result.
    permits: Arc<Semaphore>,
    queue: Mutex<Queue<T, R>>,
    items: Counter,
    batches: Counter,
}

type SendBatch<T, R> = dyn Fn(Vec<BatchItem<T, R>>) -> BoxFuture<'static, ()> + Send + Sync;

/// The limits of a batcher.
pub struct Limits<T> {
    /// Maximum items of one batch.
    pub max_items: usize,
    /// Maximum bytes of one batch; a batch of one item may be larger.
    pub max_bytes: usize,
    /// Returns an upper bound of the bytes of an item.
    pub item_bytes: fn(&T) -> usize,
    /// Maximum items without a result. Further items are rejected with [`BatchError::QueueFull`].
    pub max_queued: usize,
}

struct Queue<T, R> {
    waiting: VecDeque<BatchItem<T, R>>,
    /// Items submitted so far.
    submitted: u64,
    /// Workers that run now.
    workers: usize,
    /// Batches taken from the queue so far.
    taken: u64,
    /// Whether a watchdog runs; see [`Inner::watch`].
    watched: bool,
}

/// What to start after an item was queued.
enum Action {
    StartWorker { number: u64 },
    StartWatchdog,
    Nothing,
}

/// An item of a batch, and the way to its caller.
pub struct BatchItem<T, R> {
    /// The item.
    pub item: T,
    number: u64,
    reply: oneshot::Sender<R>,
    /// The span of the caller.
    span: Span,
    _permit: OwnedSemaphorePermit,
}

/// Why an item has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// The item was not sent: too many items wait already.
    QueueFull,
    /// No result came within the caller's time limit.
    Timeout,
    /// `send` panicked, or dropped the item without a result.
    Panicked,
}

impl<T, R> BatchItem<T, R> {
    /// Hands the result to the caller, if it still waits.
    pub fn respond(self, result: R) {
        let _ = self.reply.send(result);
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Creates a batcher that sends each batch with `send`, which must respond to every item. Metrics call it `name`.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        limits: Limits<T>,
        send: impl Fn(Vec<BatchItem<T, R>>) -> F + Send + Sync + 'static,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(limits.max_queued));
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), submitted: 0, workers: 0, taken: 0, watched: false });
        let send = Box::new(move |batch| send(batch).boxed());
        let counter = |family: &Family<_, Counter>| family.get_or_create_owned(&[("of", name)]);
        Self(Arc::new(Inner { limits, send, permits, queue, items: counter(&ITEMS), batches: counter(&BATCHES) }))
    }

    /// Submits an item and returns its result.
    ///
    /// An item whose caller is dropped before it is sent is removed. A batch of one is cancelled with its caller.
    ///
    /// # Errors
    /// [`BatchError`]. `timeout` covers the wait in the queue and a batch shared with other callers. A batch of one has only
    /// the time limit that `send` gives it.
    pub async fn submit(&self, item: T, timeout: Option<Duration>) -> Result<R, BatchError> {
        let inner = &self.0;
        let permit = inner.acquire().ok_or(BatchError::QueueFull)?;
        let (reply, result) = oneshot::channel();
        inner.items.inc();
        match inner.enqueue(BatchItem { item, number: 0, reply, span: Span::current(), _permit: permit }) {
            Action::StartWorker { number } => Worker::of(inner).run_for_caller(number).await,
            Action::StartWatchdog => drop(tokio::spawn(Arc::clone(inner).watch())),
            Action::Nothing => {}
        }
        let result = match timeout {
            Some(timeout) => time::timeout(timeout, result).await.map_err(|_| BatchError::Timeout)?,
            None => result.await,
        };
        result.map_err(|_| BatchError::Panicked)
    }
}

/// Permission to have one batch in flight. Dropping it ends the worker.
struct Worker<T, R> {
    inner: Arc<Inner<T, R>>,
    is_counted: bool,
}

impl<T: Send + 'static, R: Send + 'static> Worker<T, R> {
    /// The worker was counted by [`Inner::enqueue`] or [`Inner::watch`].
    fn of(inner: &Arc<Inner<T, R>>) -> Self {
        Self { inner: Arc::clone(inner), is_counted: true }
    }

    /// Sends the next batch. If it holds only the caller's own item, it is sent from the caller's task: starting a task and
    /// being woken by it would be a good part of the cost of a call.
    async fn run_for_caller(mut self, number: u64) {
        let batch = self.next_batch().await;
        let is_shared = batch.iter().any(|item| item.number != number);
        if is_shared {
            tokio::spawn(self.run(batch));
        } else {
            self.inner.send(batch).await;
            if self.release_or_continue() {
                tokio::spawn(self.run(Vec::new()));
            }
        }
    }

    /// Sends `batch` and then one batch after the other, until the queue is empty.
    async fn run(mut self, mut batch: Vec<BatchItem<T, R>>) {
        loop {
            if batch.is_empty() {
                batch = self.next_batch().await;
            }
            self.inner.send(std::mem::take(&mut batch)).await;
            if !self.release_or_continue() {
                return;
            }
        }
    }

    async fn next_batch(&self) -> Vec<BatchItem<T, R>> {
        task::yield_now().await; // lets tasks that are ready submit their items first
        pause_point!("batch: before collecting");
        self.inner.next_batch()
    }

    /// Returns whether the worker goes on. It ends when the queue is empty, or when stalls have started too many workers.
    fn release_or_continue(&mut self) -> bool {
        let mut queue = self.inner.queue();
        self.is_counted = queue.workers <= MAX_WORKERS && !queue.waiting.is_empty();
        queue.workers -= usize::from(!self.is_counted);
        self.is_counted
    }
}

impl<T, R> Drop for Worker<T, R> {
    /// The caller of a batch of one was dropped. Items that still wait are the watchdog's.
    fn drop(&mut self) {
        self.inner.queue().workers -= usize::from(self.is_counted);
    }
}

impl<T: Send + 'static, R: Send + 'static> Inner<T, R> {
    async fn send(&self, batch: Vec<BatchItem<T, R>>) {
        let Some(first) = batch.first() else { return };
        self.batches.inc();
        let span = first.span.clone();
        let _ = AssertUnwindSafe(async { (self.send)(batch).await }).catch_unwind().instrument(span).await;
    }

    /// The watchdog: starts one more worker whenever nothing has left the queue for [`STALL_TIMEOUT`], until the queue is
    /// empty. (A time limit on each batch would do the same, but its timer costs more than a call with a lone item.)
    async fn watch(self: Arc<Self>) {
        let mut seen = self.queue().taken;
        loop {
            time::sleep(STALL_TIMEOUT).await;
            let stalled = {
                let mut queue = self.queue();
                queue.watched = !queue.waiting.is_empty();
                if !queue.watched {
                    return;
                }
                let stalled = queue.taken <= seen;
                queue.workers += usize::from(stalled);
                seen = queue.taken + u64::from(stalled); // the batch of the new worker does not count as progress
                stalled
            };
            if stalled {
                tokio::spawn(Worker::of(&self).run(Vec::new()));
            }
        }
    }

    fn enqueue(&self, mut item: BatchItem<T, R>) -> Action {
        let mut queue = self.queue();
        queue.submitted += 1;
        let number = queue.submitted;
        item.number = number;
        queue.waiting.push_back(item);
        if queue.workers < MAX_WORKERS {
            queue.workers += 1;
            Action::StartWorker { number }
        } else if !queue.watched {
            queue.watched = true;
            Action::StartWatchdog
        } else {
            Action::Nothing
        }
    }

    /// Takes the next batch from the queue, oldest items first, without items whose callers were dropped.
    fn next_batch(&self) -> Vec<BatchItem<T, R>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let max_items = limit_point!("batch: items", self.limits.max_items);
        let mut queue = self.queue();
        while let Some(next) = queue.waiting.front() {
            if next.reply.is_closed() {
                queue.waiting.pop_front();
                continue;
            }
            bytes += (self.limits.item_bytes)(&next.item);
            if !batch.is_empty() && (batch.len() == max_items || bytes > self.limits.max_bytes) {
                break;
            }
            batch.extend(queue.waiting.pop_front());
        }
        queue.taken += u64::from(!batch.is_empty());
        batch
    }
}

impl<T, R> Inner<T, R> {
    fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        let try_acquire = || Arc::clone(&self.permits).try_acquire_owned().ok();
        try_acquire().or_else(|| {
            // Items whose callers were dropped hold their permits while they are queued.
            self.queue().waiting.retain(|item| !item.reply.is_closed());
            try_acquire()
        })
    }

    /// Nothing under this lock can panic half-way, so a poisoned lock is used all the same.
    fn queue(&self) -> MutexGuard<'_, Queue<T, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
