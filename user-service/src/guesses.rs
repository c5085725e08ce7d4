//! Limits guesses of passwords, for each account and for each client address.
//!
//! The attempts for one account are verified one after the other. So concurrent guesses cannot pass the limit, and an attempt
//! counts as a failure until it is known to be none. The counters are in the memory of this process: each replica has its own,
//! and a restart clears them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::Id;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Failures of an account before its attempts must wait.
const FREE_FAILURES: u32 = 4;
/// The wait after the next failure. It doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);
/// The failures of an account are forgotten after this time without a new one.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Failures that one client address may cause at once. Many people can share an address.
const BURST: u32 = 50;
/// Then it may cause one failure in this time.
const REFILL: Duration = Duration::from_secs(5);
/// Maximum attempts for one account that wait for each other.
const MAX_WAITING: usize = 32;
/// Maximum accounts and maximum addresses that are remembered, some 10 MB in all.
const CAPACITY: usize = 50_000;

/// Returns the current time; tests hand in another clock.
pub type Clock = fn() -> Instant;

/// The limits, and what they remember.
pub struct Guesses {
    clock: Clock,
    capacity: usize,
    accounts: Mutex<HashMap<Account, Failures>>,
    /// When each address may again cause [`BURST`] failures at once.
    addresses: Mutex<HashMap<IpAddr, Instant>>,
    hasher: RandomState,
}

/// The account of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// It exists, under one or two names.
    Known(Id),
    /// No account has this name, of which this is the hash.
    Unknown(u64),
}

struct Failures {
    count: u32,
    last: Instant,
    wait_until: Instant,
    /// Locked by the attempt that is being verified.
    turn: Arc<AsyncMutex<()>>,
}

/// An attempt that may be made. It counts as a failure when it is dropped, also if the client disconnects.
#[must_use]
pub struct Attempt<'a> {
    guesses: &'a Guesses,
    account: Account,
    client: Option<IpAddr>,
    outcome: Outcome,
    turn: Option<OwnedMutexGuard<()>>,
}

enum Outcome {
    Failed,
    Succeeded,
    NotMade,
}

impl Default for Guesses {
    fn default() -> Self {
        Self::with_clock(Instant::now)
    }
}

impl Guesses {
    /// Returns limits without a failure yet, with another clock than the system's.
    pub fn with_clock(clock: Clock) -> Self {
        let (accounts, addresses) = (Mutex::default(), Mutex::default());
        Self { clock, capacity: CAPACITY, accounts, addresses, hasher: RandomState::new() }
    }

    /// Returns the account of a name that no account has. `name` is folded, so that all its spellings are one account.
    pub fn unknown(&self, name: &impl Hash) -> Account {
        Account::Unknown(self.hasher.hash_one(name))
    }

    /// Begins an attempt for this account from this address, if the request has one.
    ///
    /// # Errors
    /// How long to wait before the next attempt. Then this one does not count.
    pub async fn begin(&self, account: Account, client: Option<IpAddr>) -> Result<Attempt<'_>, Duration> {
        let turn = self.turn(account)?.lock_owned().await;
        let client = client.map(network);
        let now = (self.clock)();
        let wait = self.accounts().get(&account).map(|failures| failures.wait_until.saturating_duration_since(now));
        // Until its token is taken, the attempt is none. Its drop gives up the turn.
        let turn = Some(turn);
        let mut attempt = Attempt { guesses: self, account, client: None, outcome: Outcome::NotMade, turn };
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        if let Some(client) = client {
            self.take_token(client, now)?;
        }
        (attempt.client, attempt.outcome) = (client, Outcome::Failed);
        Ok(attempt)
    }

    /// Returns the lock of the attempts for an account. An account is not removed while an attempt has its lock.
    fn turn(&self, account: Account) -> Result<Arc<AsyncMutex<()>>, Duration> {
        let now = (self.clock)();
        let mut accounts = self.accounts();
        if !accounts.contains_key(&account) {
            make_room(&mut accounts, self.capacity, |failures| failures.is_idle().then_some(failures.wait_until));
        }
        let unused = || Failures { count: 0, last: now, wait_until: now, turn: Arc::default() };
        let turn = &accounts.entry(account).or_insert_with(unused).turn;
        if Arc::strong_count(turn) > 1 + MAX_WAITING {
            return Err(FIRST_WAIT);
        }
        Ok(Arc::clone(turn))
    }

    fn take_token(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut addresses = self.addresses();
        if !addresses.contains_key(&client) {
            make_room(&mut addresses, self.capacity, |full_at| Some(*full_at));
        }
        let full_at = addresses.entry(client).or_insert(now);
        let next = (*full_at).max(now) + REFILL;
        let wait = (next - now).saturating_sub(REFILL * BURST);
        if wait.is_zero() {
            *full_at = next;
            return Ok(());
        }
        Err(wait)
    }

    /// Records the outcome of an attempt, which still has the turn.
    fn record(&self, Attempt { account, client, outcome, .. }: &Attempt<'_>) {
        if let (Some(client), Outcome::Succeeded | Outcome::NotMade) = (client, outcome)
            && let Some(full_at) = self.addresses().get_mut(client)
        {
            *full_at -= REFILL; // gives the token back
        }
        let now = (self.clock)();
        let mut accounts = self.accounts();
        let Some(failures) = accounts.get_mut(account) else { return };
        match outcome {
            Outcome::NotMade => {}
            Outcome::Succeeded => (failures.count, failures.wait_until) = (0, now),
            Outcome::Failed => {
                let is_old = now.saturating_duration_since(failures.last) > FORGET_AFTER;
                failures.count = if is_old { 1 } else { failures.count.saturating_add(1) };
                (failures.last, failures.wait_until) = (now, now + wait_after(failures.count));
            }
        }
    }

    /// Removes an account without failures, unless another attempt waits for its turn.
    fn remove_unused(&self, account: &Account) {
        let mut accounts = self.accounts();
        if accounts.get(account).is_some_and(|failures| failures.count == 0 && failures.is_idle()) {
            accounts.remove(account);
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Account, Failures>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failures {
    /// Returns whether no attempt has the turn or waits for it.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.turn) == 1
    }
}

impl Attempt<'_> {
    /// Ends an attempt with the right password. The failures of the account are forgotten.
    pub fn succeeded(mut self) {
        self.outcome = Outcome::Succeeded;
    }

    /// Ends an attempt whose password was not compared. It counts as none.
    pub fn not_made(mut self) {
        self.outcome = Outcome::NotMade;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.guesses.record(self);
        self.turn = None; // the next attempt sees what was recorded
        self.guesses.remove_unused(&self.account);
    }
}

/// Returns how long an account waits after its latest failure.
fn wait_after(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_WAIT.saturating_mul(1 << doublings.min(16)).min(MAX_WAIT),
    }
}

/// Returns what counts as one address: one of IPv4, or the network of one IPv6 customer.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Removes the eighth with the earliest times from a full map. `time` returns `None` for what must stay.
fn make_room<K: Eq + Hash, V>(map: &mut HashMap<K, V>, capacity: usize, time: impl Fn(&V) -> Option<Instant>) {
    if map.len() < capacity {
        return;
    }
    let mut times: Vec<Instant> = map.values().filter_map(&time).collect();
    let eighth = capacity / 8;
    if eighth < times.len() {
        let limit = *times.select_nth_unstable(eighth).1;
        map.retain(|_, value| time(value).is_none_or(|time| time > limit));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Declares a clock that stands still until `turn` turns it.
    macro_rules! clock {
        ($clock:ident, $turn:ident) => {
            static MILLISECONDS: AtomicU64 = AtomicU64::new(0);
            fn $clock() -> Instant {
                static START: LazyLock<Instant> = LazyLock::new(Instant::now);
                *START + Duration::from_millis(MILLISECONDS.load(Ordering::Relaxed))
            }
            let $turn = |time: Duration| {
                MILLISECONDS.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
            };
        };
    }

    fn account(number: i64) -> Account {
        Account::Known(Id::new(number).unwrap())
    }

    async fn fail(guesses: &Guesses, account: Account) -> Result<(), Duration> {
        guesses.begin(account, None).await.map(drop)
    }

    #[tokio::test]
    async fn doubles_the_wait_from_the_fifth_failure_on_up_to_15_minutes() {
        clock!(clock, turn);
        let guesses = Guesses::with_clock(clock);
        for _ in 0..5 {
            fail(&guesses, account(1)).await.unwrap();
        }
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900] {
            let wait = Duration::from_secs(seconds);
            for _ in 0..3 {
                assert_eq!(fail(&guesses, account(1)).await, Err(wait), "a guess during the wait counts as none");
            }
            turn(wait - Duration::from_millis(1));
            assert_eq!(fail(&guesses, account(1)).await, Err(Duration::from_millis(1)));
            turn(Duration::from_millis(1));
            fail(&guesses, account(1)).await.unwrap();
            fail(&guesses, account(2 + i64::try_from(seconds).unwrap())).await.unwrap(); // another account waits for nothing
        }
        turn(FORGET_AFTER + Duration::from_secs(1));
        for _ in 0..5 {
            fail(&guesses, account(1)).await.unwrap();
        }
        assert_eq!(fail(&guesses, account(1)).await, Err(FIRST_WAIT), "old failures are forgotten");
    }

    #[tokio::test]
    async fn forgets_the_failures_after_a_success() {
        let guesses = Guesses::default();
        for _ in 0..3 {
            for _ in 0..4 {
                fail(&guesses, account(1)).await.unwrap();
            }
            guesses.begin(account(1), None).await.unwrap().succeeded();
            assert!(guesses.accounts().is_empty());
        }
    }

    #[tokio::test]
    async fn counts_no_attempt_whose_password_was_not_compared() {
        let guesses = Guesses::default();
        for _ in 0..2 * BURST {
            guesses.begin(account(1), Some(ADDRESS)).await.unwrap().not_made();
        }
        assert!(guesses.accounts().is_empty());
        assert!(*guesses.addresses().get(&ADDRESS).unwrap() <= Instant::now());
    }

    #[tokio::test]
    async fn counts_an_attempt_whose_client_disconnects() {
        let guesses = Guesses::default();
        for _ in 0..5 {
            let attempt = guesses.begin(account(1), None).await.unwrap();
            let waiting = guesses.begin(account(1), None);
            assert!(futures_util::FutureExt::now_or_never(waiting).is_none(), "one attempt after the other");
            drop(attempt);
        }
        assert!(fail(&guesses, account(1)).await.is_err());
    }

    #[tokio::test]
    async fn lets_a_limited_number_of_attempts_wait_for_one_account() {
        let guesses = Guesses::default();
        let first = guesses.begin(account(1), None).await.unwrap();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(guesses.begin(account(1), None))).collect();
        for attempt in &mut waiting {
            assert!(futures_util::FutureExt::now_or_never(attempt.as_mut()).is_none());
        }
        assert_eq!(guesses.begin(account(1), None).await.err(), Some(FIRST_WAIT));
        fail(&guesses, account(2)).await.unwrap();
        first.succeeded();
        for attempt in waiting {
            attempt.await.unwrap().succeeded();
        }
        assert!(!guesses.accounts().contains_key(&account(1)));
    }

    #[tokio::test]
    async fn limits_the_failures_that_an_address_causes() {
        clock!(clock, turn);
        let guesses = Guesses::with_clock(clock);
        let from = async |number: i64, address: &str| {
            guesses.begin(account(number), Some(address.parse().unwrap())).await.map(drop)
        };
        for (same, other) in [("192.0.2.7", "192.0.2.8"), ("2001:db8:0:1::1", "2001:db8:0:2::1")] {
            let first = if same.contains(':') { 1000 } else { 1 };
            for number in 0..i64::from(BURST) {
                from(first + number, same).await.unwrap();
            }
            assert_eq!(from(999, same).await, Err(REFILL));
            from(998, other).await.unwrap();
            turn(REFILL);
            guesses.begin(account(997), Some(same.parse().unwrap())).await.unwrap().succeeded(); // a success costs nothing
            from(996, same).await.unwrap();
            assert_eq!(from(995, same).await, Err(REFILL));
        }
        assert_eq!(from(994, "2001:db8:0:1:ffff::").await, Err(REFILL), "an IPv6 network is one address");
        assert!(!guesses.accounts().contains_key(&account(999)), "a guess that is not made counts as none");
    }

    #[tokio::test]
    async fn remembers_a_limited_number_and_forgets_the_shortest_waits_first() {
        clock!(clock, turn);
        let guesses = Guesses { capacity: 80, ..Guesses::with_clock(clock) };
        for _ in 0..5 {
            fail(&guesses, account(1)).await.unwrap();
        }
        let in_use = guesses.begin(account(2), None).await.unwrap();
        for number in 0..10_000 {
            turn(Duration::from_micros(1000) / 50);
            let name = guesses.unknown(&number);
            guesses.begin(name, Some(Ipv6Addr::from_bits(number << 64).into())).await.map(drop).unwrap();
        }
        turn(Duration::from_millis(1));
        assert!(guesses.accounts().len() <= 80 && guesses.addresses().len() <= 80);
        assert!(guesses.accounts().contains_key(&account(2)), "it is in use");
        assert!(fail(&guesses, account(1)).await.is_err(), "its wait is not over");
        drop(in_use);
    }
}
