//! A peer that fails under load: retries do not overload it, calls to a dead peer fail fast, and no unit is lost.

use std::time::Duration;

use system_tests::load::{Outcome, constant_rate};
use system_tests::{Fault, Links, Proxy, System, eventually, order, seed};
use tokio::sync::Mutex;
use tokio::time::{self, Instant};

const STOCK: i64 = 100_000;
/// Orders per second while half of the responses are lost: enough to tell limited retries from unlimited ones.
const HIGH_RATE: u32 = 125;
/// Orders per second after the peer is back.
const LOW_RATE: u32 = 20;
/// The system has recovered when this many orders succeed in succession.
const CONSECUTIVE: usize = 25;
/// How long the peer is dead: longer than the first orders wait, before the throttle acts.
const DEAD: Duration = Duration::from_secs(7);
/// The time to recover after the peer is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// The retry budget: a fifth of the calls, and ten per second on top …
const RETRY_SHARE: f64 = 0.2;
const RETRIES_A_SECOND: f64 = 10.0;
/// … counted over this many seconds. All of it may be spent in one moment.
const RETRY_WINDOW: f64 = 10.0;

/// These tests measure times, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn limits_retries_to_a_fifth_and_loses_no_unit_when_half_of_the_responses_are_lost() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (system, links, product) = start().await;
    let received = || system.users.answered("GET", "/users", 200..=299); // single and batched calls
    let retries = || system.orders.metric(r#"peer_retries_total{peer="user-service"}"#);
    let retried = async || retries().await.map_or(0, |retries| retries as u64);
    let (began, received_before, retried_before) = (Instant::now(), received().await, retried().await);
    let both = [&links.orders_to_users, &links.orders_to_products];
    both.iter().for_each(|proxy| proxy.set(Fault::LoseAnswers(0.5)));
    let outcomes = orders_for(&system, product, HIGH_RATE, Duration::from_secs(5)).await;
    let (orders, placed) = (outcomes.len() as f64, sold(&outcomes));
    let (calls, retries) = ((received().await - received_before) as f64, (retried().await - retried_before) as f64);
    let reserve = RETRIES_A_SECOND * (RETRY_WINDOW + began.elapsed().as_secs_f64());

    both.iter().for_each(|proxy| proxy.heal());
    let settled = settles(&system, product, placed).await.as_millis();
    let figures =
        format!("{calls} calls, {retries} of them retries, for {orders} orders, {placed} placed, seed {}", seed());
    println!("peer_load: half of the responses lost: {figures}; settled {settled} ms after healing");
    assert!(calls <= (calls - retries) * (1.0 + RETRY_SHARE) + reserve, "{figures}");
    assert!(calls <= orders * (1.0 + RETRY_SHARE) + reserve, "orders share calls: {figures}");
    assert!(retries > 0.0, "some calls are retried: {figures}");
}

#[tokio::test]
async fn fails_fast_while_user_service_is_dead_and_recovers_within_five_seconds() {
    fails_fast("user-service", 60, |links| &links.orders_to_users).await;
}

#[tokio::test]
async fn fails_fast_while_product_service_is_dead_and_recovers_within_five_seconds() {
    fails_fast("product-service", 20, |links| &links.orders_to_products).await;
}

/// The peer is dead like a machine without power: no packet comes back, not even a reset.
async fn fails_fast(peer: &str, rate: u32, link: fn(&Links) -> &Proxy) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (system, links, product) = start().await;
    link(&links).set(Fault::BlackHole);
    let healing = async {
        time::sleep(DEAD).await;
        link(&links).heal();
        (Instant::now(), orders_for(&system, product, LOW_RATE, RECOVERY + Duration::from_secs(1)).await)
    };
    let (dead, (healed, after)) = tokio::join!(orders_for(&system, product, rate, DEAD), healing);
    let settled = settles(&system, product, sold(&dead) + sold(&after)).await;

    let mut waits: Vec<_> = dead.iter().map(|outcome| outcome.took.as_millis()).collect();
    waits.sort();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    let recovery = after.windows(CONSECUTIVE).find(|some| some.iter().all(is_placed));
    let recovered = recovery.map_or(Duration::MAX, |some| some[0].due - healed);
    println!(
        "peer_load: {peer} dead, {rate} orders per second: 503 after {median} ms at the median and {longest} at most; {recovered:.0?} after healing \
         every order is placed; settled {} ms after the last, seed {}",
        settled.as_millis(),
        seed(),
    );
    assert!(dead.iter().all(|outcome| !is_placed(outcome) || outcome.due + outcome.took > healed), "{peer} was dead");
    assert!(median < 100, "{peer}: a median of {median} ms, and up to {longest} ms");
    assert!(recovered < RECOVERY, "{peer}: recovered after {recovered:?}");
}

async fn start() -> (System, Links, i64) {
    let started = System::start_linked(seed(), |launch| launch).await;
    let (system, links) = started.unwrap_or_else(|why| panic!("{why}"));
    let product = system.add_product("Pen", 1.5, STOCK).await;
    system.orders.post("/orders", order(1, product, 1)).await.expect(201);
    (system, links, product)
}

/// Places orders of one unit at this rate for this time. Waits for all responses, which must be 201 or 503.
async fn orders_for(system: &System, product: i64, rate: u32, time: Duration) -> Vec<Outcome> {
    let one = || {
        let request = system.orders.request("POST", "/orders").json(&order(1, product, 1));
        async move {
            let answer = request.try_send().await?;
            if answer.status != 201 {
                answer.clone().expect_problem(503, "peer-unavailable");
            }
            Ok(answer)
        }
    };
    constant_rate(rate, time, one).await.outcomes
}

fn is_placed(outcome: &Outcome) -> bool {
    outcome.status == Ok(201)
}

fn sold(outcomes: &[Outcome]) -> i64 {
    outcomes.iter().filter(|outcome| is_placed(outcome)).count() as i64
}

/// Waits until exactly the sold units are missing, and the one unit of `start`. Returns how long that took.
async fn settles(system: &System, product: i64, sold: i64) -> Duration {
    let (began, wanted) = (Instant::now(), STOCK - 1 - sold);
    assert_eq!(eventually(wanted, || system.stock(product)).await, wanted, "seed {}", seed());
    began.elapsed()
}
