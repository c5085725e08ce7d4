//! A peer that fails while many ask: it is not asked more than it can bear, nobody waits for one that is dead, and every
//! unit is where it belongs afterwards.

use std::time::Duration;

use system_tests::load::{Outcome, steady};
use system_tests::{Fault, Links, Proxy, System, eventually, order, seed};
use tokio::sync::Mutex;
use tokio::time::{self, Instant};

const STOCK: i64 = 100_000;
/// Orders a second while half of the answers are lost, enough to tell retries that are limited from those that are not.
const MANY: u32 = 125;
/// Orders a second after a peer has come back.
const AFTERWARDS: u32 = 20;
/// When so many are placed one after the other, all is as before.
const IN_A_ROW: usize = 25;
/// How long a peer is dead: some time longer than the first ones wait, before anything is known.
const DEAD: Duration = Duration::from_secs(7);
/// In so long orders are as before, after a peer has come back.
const RECOVERY: Duration = Duration::from_secs(5);

/// Retries are a fifth of the calls, and ten a second on top …
const RETRY_SHARE: f64 = 0.2;
const RETRIES_A_SECOND: f64 = 10.0;
/// … which is counted over so many seconds, and may be spent at once.
const RETRY_WINDOW: f64 = 10.0;

/// Each of these tests takes times, and would disturb the others'.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_peer_that_loses_half_of_its_answers_is_asked_a_fifth_more_and_no_unit_is_lost() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (system, links, product) = start().await;
    let asked = || system.users.answered("GET", "/users", 200..=299); // for one, and for several
    let retried = async || {
        let metrics = system.orders.get("/metrics").await.expect(200).text;
        let count = metrics.lines().find_map(|line| line.strip_prefix(r#"peer_retries_total{peer="user-service"} "#));
        count.map_or(0, |count| count.parse::<u64>().expect("a number"))
    };
    let (began, asked_before, retried_before) = (Instant::now(), asked().await, retried().await);
    let both = [&links.orders_to_users, &links.orders_to_products];
    both.iter().for_each(|proxy| proxy.set(Fault::LoseAnswers(0.5)));
    let outcomes = orders_for(&system, product, MANY, Duration::from_secs(5)).await;
    let (orders, placed) = (outcomes.len() as f64, sold(&outcomes));
    let (calls, retries) = ((asked().await - asked_before) as f64, (retried().await - retried_before) as f64);
    let reserve = RETRIES_A_SECOND * (RETRY_WINDOW + began.elapsed().as_secs_f64());

    both.iter().for_each(|proxy| proxy.heal());
    let settled = settles(&system, product, placed).await.as_millis();
    let figures =
        format!("{calls} calls, {retries} of them again, for {orders} orders, {placed} placed, seed {}", seed());
    println!("peer_load: half of the answers lost: {figures}; settled {settled} ms after healing");
    assert!(calls <= (calls - retries) * (1.0 + RETRY_SHARE) + reserve, "{figures}");
    assert!(calls <= orders * (1.0 + RETRY_SHARE) + reserve, "orders share calls: {figures}");
    assert!(retries > 0.0, "what may pass is tried again: {figures}");
}

#[tokio::test]
async fn nobody_waits_for_a_dead_user_service_and_it_is_found_again_within_five_seconds() {
    nobody_waits("user-service", 60, |links| &links.orders_to_users).await;
}

#[tokio::test]
async fn nobody_waits_for_a_dead_product_service_and_it_is_found_again_within_five_seconds() {
    nobody_waits("product-service", 20, |links| &links.orders_to_products).await;
}

/// Dead as a machine is whose power failed: nothing comes back, not even that nobody is there.
async fn nobody_waits(peer: &str, a_second: u32, link: fn(&Links) -> &Proxy) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (system, links, product) = start().await;
    link(&links).set(Fault::BlackHole);
    let healing = async {
        time::sleep(DEAD).await;
        link(&links).heal();
        (Instant::now(), orders_for(&system, product, AFTERWARDS, RECOVERY + Duration::from_secs(1)).await)
    };
    let (dead, (healed, after)) = tokio::join!(orders_for(&system, product, a_second, DEAD), healing);
    let settled = settles(&system, product, sold(&dead) + sold(&after)).await;

    let mut waits: Vec<_> = dead.iter().map(|outcome| outcome.took.as_millis()).collect();
    waits.sort();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    let as_before = after.windows(IN_A_ROW).find(|some| some.iter().all(is_placed));
    let recovered = as_before.map_or(Duration::MAX, |some| some[0].due - healed);
    println!(
        "peer_load: {peer} dead, {a_second} orders a second: 503 after {median} ms at the median and {longest} at most; {recovered:.0?} after healing \
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

/// Orders one unit each at a steady pace for so long, and waits for all answers, which are 201 or 503.
async fn orders_for(system: &System, product: i64, a_second: u32, time: Duration) -> Vec<Outcome> {
    let one = || {
        let sending = system.orders.request("POST", "/orders").json(&order(1, product, 1));
        async move {
            let answer = sending.try_send().await?;
            if answer.status != 201 {
                answer.clone().expect_problem(503, "peer-unavailable");
            }
            Ok(answer)
        }
    };
    steady(a_second, time, one).await.outcomes
}

fn is_placed(outcome: &Outcome) -> bool {
    outcome.status == Ok(201)
}

fn sold(outcomes: &[Outcome]) -> i64 {
    outcomes.iter().filter(|outcome| is_placed(outcome)).count() as i64
}

/// Waits until only what was sold is missing: so many units, and the one of the start; how long it took.
async fn settles(system: &System, product: i64, sold: i64) -> Duration {
    let (began, wanted) = (Instant::now(), STOCK - 1 - sold);
    assert_eq!(eventually(wanted, || system.stock(product)).await, wanted, "seed {}", seed());
    began.elapsed()
}
