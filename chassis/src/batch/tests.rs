//! Tests of the batcher, with batches that each test answers by hand.

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;

use super::*;

type Batch = Vec<BatchItem<u32, u32>>;

/// A batch in flight, until it is dropped.
struct InFlight {
    batch: Batch,
    end: oneshot::Sender<()>,
}

impl InFlight {
    fn items(&self) -> Vec<u32> {
        self.batch.iter().map(|item| item.item).collect()
    }

    /// Responds to each item with ten times its value.
    fn respond(self) {
        respond(self.batch);
    }
}

fn respond(batch: Batch) {
    for item in batch {
        let result = item.item * 10;
        item.respond(result);
    }
}

const LIMITS: Limits<u32> = Limits { max_items: 128, max_bytes: usize::MAX, item_bytes: |_| 1, max_queued: 1000 };

/// Creates a batcher that hands its batches to the test.
fn manual(limits: Limits<u32>) -> (Batcher<u32, u32>, UnboundedReceiver<InFlight>) {
    let (sent, batches) = mpsc::unbounded_channel();
    let batcher = Batcher::new("test", limits, move |batch| {
        let (end, ended) = oneshot::channel();
        let _ = sent.send(InFlight { batch, end });
        async { drop(ended.await) }
    });
    (batcher, batches)
}

/// Submits an item in a task of its own.
fn spawn_submit(batcher: &Batcher<u32, u32>, item: u32) -> JoinHandle<Result<u32, BatchError>> {
    let batcher = batcher.clone();
    tokio::spawn(async move { batcher.submit(item, None).await })
}

/// Occupies every worker with a batch of one item: 0, 1, …
async fn occupy_workers(batcher: &Batcher<u32, u32>, batches: &mut UnboundedReceiver<InFlight>) -> Vec<InFlight> {
    let mut busy = Vec::new();
    for n in 0..MAX_WORKERS as u32 {
        spawn_submit(batcher, n);
        busy.push(batches.recv().await.expect("a batch"));
    }
    busy
}

/// Lets every task that is ready run.
async fn run_ready_tasks() {
    for _ in 0..20 {
        task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn sends_a_lone_item_immediately() {
    let (batcher, mut batches) = manual(LIMITS);
    let (submitted, began) = (spawn_submit(&batcher, 1), time::Instant::now());
    batches.recv().await.unwrap().respond();
    assert_eq!((submitted.await.unwrap(), began.elapsed()), (Ok(10), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn sends_queued_items_in_one_batch_and_gives_each_its_own_result() {
    let (batcher, mut batches) = manual(LIMITS);
    let mut busy = occupy_workers(&batcher, &mut batches).await;
    let submitted: Vec<_> = (10..15).map(|n| spawn_submit(&batcher, n)).collect();
    run_ready_tasks().await;
    assert!(batches.is_empty(), "every worker is busy");
    busy.pop();
    let batch = batches.recv().await.unwrap();
    assert_eq!(batch.items(), [10, 11, 12, 13, 14]);
    batch.respond();
    for (n, submitted) in (10..).zip(submitted) {
        assert_eq!(submitted.await.unwrap(), Ok(n * 10));
    }
}

#[tokio::test(start_paused = true)]
async fn sends_items_submitted_in_the_same_moment_in_one_batch() {
    let (batcher, mut batches) = manual(LIMITS);
    (0..9).for_each(|n| drop(spawn_submit(&batcher, n)));
    assert_eq!(batches.recv().await.unwrap().items().len(), 9);
}

#[tokio::test(start_paused = true)]
async fn limits_the_items_and_bytes_of_a_batch_but_always_sends_one_item() {
    let many = Limits { max_items: 3, ..LIMITS };
    let large = Limits { max_bytes: 10, item_bytes: |bytes| *bytes as usize, ..LIMITS };
    let by_size: [&[u32]; 4] = [&[5, 5], &[5], &[99], &[1, 9]];
    for (limits, expected) in [(many, [&[5, 5, 5][..], &[99, 1, 9], &[], &[]]), (large, by_size)] {
        let (batcher, mut batches) = manual(limits);
        [5, 5, 5, 99, 1, 9].into_iter().for_each(|n| drop(spawn_submit(&batcher, n)));
        for batch in expected.into_iter().filter(|batch| !batch.is_empty()) {
            assert_eq!(batches.recv().await.unwrap().items(), batch);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn does_not_hold_up_later_items_when_batches_are_slow() {
    let (batcher, mut batches) = manual(LIMITS);
    let mut long = Vec::new();
    for n in 0..20 {
        let submitted = spawn_submit(&batcher, n);
        long.push((
            submitted,
            time::timeout(STALL_TIMEOUT + STALL_TIMEOUT / 2, batches.recv()).await.expect("a worker").unwrap(),
        ));
    }
    for (n, (submitted, batch)) in (0..).zip(long) {
        batch.respond();
        assert_eq!(submitted.await.unwrap(), Ok(n * 10), "the result arrives late");
    }
}

#[tokio::test(start_paused = true)]
async fn runs_no_more_workers_after_slow_batches_than_before() {
    let (batcher, mut batches) = manual(Limits { max_items: 1, ..LIMITS });
    let mut long = Vec::new();
    for n in 0..3 * MAX_WORKERS as u32 {
        spawn_submit(&batcher, n);
        long.push(batches.recv().await.unwrap());
    }
    (0..9).for_each(|n| drop(spawn_submit(&batcher, n)));
    run_ready_tasks().await;
    drop(long);
    run_ready_tasks().await;
    assert_eq!(batches.len(), MAX_WORKERS);
}

#[tokio::test(start_paused = true)]
async fn removes_a_queued_item_whose_caller_was_dropped() {
    let (batcher, mut batches) = manual(LIMITS);
    let busy = occupy_workers(&batcher, &mut batches).await;
    let (gone, _stays) = (spawn_submit(&batcher, 7), spawn_submit(&batcher, 8));
    run_ready_tasks().await;
    gone.abort();
    run_ready_tasks().await;
    drop(busy);
    assert_eq!(batches.recv().await.unwrap().items(), [8]);
}

/// Occupies every worker with a batch of one item, then drops the callers.
async fn occupy_and_drop(
    batcher: &Batcher<u32, u32>,
    batches: &mut UnboundedReceiver<InFlight>,
    meanwhile: impl FnOnce(),
) {
    let mut dropped = Vec::new();
    for n in 0..MAX_WORKERS as u32 {
        dropped.push((spawn_submit(batcher, n), batches.recv().await.unwrap()));
    }
    meanwhile();
    run_ready_tasks().await;
    for (submitted, mut batch) in dropped {
        submitted.abort();
        time::timeout(STALL_TIMEOUT, batch.end.closed()).await.expect("the batch is cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn cancels_a_batch_of_one_with_its_caller_and_frees_the_worker() {
    let (batcher, mut batches) = manual(LIMITS);
    occupy_and_drop(&batcher, &mut batches, || {}).await;
    let began = time::Instant::now();
    occupy_workers(&batcher, &mut batches).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn sends_items_queued_behind_dropped_callers() {
    let (batcher, mut batches) = manual(LIMITS);
    occupy_and_drop(&batcher, &mut batches, || drop(spawn_submit(&batcher, 7))).await;
    assert_eq!(time::timeout(2 * STALL_TIMEOUT, batches.recv()).await.expect("a worker").unwrap().items(), [7]);
}

#[tokio::test(start_paused = true)]
async fn returns_a_timeout_while_other_batches_are_slow() {
    let (batcher, mut batches) = manual(LIMITS);
    let _busy = occupy_workers(&batcher, &mut batches).await;
    let began = time::Instant::now();
    assert_eq!(batcher.submit(7, Some(STALL_TIMEOUT / 2)).await, Err(BatchError::Timeout));
    assert!(began.elapsed() < STALL_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn rejects_items_beyond_the_queue_limit_until_a_result_frees_a_permit() {
    let (batcher, mut batches) = manual(Limits { max_queued: 2, ..LIMITS });
    let submitted = [spawn_submit(&batcher, 1), spawn_submit(&batcher, 2)];
    let batch = batches.recv().await.unwrap();
    assert_eq!(batcher.submit(3, None).await, Err(BatchError::QueueFull));
    batch.respond();
    for submitted in submitted {
        submitted.await.unwrap().unwrap();
    }
    spawn_submit(&batcher, 4);
    assert_eq!(batches.recv().await.unwrap().items(), [4]);
}

#[tokio::test(start_paused = true)]
async fn frees_the_permit_of_a_queued_item_whose_caller_was_dropped() {
    let (batcher, mut batches) = manual(Limits { max_queued: 1, ..LIMITS });
    assert_eq!(batcher.submit(1, None).now_or_never(), None, "the item is still queued");
    spawn_submit(&batcher, 2);
    assert_eq!(time::timeout(STALL_TIMEOUT, batches.recv()).await.expect("a batch").unwrap().items(), [2]);
}

#[tokio::test]
async fn loses_only_the_batch_that_panicked() {
    let batcher = Batcher::new("test", LIMITS, |batch: Batch| async {
        assert!(batch.iter().all(|item| item.item != 13), "a panic on purpose");
        respond(batch);
    });
    for _ in 0..2 * MAX_WORKERS {
        assert_eq!(batcher.submit(13, None).await, Err(BatchError::Panicked));
    }
    assert_eq!(batcher.submit(1, None).await, Ok(10));
}

#[tokio::test]
async fn reports_an_item_that_was_dropped_without_a_result() {
    let batcher = Batcher::new("test", LIMITS, |batch: Batch| async { drop(batch) });
    assert_eq!(batcher.submit(1, None).await, Err(BatchError::Panicked));
}
