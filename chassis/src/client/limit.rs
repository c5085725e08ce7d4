//! An adaptive limit on the calls in work at one peer.
//!
//! A queue in front of a slow peer only makes every call late. So the number of calls in work is limited to what the peer can
//! end in time:
//!
//! - While calls end in time, the limit grows, and a burst over the limit waits for a moment.
//! - When calls become late, the limit is set to the number of calls that the peer ends within the tolerated time. By Little's
//!   law this is: calls in work = calls per second × time of a call. Further calls are then rejected immediately, before they
//!   cost anything.
//!
//! Envoy and Netflix's `concurrency-limits` limit in a similar way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{self, Instant};

use super::{MIN_FAIR_TIMEOUT, OVERLOADED, Peer, PeerError};
use crate::context::RequestContext;

/// The limit at the start. While no call is late, it can double within the time of a call.
const INITIAL_LIMIT: usize = 48;
/// The lowest limit. Calls that started with at most this many in work show how fast the peer is without a queue.
const MIN_LIMIT: usize = 16;
/// A call is late if it takes this much longer than a call without a queue, or 50 % longer if that is more. Batching and a
/// busy machine cause shorter delays.
const TOLERANCE: Duration = Duration::from_millis(300);
/// Maximum wait of a call to be admitted, while no call is late. In a burst, the limit for a quick peer grows meanwhile.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// The interval over which ended calls are counted.
const RATE_WINDOW: Duration = Duration::from_millis(250);
/// When no call was late for this time, the peer counts as healthy again.
const RECOVERY: Duration = Duration::from_secs(10);
/// The resolution of [`State::is_late`].
const MARK_INTERVAL: Duration = Duration::from_millis(5);

/// The adaptive limit of one kind of call to one peer, at most `PEER_MAX_IN_FLIGHT`.
#[derive(Clone)]
pub struct AdaptiveLimit(Arc<Inner>);

struct Inner {
    peer: Peer,
    max: usize,
    /// Locked for a few additions only.
    state: Mutex<State>,
}

struct State {
    limit: f64,
    /// Calls that were admitted and have not ended.
    in_work: usize,
    started: u64,
    ended: u64,
    /// How many calls had started before which time, oldest first. The first entry is when the oldest call in work started.
    marks: VecDeque<(Instant, u64)>,
    /// Calls that wait to be admitted.
    waiting: VecDeque<oneshot::Sender<Admission>>,
    /// The time of a call without a queue; `None` before the first call has ended.
    base: Option<Duration>,
    window_began: Instant,
    ended_in_window: u32,
    /// Calls ended per second in the last full window.
    rate: f64,
    /// When a call was late, at most [`RECOVERY`] ago.
    late_at: Option<Instant>,
}

/// A call that was admitted. It is in work until it is dropped.
pub struct Admission {
    limit: AdaptiveLimit,
    started: Option<Instant>,
    /// Whether few calls were in work when this one was admitted.
    is_unqueued: bool,
}

impl AdaptiveLimit {
    /// Creates the limit of one kind of call to this peer.
    pub fn new(peer: &Peer) -> Self {
        let (peer, max) = (peer.clone(), peer.0.settings.max_in_flight as usize);
        let state = State {
            limit: INITIAL_LIMIT as f64,
            in_work: 0,
            started: 0,
            ended: 0,
            marks: VecDeque::new(),
            waiting: VecDeque::new(),
            base: None,
            window_began: Instant::now(),
            ended_in_window: 0,
            rate: 0.0,
            late_at: None,
        };
        Self(Arc::new(Inner { peer, max, state: Mutex::new(state) }))
    }

    /// Admits a call that is about to be sent. While no call is late, it waits up to 100 ms, within the deadline of `context`.
    ///
    /// # Errors
    /// If the peer cannot end one more call in time.
    pub async fn admit(&self, context: &RequestContext) -> Result<Admission, PeerError> {
        let admission = match self.admit_or_wait() {
            Ok(admission) => Some(admission),
            Err(Some(waiting)) => {
                time::timeout(MAX_WAIT.min(context.time_left()), waiting).await.ok().and_then(Result::ok)
            }
            Err(None) => None,
        };
        admission.ok_or_else(|| {
            OVERLOADED.get_or_create(&[("peer", self.0.peer.name())]).inc();
            self.0.peer.not_sent("it is overloaded")
        })
    }

    fn admit_or_wait(&self) -> Result<Admission, Option<oneshot::Receiver<Admission>>> {
        let (now, mut state) = (Instant::now(), self.state());
        if state.late_at.is_some_and(|at| now.duration_since(at) >= RECOVERY) {
            state.late_at = None;
            state.limit = state.limit.max(INITIAL_LIMIT as f64);
        }
        if state.is_late(now) {
            state.reduce(now);
        }
        if state.in_work < self.0.max.min(state.limit as usize) {
            return Ok(self.admission(&mut state));
        }
        state.waiting.retain(|waiting| !waiting.is_closed());
        if state.late_at.is_some() || state.in_work + state.waiting.len() >= self.0.max {
            return Err(None);
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push_back(sender);
        Err(Some(receiver))
    }

    fn admission(&self, state: &mut State) -> Admission {
        state.in_work += 1;
        Admission { limit: self.clone(), started: None, is_unqueued: state.in_work <= MIN_LIMIT }
    }

    /// No code can panic in the middle of a change while it holds this lock, so a poisoned lock is used like any other.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Records that the call is sent now.
    pub fn start(&mut self) {
        let (now, mut state) = (Instant::now(), self.limit.state());
        if state.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= MARK_INTERVAL) {
            let started = state.started;
            state.marks.push_back((now, started));
        }
        state.started += 1;
        self.started = Some(now);
    }

    /// Records the result of the call, which had this time limit. Only two results show the load of the peer: an answer, and a
    /// timeout of a call that had enough time.
    pub fn finish<R>(self, result: &Result<R, PeerError>, limit: Duration) {
        let is_fair = limit >= MIN_FAIR_TIMEOUT.min(self.limit.0.peer.0.settings.timeout);
        match result {
            Ok(_) => self.record(true),
            Err(PeerError::TimedOut { .. }) if is_fair => self.record(false),
            Err(_) => {}
        }
    }

    fn record(self, answered: bool) {
        let (now, mut state) = (Instant::now(), self.limit.state());
        if !answered || state.is_late(now) {
            state.reduce(now);
        }
        if !answered {
            return;
        }
        state.count(1, now);
        let time = self.started.map_or(Duration::ZERO, |started| now.duration_since(started));
        let base = state.base.get_or_insert(time);
        // The shortest time so far. Calls without a queue raise it step by step when the peer has become slower.
        *base = if self.is_unqueued { *base + time.saturating_sub(*base) / 4 } else { *base }.min(time);
        let has_queued = time > *base + TOLERANCE / 3;
        if !has_queued && state.in_work as f64 >= state.limit / 2.0 {
            // At first the limit doubles within the time of a call; after late calls it grows by eight.
            let growth = if state.late_at.is_none() { 1.0 } else { 8.0 / state.limit };
            state.limit = (state.limit + growth).min(self.limit.0.max as f64);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        state.in_work -= 1;
        state.ended += u64::from(self.started.is_some());
        let ended = state.ended;
        while state.marks.get(1).is_some_and(|(_, started)| *started <= ended) {
            state.marks.pop_front();
        }
        if state.started == ended {
            state.marks.clear();
        }
        let mut undelivered = Vec::new(); // dropped after the lock is released, because dropping an admission locks it again
        while state.in_work < self.limit.0.max.min(state.limit as usize)
            && let Some(waiting) = state.waiting.pop_front()
        {
            let admission = self.limit.admission(&mut state);
            undelivered.extend(waiting.send(admission).err());
        }
        drop(state);
    }
}

impl State {
    fn tolerated(&self) -> Option<Duration> {
        self.base.map(|base| base + TOLERANCE.max(base / 2))
    }

    /// Returns whether the oldest call has been in work for too long. It assumes that calls end in the order in which they
    /// started. So it detects a queue before its first call ends, and a single slow call does not look like a queue.
    fn is_late(&self, now: Instant) -> bool {
        let age = self.marks.front().map(|(at, _)| now.duration_since(*at));
        age.zip(self.tolerated()).is_some_and(|(age, tolerated)| age > tolerated)
    }

    /// Counts the answers that ended by now, and begins a new window if it is time.
    fn count(&mut self, answers: u32, now: Instant) {
        self.ended_in_window += answers;
        let elapsed = now.duration_since(self.window_began);
        if elapsed >= RATE_WINDOW {
            self.rate = f64::from(self.ended_in_window) / elapsed.as_secs_f64();
            (self.window_began, self.ended_in_window) = (now, 0);
        }
    }

    /// Sets the limit to the calls that the peer ends within the tolerated time, unless it is lower already. Rejects the calls
    /// that wait.
    fn reduce(&mut self, now: Instant) {
        self.count(0, now);
        let elapsed = now.duration_since(self.window_began).max(RATE_WINDOW / 2);
        let rate = self.rate.max(f64::from(self.ended_in_window) / elapsed.as_secs_f64());
        let tolerated = self.tolerated().unwrap_or(TOLERANCE);
        self.limit = self.limit.min(rate * tolerated.as_secs_f64()).max(MIN_LIMIT as f64);
        self.late_at = Some(now);
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;
    use tokio::time;

    use super::*;
    use crate::config::defaults;

    /// A peer that works on `slots` calls at a time, each for `time`; further calls wait for their turn.
    struct SlowPeer {
        slots: Semaphore,
        time: Mutex<Duration>,
        limit: AdaptiveLimit,
        in_time: AtomicU32,
        rejected: AtomicU32,
    }

    const MS: Duration = Duration::from_millis(1);
    const TICK: Duration = Duration::from_millis(5);
    const SECOND: Duration = Duration::from_secs(1);

    impl SlowPeer {
        fn new(slots: usize, time: Duration) -> Arc<Self> {
            let url = "http://127.0.0.1:1".parse().unwrap();
            let limit = AdaptiveLimit::new(&Peer::new("slow", url, &defaults()).unwrap());
            Arc::new(Self {
                slots: Semaphore::new(slots),
                time: Mutex::new(time),
                limit,
                in_time: AtomicU32::new(0),
                rejected: AtomicU32::new(0),
            })
        }

        fn becomes(&self, time: Duration) {
            *self.time.lock().unwrap() = time;
        }

        fn call(self: &Arc<Self>) {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                let began = Instant::now();
                let Ok(mut admission) = this.limit.admit(&RequestContext::background(5 * SECOND)).await else {
                    this.rejected.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                admission.start();
                let slot = this.slots.acquire().await.unwrap();
                let time = *this.time.lock().unwrap();
                time::sleep(time).await;
                drop(slot);
                admission.record(true);
                if began.elapsed() < SECOND {
                    this.in_time.fetch_add(1, Ordering::Relaxed);
                }
            });
        }

        /// Makes `rate` calls per second for some time. Returns how many per second were rejected, and how many ended within
        /// a second.
        async fn load(self: &Arc<Self>, rate: u32, seconds: u32) -> (u32, u32) {
            let counts = || [&self.rejected, &self.in_time].map(|count| count.load(Ordering::Relaxed));
            let (before, mut due) = (counts(), 0.0);
            for _ in 0..seconds * 200 {
                due += f64::from(rate) * TICK.as_secs_f64();
                while due >= 1.0 {
                    due -= 1.0;
                    self.call();
                }
                time::sleep(TICK).await;
            }
            let after = counts();
            ((after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_nine_tenths_of_the_throughput_at_any_load() {
        for (slots, time) in [(16, 50 * MS), (8, 100 * MS), (4, 50 * MS)] {
            let peak = slots as u32 * 1000 / time.as_millis() as u32;
            for load in [1, 2, 10] {
                let (rejected, in_time) = SlowPeer::new(slots, time).load(load * peak, 4).await;
                let figures = format!("{in_time} of {peak} in time, {rejected} rejected");
                println!("{slots} calls in {time:?}, {load} times the load: {figures}");
                assert!(in_time * 10 >= peak * 9, "{slots} calls in {time:?}, {load} times the load: {figures}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_drift_in_an_overload_of_minutes() {
        let peer = SlowPeer::new(16, 50 * MS);
        for minute in 0..3 {
            let (_, in_time) = peer.load(800, 60).await;
            assert!(in_time >= 300, "{in_time} of 320 per second in minute {minute}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_limit_a_slow_peer_without_a_queue() {
        for time in [10 * MS, 100 * MS, 300 * MS] {
            let peer = SlowPeer::new(Semaphore::MAX_PERMITS, time);
            assert_eq!(peer.load(200, 10).await.0, 0, "{time:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn admits_a_burst_to_a_peer_that_answers_in_time() {
        for time in [MS, 5 * MS, 20 * MS] {
            let peer = SlowPeer::new(Semaphore::MAX_PERMITS, time);
            (0..400).for_each(|_| peer.call());
            time::sleep(2 * SECOND).await;
            assert_eq!(
                (peer.rejected.load(Ordering::Relaxed), peer.in_time.load(Ordering::Relaxed)),
                (0, 400),
                "{time:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn adapts_when_a_peer_becomes_slower_or_faster() {
        let peer = SlowPeer::new(Semaphore::MAX_PERMITS, 20 * MS);
        assert_eq!(peer.load(200, 10).await.0, 0);
        peer.becomes(400 * MS);
        peer.load(200, 10).await;
        assert_eq!(peer.load(200, 10).await.0, 0, "it answers as many, later");
        peer.becomes(20 * MS);
        peer.load(200, 10).await;
        assert_eq!(peer.load(200, 10).await.0, 0, "it answers as many, earlier");
    }

    #[tokio::test(start_paused = true)]
    async fn admits_more_again_when_the_peer_recovers() {
        let peer = SlowPeer::new(16, 50 * MS);
        peer.load(3200, 5).await;
        peer.becomes(5 * MS);
        let recovering = peer.load(3000, 2).await;
        println!("recovering: {recovering:?}");
        let (rejected, _) = peer.load(3000, 2).await;
        assert_eq!(rejected, 0, "{recovering:?}");
    }
}
