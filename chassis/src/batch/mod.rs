//! Natural batching: what is asked while a call is on its way goes out together in the next one.
//!
//! A lone ask goes at once, so nothing waits where there is little to do; and the more there is to do, the more goes out in
//! one call, and the less each ask costs. No timer and no setting decides about it. (Databases do the same with commits, and
//! call it group commit.) Nothing is shared between those who ask but the envelope: each gets an answer of its own, and
//! one that is slow, or that nobody waits for any more, does not hold the others up.

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

/// So many calls are on their way at once, so that one that is a little slow does not hold up all that comes.
const MAX_WORKERS: usize = 2;
/// When nothing that waits has gone out for so long, since the calls of others take long, one more call goes out.
const STALL_TIMEOUT: Duration = Duration::from_millis(25);

static ASKS: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    metrics::register("batched_asks", "What was asked, several of which go in a batch", Family::default())
});
static BATCHES: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("batches", "Batches that went out", Family::default()));

/// Gathers asks and sends them in batches. Cheap to clone; all clones are one.
pub struct Batcher<A, R>(Arc<Inner<A, R>>);

struct Inner<A, R> {
    limits: Limits<A>,
    send: Box<Sender<A, R>>,
    /// A place for each ask that is not answered yet.
    room: Arc<Semaphore>,
    queue: Mutex<Queue<A, R>>,
    asks: Counter,
    batches: Counter,
}

type Sender<A, R> = dyn Fn(Vec<BatchItem<A, R>>) -> BoxFuture<'static, ()> + Send + Sync;

/// How much there may be.
pub struct Limits<A> {
    /// Most asks of one batch.
    pub max_items: usize,
    /// Most bytes of one batch, if it has more than one ask.
    pub max_bytes: usize,
    /// How many bytes an ask takes, at most.
    pub item_bytes: fn(&A) -> usize,
    /// Most asks that are not answered yet. Beyond, one is refused at once.
    pub max_queued: usize,
}

struct Queue<A, R> {
    waiting: VecDeque<BatchItem<A, R>>,
    /// How many have asked so far.
    asked: u64,
    /// The slots that are taken.
    slots: usize,
    /// Batches that were taken out so far.
    taken: u64,
    /// Whether somebody sees to it that what waits does not wait for long.
    watched: bool,
}

/// What has to begin now that something waits.
enum Action {
    Work { number: u64 },
    Watch,
    Nothing,
}

/// Something that is asked, and who waits for the answer.
pub struct BatchItem<A, R> {
    /// What is asked.
    pub item: A,
    number: u64,
    reply: oneshot::Sender<R>,
    /// What its caller does.
    span: Span,
    _place: OwnedSemaphorePermit,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// It was not asked: too many wait already.
    QueueFull,
    /// Others have been on their way for too long.
    Timeout,
    /// Whoever should have answered did not: it has panicked.
    Panicked,
}

impl<A, R> BatchItem<A, R> {
    /// Answers it. Nobody may be waiting any more.
    pub fn respond(self, answer: R) {
        let _ = self.reply.send(answer);
    }
}

impl<A: Send + 'static, R: Send + 'static> Batcher<A, R> {
    /// One by which batches go out as `send` sends them, which answers each ask. Metrics know it as `what`.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        what: &'static str,
        limits: Limits<A>,
        send: impl Fn(Vec<BatchItem<A, R>>) -> F + Send + Sync + 'static,
    ) -> Self {
        let room = Arc::new(Semaphore::new(limits.max_queued));
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), asked: 0, slots: 0, taken: 0, watched: false });
        let send = Box::new(move |batch| send(batch).boxed());
        let count = |family: &Family<_, Counter>| family.get_or_create_owned(&[("of", what)]);
        Self(Arc::new(Inner { limits, send, room, queue, asks: count(&ASKS), batches: count(&BATCHES) }))
    }

    /// The answer. If the caller goes before it is asked, it is not asked at all; and what is asked alone ends with its caller.
    ///
    /// # Errors
    /// If there is none; or not yet, when the calls of others have taken longer than `patience`. A call that is the
    /// caller's alone has whatever limit `send` gives it.
    pub async fn submit(&self, ask: A, patience: Option<Duration>) -> Result<R, BatchError> {
        let parts = &self.0;
        let place = parts.place().ok_or(BatchError::QueueFull)?;
        let (reply, answer) = oneshot::channel();
        parts.asks.inc();
        match parts.enqueue(BatchItem { item: ask, number: 0, reply, span: Span::current(), _place: place }) {
            Action::Work { number } => Worker::of(parts).begin(number).await,
            Action::Watch => drop(tokio::spawn(Arc::clone(parts).watch())),
            Action::Nothing => {}
        }
        let answered = match patience {
            Some(patience) => time::timeout(patience, answer).await.map_err(|_| BatchError::Timeout)?,
            None => answer.await,
        };
        answered.map_err(|_| BatchError::Panicked)
    }
}

/// Leave to have a call on its way: one of the slots, given back in the end.
struct Worker<A, R> {
    parts: Arc<Inner<A, R>>,
    is_held: bool,
}

impl<A: Send + 'static, R: Send + 'static> Worker<A, R> {
    fn of(parts: &Arc<Inner<A, R>>) -> Self {
        Self { parts: Arc::clone(parts), is_held: true }
    }

    /// Sends what is asked in this moment. If that is only what the caller itself asks, it goes from the caller's own task:
    /// to begin one and to be woken by it would be a good part of what the whole call costs.
    async fn begin(mut self, number: u64) {
        let batch = self.next_batch().await;
        let is_foreign = batch.iter().any(|asked| asked.number != number);
        if is_foreign {
            tokio::spawn(self.work(batch));
        } else {
            self.parts.send(batch).await;
            if self.release_or_continue() {
                tokio::spawn(self.work(Vec::new()));
            }
        }
    }

    /// Sends this and then one batch after the other, until nothing waits.
    async fn work(mut self, mut batch: Vec<BatchItem<A, R>>) {
        loop {
            if batch.is_empty() {
                batch = self.next_batch().await;
            }
            self.parts.send(std::mem::take(&mut batch)).await;
            if !self.release_or_continue() {
                return;
            }
        }
    }

    async fn next_batch(&self) -> Vec<BatchItem<A, R>> {
        task::yield_now().await; // whoever is about to ask goes with it
        pause_point!("batch: before collecting");
        self.parts.next_batch()
    }

    /// Whether it has more to do; else it is given back. So is one of those that were taken since the others took so long.
    fn release_or_continue(&mut self) -> bool {
        let mut queue = self.parts.queue();
        self.is_held = queue.slots <= MAX_WORKERS && !queue.waiting.is_empty();
        queue.slots -= usize::from(!self.is_held);
        self.is_held
    }
}

impl<A, R> Drop for Worker<A, R> {
    /// Its caller has gone. Whoever waits is watched over.
    fn drop(&mut self) {
        self.parts.queue().slots -= usize::from(self.is_held);
    }
}

impl<A: Send + 'static, R: Send + 'static> Inner<A, R> {
    async fn send(&self, batch: Vec<BatchItem<A, R>>) {
        let Some(first) = batch.first() else { return };
        self.batches.inc();
        let span = first.span.clone();
        let _ = AssertUnwindSafe(async { (self.send)(batch).await }).catch_unwind().instrument(span).await;
    }

    /// Takes one more slot whenever nothing of what waits has gone out for long, until nothing waits. (A time limit on each call
    /// would do the same, but a timer costs more than the call of a lone ask.)
    async fn watch(self: Arc<Self>) {
        let mut seen = self.queue().taken;
        loop {
            time::sleep(STALL_TIMEOUT).await;
            let stuck = {
                let mut queue = self.queue();
                queue.watched = !queue.waiting.is_empty();
                if !queue.watched {
                    return;
                }
                let stuck = queue.taken <= seen;
                queue.slots += usize::from(stuck);
                seen = queue.taken + u64::from(stuck); // what goes out in this slot does not count
                stuck
            };
            if stuck {
                tokio::spawn(Worker::of(&self).work(Vec::new()));
            }
        }
    }

    fn enqueue(&self, mut asked: BatchItem<A, R>) -> Action {
        let mut queue = self.queue();
        queue.asked += 1;
        let number = queue.asked;
        asked.number = number;
        queue.waiting.push_back(asked);
        if queue.slots < MAX_WORKERS {
            queue.slots += 1;
            Action::Work { number }
        } else if !queue.watched {
            queue.watched = true;
            Action::Watch
        } else {
            Action::Nothing
        }
    }

    /// What goes out next, in the order asked.
    fn next_batch(&self) -> Vec<BatchItem<A, R>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let most = limit_point!("batch: items", self.limits.max_items);
        let mut queue = self.queue();
        while let Some(asked) = queue.waiting.front() {
            if asked.reply.is_closed() {
                queue.waiting.pop_front();
                continue;
            }
            bytes += (self.limits.item_bytes)(&asked.item);
            if !batch.is_empty() && (batch.len() == most || bytes > self.limits.max_bytes) {
                break;
            }
            batch.extend(queue.waiting.pop_front());
        }
        queue.taken += u64::from(!batch.is_empty());
        batch
    }
}

impl<A, R> Inner<A, R> {
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let try_acquire = || Arc::clone(&self.room).try_acquire_owned().ok();
        try_acquire().or_else(|| {
            // Whoever went before anybody asked for them has kept a place until now.
            self.queue().waiting.retain(|asked| !asked.reply.is_closed());
            try_acquire()
        })
    }

    /// Nothing that is done under the lock can panic half-way.
    fn queue(&self) -> MutexGuard<'_, Queue<A, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A, R> Clone for Batcher<A, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{self, UnboundedReceiver};
    use tokio::task::JoinHandle;

    use super::*;

    type Batch = Vec<BatchItem<u32, u32>>;

    /// A batch on its way: until it is dropped.
    struct Call {
        batch: Batch,
        end: oneshot::Sender<()>,
    }

    impl Call {
        fn asks(&self) -> Vec<u32> {
            self.batch.iter().map(|asked| asked.item).collect()
        }

        /// Ten times what was asked.
        fn respond(self) {
            respond(self.batch);
        }
    }

    fn respond(batch: Batch) {
        for asked in batch {
            let answer = asked.item * 10;
            asked.respond(answer);
        }
    }

    const LIMITS: Limits<u32> = Limits { max_items: 128, max_bytes: usize::MAX, item_bytes: |_| 1, max_queued: 1000 };

    /// A batcher whose calls are handed to the test.
    fn by_hand(limits: Limits<u32>) -> (Batcher<u32, u32>, UnboundedReceiver<Call>) {
        let (out, calls) = mpsc::unbounded_channel();
        let batcher = Batcher::new("test", limits, move |batch| {
            let (end, ended) = oneshot::channel();
            let _ = out.send(Call { batch, end });
            async { drop(ended.await) }
        });
        (batcher, calls)
    }

    /// Asks this in a task of its own.
    fn ask(batcher: &Batcher<u32, u32>, ask: u32) -> JoinHandle<Result<u32, BatchError>> {
        let batcher = batcher.clone();
        tokio::spawn(async move { batcher.submit(ask, None).await })
    }

    /// Has a call in each slot, with one ask: 0, 1, …
    async fn all_slots(batcher: &Batcher<u32, u32>, calls: &mut UnboundedReceiver<Call>) -> Vec<Call> {
        let mut taken = Vec::new();
        for n in 0..MAX_WORKERS as u32 {
            ask(batcher, n);
            taken.push(calls.recv().await.expect("a call"));
        }
        taken
    }

    /// Until whoever can go on has done so.
    async fn settle() {
        for _ in 0..20 {
            task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_ask_goes_at_once() {
        let (batcher, mut calls) = by_hand(LIMITS);
        let (asked, began) = (ask(&batcher, 1), time::Instant::now());
        calls.recv().await.unwrap().respond();
        assert_eq!((asked.await.unwrap(), began.elapsed()), (Ok(10), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_meanwhile_goes_together_and_each_has_an_answer_of_its_own() {
        let (batcher, mut calls) = by_hand(LIMITS);
        let mut taken = all_slots(&batcher, &mut calls).await;
        let asked: Vec<_> = (10..15).map(|n| ask(&batcher, n)).collect();
        settle().await;
        assert!(calls.is_empty(), "each slot is taken");
        taken.pop();
        let call = calls.recv().await.unwrap();
        assert_eq!(call.asks(), [10, 11, 12, 13, 14]);
        call.respond();
        for (n, asked) in (10..).zip(asked) {
            assert_eq!(asked.await.unwrap(), Ok(n * 10));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_in_one_moment_go_in_one_call() {
        let (batcher, mut calls) = by_hand(LIMITS);
        (0..9).for_each(|n| drop(ask(&batcher, n)));
        assert_eq!(calls.recv().await.unwrap().asks().len(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_has_no_more_asks_and_bytes_than_the_limits_but_always_one() {
        let many = Limits { max_items: 3, ..LIMITS };
        let large = Limits { max_bytes: 10, item_bytes: |ask| *ask as usize, ..LIMITS };
        let by_size: [&[u32]; 4] = [&[5, 5], &[5], &[99], &[1, 9]];
        for (limits, expected) in [(many, [&[5, 5, 5][..], &[99, 1, 9], &[], &[]]), (large, by_size)] {
            let (batcher, mut calls) = by_hand(limits);
            [5, 5, 5, 99, 1, 9].into_iter().for_each(|n| drop(ask(&batcher, n)));
            for batch in expected.into_iter().filter(|batch| !batch.is_empty()) {
                assert_eq!(calls.recv().await.unwrap().asks(), batch);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_long_holds_up_nobody_who_did_not_ask_in_it() {
        let (batcher, mut calls) = by_hand(LIMITS);
        let mut long = Vec::new();
        for n in 0..20 {
            let asked = ask(&batcher, n);
            long.push((
                asked,
                time::timeout(STALL_TIMEOUT + STALL_TIMEOUT / 2, calls.recv()).await.expect("a slot").unwrap(),
            ));
        }
        for (n, (asked, call)) in (0..).zip(long) {
            call.respond();
            assert_eq!(asked.await.unwrap(), Ok(n * 10), "late, but it is");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_calls_that_took_long_there_are_no_more_at_once_than_before() {
        let (batcher, mut calls) = by_hand(Limits { max_items: 1, ..LIMITS });
        let mut long = Vec::new();
        for n in 0..3 * MAX_WORKERS as u32 {
            ask(&batcher, n);
            long.push(calls.recv().await.unwrap());
        }
        (0..9).for_each(|n| drop(ask(&batcher, n)));
        settle().await;
        drop(long);
        settle().await;
        assert_eq!(calls.len(), MAX_WORKERS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_is_not_asked() {
        let (batcher, mut calls) = by_hand(LIMITS);
        let taken = all_slots(&batcher, &mut calls).await;
        let (gone, _stays) = (ask(&batcher, 7), ask(&batcher, 8));
        settle().await;
        gone.abort();
        settle().await;
        drop(taken);
        assert_eq!(calls.recv().await.unwrap().asks(), [8]);
    }

    /// Has each slot taken by a lone ask whose caller then goes.
    async fn leave(batcher: &Batcher<u32, u32>, calls: &mut UnboundedReceiver<Call>, meanwhile: impl FnOnce()) {
        let mut leaving = Vec::new();
        for n in 0..MAX_WORKERS as u32 {
            leaving.push((ask(batcher, n), calls.recv().await.unwrap()));
        }
        meanwhile();
        settle().await;
        for (asked, mut call) in leaving {
            asked.abort();
            time::timeout(STALL_TIMEOUT, call.end.closed()).await.expect("the call ends");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_alone_ends_with_its_caller_and_its_slot_is_free_again() {
        let (batcher, mut calls) = by_hand(LIMITS);
        leave(&batcher, &mut calls, || {}).await;
        let began = time::Instant::now();
        all_slots(&batcher, &mut calls).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_behind_callers_that_have_gone_is_asked_for_all_the_same() {
        let (batcher, mut calls) = by_hand(LIMITS);
        leave(&batcher, &mut calls, || drop(ask(&batcher, 7))).await;
        assert_eq!(time::timeout(2 * STALL_TIMEOUT, calls.recv()).await.expect("a slot").unwrap().asks(), [7]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_calls_of_others_beyond_their_patience() {
        let (batcher, mut calls) = by_hand(LIMITS);
        let _taken = all_slots(&batcher, &mut calls).await;
        let began = time::Instant::now();
        assert_eq!(batcher.submit(7, Some(STALL_TIMEOUT / 2)).await, Err(BatchError::Timeout));
        assert!(began.elapsed() < STALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_room_one_is_refused_at_once_and_an_answer_makes_room() {
        let (batcher, mut calls) = by_hand(Limits { max_queued: 2, ..LIMITS });
        let asked = [ask(&batcher, 1), ask(&batcher, 2)];
        let call = calls.recv().await.unwrap();
        assert_eq!(batcher.submit(3, None).await, Err(BatchError::QueueFull));
        call.respond();
        for asked in asked {
            asked.await.unwrap().unwrap();
        }
        ask(&batcher, 4);
        assert_eq!(calls.recv().await.unwrap().asks(), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_before_being_asked_for_leaves_the_room() {
        let (batcher, mut calls) = by_hand(Limits { max_queued: 1, ..LIMITS });
        assert_eq!(batcher.submit(1, None).now_or_never(), None, "it has not gone out yet");
        ask(&batcher, 2);
        assert_eq!(time::timeout(STALL_TIMEOUT, calls.recv()).await.expect("a call").unwrap().asks(), [2]);
    }

    #[tokio::test]
    async fn a_panic_costs_its_batch_and_no_other() {
        let batcher = Batcher::new("test", LIMITS, |batch: Batch| async {
            assert!(batch.iter().all(|asked| asked.item != 13), "a panic on purpose");
            respond(batch);
        });
        for _ in 0..2 * MAX_WORKERS {
            assert_eq!(batcher.submit(13, None).await, Err(BatchError::Panicked));
        }
        assert_eq!(batcher.submit(1, None).await, Ok(10));
    }

    #[tokio::test]
    async fn whoever_is_not_answered_is_told_so() {
        let batcher = Batcher::new("test", LIMITS, |batch: Batch| async { drop(batch) });
        assert_eq!(batcher.submit(1, None).await, Err(BatchError::Panicked));
    }
}
