//! The contract of [`OrderStore`]: one function per rule, run against every store.

use std::collections::HashSet;

use chassis::http::extract::Header;
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use super::*;

testing::store_contract! {
    memory: memory();
    postgres: postgres_store;
    hides_intents
    turns_a_settled_intent_into_an_order
    settles_or_aborts_an_intent_and_never_both
    keeps_one_order_per_key
    frees_the_key_of_an_aborted_intent_immediately
    accepts_the_same_intent_twice
    starts_one_of_twenty_concurrent_intents_with_one_key
    handles_concurrent_intents_independently
    moves_an_order_only_from_the_expected_status
    lets_one_of_twenty_concurrent_settles_and_aborts_succeed
    finishes_aborting_and_cancelling_orders_after_a_release
    ignores_a_release_in_any_other_state
    returns_exactly_the_matching_orders_page_by_page
    aborts_and_claims_abandoned_intents
    gives_a_claim_to_one_caller_until_it_expires
    claims_the_longest_waiting_orders_first
    gives_two_reconcilers_different_orders
}

type Store = Arc<dyn OrderStore>;

const HOUR: Duration = Duration::from_secs(3600);

async fn postgres_store(database: PgConnectOptions) -> Store {
    Arc::new(super::postgres::tests::open(&database).await)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn order(n: u128) -> OrderId {
    OrderId(Uuid::from_u128(n + 1)) // above `OrderId::MIN`
}

fn user(n: i64) -> Id {
    Id::new(n).unwrap()
}

fn intent(n: u128) -> Intent {
    Intent { id: order(n), user_id: user(1), key: None, created_at: at(0) }
}

fn keyed(n: u128, key: &str, body: &str) -> Intent {
    let key = (Key::parse(key).unwrap(), Fingerprint::of(body.as_bytes()));
    Intent { key: Some(key), ..intent(n) }
}

fn lines() -> Vec<OrderLine> {
    let price = Money::from_cents(1999).unwrap();
    vec![OrderLine { product_id: Id::new(7).unwrap(), name: "lamp".to_owned(), quantity: 2, price }]
}

async fn begin(store: &Store, intent: Intent) {
    assert_eq!(store.begin(intent).await.unwrap(), BeginOutcome::Started);
}

async fn settle(store: &Store, id: OrderId) -> Option<Entity<Order>> {
    store.settle(id, lines(), Money::from_cents(3998).unwrap()).await.unwrap()
}

/// Places an order and moves it through these states.
async fn placed(store: &Store, intent: Intent, steps: &[State]) -> Entity<Order> {
    let id = intent.id;
    begin(store, intent).await;
    let mut order = settle(store, id).await.expect("it is an intent");
    for step in steps {
        order = store.step(id, order.status, *step).await.unwrap().expect("it has this status");
    }
    order
}

async fn list(store: &Store, filter: Filter) -> Vec<OrderId> {
    let page = Page { after: None, limit: 1000 };
    store.page(page, filter).await.unwrap().rows.iter().map(|order| order.id).collect()
}

async fn hides_intents(store: &Store) {
    begin(store, intent(1)).await;
    begin(store, intent(2)).await;
    assert!(store.abort(order(2)).await.unwrap());
    for hidden in [order(1), order(2), order(3)] {
        assert_eq!(store.by_id(hidden).await.unwrap(), None);
    }
    for filter in [Filter::default(), Filter { user_id: Some(user(1)), status: Some(OrderStatus::Pending) }] {
        assert_eq!(list(store, filter).await, []);
    }
}

async fn turns_a_settled_intent_into_an_order(store: &Store) {
    begin(store, intent(1)).await;
    let settled = settle(store, order(1)).await.expect("it is an intent");
    let total = Money::from_cents(3998).unwrap();
    let status = OrderStatus::Pending;
    let expected = Order { id: order(1), user_id: user(1), products: lines(), total, status, created_at: at(0) };
    assert_eq!(*settled, expected);
    assert_eq!(store.by_id(order(1)).await.unwrap().as_deref(), Some(&expected));
    assert_eq!(list(store, Filter::default()).await, [order(1)]);
}

async fn settles_or_aborts_an_intent_and_never_both(store: &Store) {
    for n in [1, 2] {
        begin(store, intent(n)).await;
    }
    assert!(settle(store, order(1)).await.is_some());
    assert!(settle(store, order(1)).await.is_none(), "only once");
    assert!(!store.abort(order(1)).await.unwrap());
    assert!(store.by_id(order(1)).await.unwrap().is_some());

    assert!(store.abort(order(2)).await.unwrap());
    assert!(!store.abort(order(2)).await.unwrap(), "only once");
    assert!(settle(store, order(2)).await.is_none());
    assert!(store.by_id(order(2)).await.unwrap().is_none());
    assert!(settle(store, order(3)).await.is_none() && !store.abort(order(3)).await.unwrap(), "unknown");
}

async fn keeps_one_order_per_key(store: &Store) {
    begin(store, keyed(1, "k", "{}")).await;
    assert_eq!(store.begin(keyed(2, "k", "{}")).await.unwrap(), BeginOutcome::InProgress);
    assert_eq!(store.begin(keyed(2, "k", "[]")).await.unwrap(), BeginOutcome::KeyMismatch);
    begin(store, keyed(3, "other", "{}")).await;
    begin(store, intent(4)).await;

    let settled = settle(store, order(1)).await.expect("it is an intent");
    assert_eq!(store.begin(keyed(2, "k", "{}")).await.unwrap(), BeginOutcome::Replayed(settled));
    assert_eq!(store.begin(keyed(2, "k", "[]")).await.unwrap(), BeginOutcome::KeyMismatch);
    let cancelled = store.step(order(1), OrderStatus::Pending, State::Cancelling).await.unwrap().unwrap();
    assert_eq!(
        store.begin(keyed(2, "k", "{}")).await.unwrap(),
        BeginOutcome::Replayed(cancelled),
        "with its current status"
    );
    store.finish_release(order(1)).await.unwrap();
    assert!(
        matches!(store.begin(keyed(2, "k", "{}")).await.unwrap(), BeginOutcome::Replayed(_)),
        "a cancelled order keeps its key"
    );
}

async fn frees_the_key_of_an_aborted_intent_immediately(store: &Store) {
    begin(store, keyed(1, "k", "{}")).await;
    assert!(store.abort(order(1)).await.unwrap());
    begin(store, keyed(2, "k", "[]")).await;
    store.finish_release(order(1)).await.unwrap();
    assert_eq!(
        store.begin(keyed(3, "k", "[]")).await.unwrap(),
        BeginOutcome::InProgress,
        "the second attempt still holds it"
    );
    assert!(settle(store, order(2)).await.is_some());
}

/// A store in a database repeats a statement whose response is lost.
async fn accepts_the_same_intent_twice(store: &Store) {
    for intent in [intent(1), keyed(2, "k", "{}")] {
        begin(store, intent.clone()).await;
        begin(store, intent.clone()).await;
        assert!(settle(store, intent.id).await.is_some());
        begin(store, intent.clone()).await;
        assert!(store.by_id(intent.id).await.unwrap().is_some(), "it does not change");
    }
    begin(store, keyed(3, "other", "{}")).await;
    assert!(store.abort(order(3)).await.unwrap());
    begin(store, keyed(4, "other", "{}")).await;
    begin(store, keyed(3, "other", "{}")).await;
    assert!(settle(store, order(3)).await.is_none(), "it does not change");
    assert!(settle(store, order(4)).await.is_some());
}

async fn starts_one_of_twenty_concurrent_intents_with_one_key(store: &Store) {
    let attempts = (0..20).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.begin(keyed(n, "k", "{}")).await.unwrap() })
    });
    let begun: Vec<BeginOutcome> = join_all(attempts).await.into_iter().map(|begun| begun.unwrap()).collect();
    assert_eq!(begun.iter().filter(|begun| **begun == BeginOutcome::Started).count(), 1, "{begun:?}");
    assert_eq!(begun.iter().filter(|begun| **begun == BeginOutcome::InProgress).count(), 19, "{begun:?}");
}

/// Of every three intents two have the same key. One of seven is aborted.
async fn handles_concurrent_intents_independently(store: &Store) {
    let total = |n: u128| Money::from_cents(n as i64).unwrap();
    let attempts = (0..300).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let key = format!("k{}", n / 3);
            let begun = store.begin(if n % 3 == 2 { intent(n) } else { keyed(n, &key, "{}") }).await.unwrap();
            match begun {
                BeginOutcome::Started if n % 7 == 0 => assert!(store.abort(order(n)).await.unwrap()),
                BeginOutcome::Started => {
                    let settled = store.settle(order(n), lines(), total(n)).await.unwrap().expect("it is an intent");
                    assert_eq!((settled.id, settled.total), (order(n), total(n)), "its own order");
                }
                BeginOutcome::Replayed(placed) => {
                    assert_eq!(placed.id.0.as_u128() / 3 * 3, n / 3 * 3, "the order with the same key")
                }
                begun => assert_eq!(begun, BeginOutcome::InProgress),
            }
            (n, matches!(store.by_id(order(n)).await.unwrap(), Some(placed) if placed.total == total(n)))
        })
    });
    let placed: HashSet<u128> = join_all(attempts)
        .await
        .into_iter()
        .map(|done| done.unwrap())
        .filter_map(|(n, placed)| placed.then_some(n))
        .collect();
    for n in (0..300).step_by(3) {
        assert!(!(placed.contains(&n) && placed.contains(&(n + 1))), "one order per key");
        assert_eq!(placed.contains(&(n + 2)), (n + 2) % 7 != 0, "intents without a key are independent");
    }
    let listed: HashSet<u128> = list(store, Filter::default()).await.into_iter().map(|id| id.0.as_u128() - 1).collect();
    assert_eq!(listed, placed);
}

async fn moves_an_order_only_from_the_expected_status(store: &Store) {
    placed(store, intent(1), &[State::Confirmed]).await;
    assert!(store.step(order(1), OrderStatus::Pending, State::Cancelling).await.unwrap().is_none());
    let shipped = store.step(order(1), OrderStatus::Confirmed, State::Shipped).await.unwrap();
    assert_eq!(shipped.expect("it was confirmed").status, OrderStatus::Shipped);
    assert!(store.step(order(2), OrderStatus::Pending, State::Confirmed).await.unwrap().is_none(), "no such order");
}

async fn lets_one_of_twenty_concurrent_settles_and_aborts_succeed(store: &Store) {
    for n in 0..20 {
        begin(store, intent(n)).await;
        let racers = (0..20).map(|racer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                if racer % 2 == 0 {
                    settle(&store, order(n)).await.is_some()
                } else {
                    store.abort(order(n)).await.unwrap()
                }
            })
        });
        let succeeded = join_all(racers).await.into_iter().filter(|result| *result.as_ref().unwrap()).count();
        assert_eq!(succeeded, 1, "order {n}");
    }
}

async fn finishes_aborting_and_cancelling_orders_after_a_release(store: &Store) {
    begin(store, intent(1)).await;
    store.abort(order(1)).await.unwrap();
    placed(store, intent(2), &[State::Cancelling]).await;
    assert_eq!(store.claim(HOUR, Duration::ZERO, 9).await.unwrap(), [order(1), order(2)]);
    for _ in 0..2 {
        store.finish_release(order(1)).await.unwrap();
        store.finish_release(order(2)).await.unwrap();
        assert_eq!(store.claim(HOUR, Duration::ZERO, 9).await.unwrap(), [], "no order is left to claim");
        assert_eq!(store.by_id(order(2)).await.unwrap().unwrap().status, OrderStatus::Cancelled);
    }
    begin(store, intent(1)).await;
    assert!(settle(store, order(1)).await.is_some(), "the row was deleted");
}

async fn ignores_a_release_in_any_other_state(store: &Store) {
    begin(store, intent(1)).await;
    let steps = [State::Confirmed, State::Shipped, State::Delivered];
    for n in 0..=3 {
        placed(store, intent(10 + n as u128), &steps[..n]).await;
    }
    for id in [order(1), order(10), order(11), order(12), order(13), order(99)] {
        let before = store.by_id(id).await.unwrap();
        store.finish_release(id).await.unwrap();
        assert_eq!(store.by_id(id).await.unwrap(), before);
    }
    assert!(settle(store, order(1)).await.is_some(), "it is still an intent");
}

async fn returns_exactly_the_matching_orders_page_by_page(store: &Store) {
    for n in 0..30 {
        let steps: &[State] = match n % 3 {
            0 => &[],
            1 => &[State::Confirmed],
            _ => &[State::Cancelling],
        };
        placed(store, Intent { user_id: user(1 + n as i64 % 2), ..intent(n) }, steps).await;
    }
    store.finish_release(order(2)).await.unwrap(); // clients cannot distinguish cancelled and cancelling orders
    for user_id in [None, Some(user(1)), Some(user(2)), Some(user(3))] {
        for status in [None, Some(OrderStatus::Pending), Some(OrderStatus::Confirmed), Some(OrderStatus::Cancelled)] {
            let statuses = [OrderStatus::Pending, OrderStatus::Confirmed, OrderStatus::Cancelled];
            let matches = |n: &u128| {
                user_id.is_none_or(|id| id == user(1 + *n as i64 % 2))
                    && status.is_none_or(|status| status == statuses[*n as usize % 3])
            };
            let expected: Vec<OrderId> = (0..30).filter(matches).map(order).collect();
            for limit in [1, 2, 7, 30] {
                let (mut seen, mut after) = (Vec::new(), None);
                loop {
                    let rows = store.page(Page { after, limit }, Filter { user_id, status }).await.unwrap();
                    seen.extend(rows.rows.iter().map(|order| order.id));
                    after = seen.last().copied();
                    if !rows.more {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{user_id:?} {status:?} by {limit}");
            }
        }
    }
}

async fn aborts_and_claims_abandoned_intents(store: &Store) {
    for n in 0..4 {
        begin(store, Intent { created_at: chassis::now(), ..keyed(n, &format!("k{n}"), "{}") }).await;
    }
    assert!(settle(store, order(0)).await.is_some());
    assert_eq!(store.claim(HOUR, HOUR, 9).await.unwrap(), [], "they are too young");
    assert!(settle(store, order(1)).await.is_some());
    assert_eq!(store.claim(Duration::ZERO, HOUR, 9).await.unwrap(), [order(2), order(3)]);
    assert!(settle(store, order(2)).await.is_none());
    begin(store, keyed(5, "k2", "{}")).await; // the key is free
}

async fn gives_a_claim_to_one_caller_until_it_expires(store: &Store) {
    for n in 0..40 {
        begin(store, intent(n)).await;
        store.abort(order(n)).await.unwrap();
    }
    assert_eq!(store.unsettled().await, Ok(0), "none was claimed");
    let claims = (0..8).map(|_| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.claim(HOUR, HOUR, 4).await.unwrap() })
    });
    let claimed: Vec<OrderId> = join_all(claims).await.into_iter().flat_map(|claim| claim.unwrap()).collect();
    assert_eq!(claimed.len(), 32, "each claims up to the limit");
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 32, "no order is claimed twice");
    assert_eq!(store.claim(HOUR, Duration::from_millis(50), 99).await.unwrap().len(), 8, "the rest");
    let expired = async || store.claim(HOUR, HOUR, 99).await.unwrap().len();
    testing::eventually("the short claims to expire", async || expired().await == 8).await;
    assert_eq!(store.unsettled().await, Ok(40));
}

async fn claims_the_longest_waiting_orders_first(store: &Store) {
    let claim = async || {
        let mut claimed = store.claim(HOUR, Duration::ZERO, 2).await.unwrap();
        claimed.sort_unstable();
        claimed
    };
    for n in 1..=4 {
        begin(store, intent(n)).await;
        store.abort(order(n)).await.unwrap();
    }
    assert_eq!(claim().await, [order(1), order(2)]);
    assert_eq!(claim().await, [order(3), order(4)], "although the first claims have expired");
    assert_eq!(claim().await, [order(1), order(2)], "the oldest claims first");
}

/// Half of the intents are aborted before, half by the claim. Every second claimed order is released immediately.
async fn gives_two_reconcilers_different_orders(store: &Store) {
    const ORDERS: usize = 120;
    for n in 0..ORDERS as u128 {
        begin(store, intent(n)).await;
        assert!(n % 2 == 0 || store.abort(order(n)).await.unwrap());
    }
    let mut claims = Vec::new();
    for _ in 0..ORDERS / 6 {
        let concurrent = [1, 2].map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.claim(Duration::ZERO, HOUR, 4).await.unwrap() })
        });
        for claimed in join_all(concurrent).await {
            let claimed = claimed.unwrap();
            for id in claimed.iter().step_by(2) {
                store.finish_release(*id).await.unwrap();
            }
            claims.extend(claimed);
        }
    }
    assert_eq!(claims.len(), ORDERS);
    assert_eq!(claims.into_iter().collect::<HashSet<_>>().len(), ORDERS, "no order is claimed twice");
}
