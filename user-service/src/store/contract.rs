//! The contract of [`UserStore`], one function a sentence, run against every store.

use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;

use super::*;
use crate::password::PasswordHash;

testing::store_contract! {
    memory: (Arc::new(MemoryStore::default()) as Store);
    postgres: over;
    ids_rise_and_are_never_given_twice
    what_is_put_in_comes_out
    names_are_unique_without_case
    the_longest_names_are_kept
    a_refused_insert_changes_nothing
    rows_are_found_by_id_and_by_name
    among_many_each_is_found_by_its_name
    pages_join_to_the_whole_list
    a_change_is_made_only_to_the_version_seen
    a_change_frees_the_names_it_gives_up
    a_change_cannot_take_anothers_name
    a_removed_user_frees_its_names
    of_many_at_once_one_gets_the_name
    of_many_changes_at_once_one_is_made
}

type Store = Arc<dyn UserStore>;

async fn over(database: PgConnectOptions) -> Store {
    Arc::new(PostgresStore::open(&database, &generous_timeouts()).await.expect("a database that is empty"))
}

fn draft(name: &str) -> Draft {
    Draft { name: name.to_owned(), username: None, email: None, password: None }
}

fn account(username: &str, email: &str) -> Draft {
    Draft { username: Some(username.to_owned()), email: Some(email.to_owned()), ..draft(username) }
}

async fn add(store: &Store, draft: Draft) -> Row {
    store.insert(draft, Timestamp::UNIX_EPOCH).await.expect("a user that nothing forbids")
}

async fn all(store: &Store) -> Vec<Id> {
    let page = Page { after: None, limit: 1000 };
    store.page(page).await.unwrap().rows.iter().map(|user| user.id).collect()
}

async fn ids_rise_and_are_never_given_twice(store: &Store) {
    let first = add(store, draft("one")).await;
    let second = add(store, draft("two")).await;
    assert_eq!(first.id.get(), 1);
    assert!(second.id > first.id);
    assert!(store.remove(second.id, second.version()).await.unwrap());
    assert!(add(store, draft("three")).await.id > second.id, "the id of a removed user is not reused");
    assert_eq!(first.user().public.created_at, Timestamp::UNIX_EPOCH, "the time is the caller's");
}

async fn what_is_put_in_comes_out(store: &Store) {
    let hash = |text: &str| Some(PasswordHash::stored(text.to_owned()));
    let given = Draft { password: hash("$argon2id$1"), ..account("Ada \\'; drop table 🦀", "\"Ada\"@Example.com") };
    let put = store.insert(given, "2026-01-31T09:30:00.123456Z".parse().unwrap()).await.unwrap();
    expect_kept(store, &put, Some("$argon2id$1")).await;
    let put = add(store, draft("no account")).await;
    expect_kept(store, &put, None).await;
    let mut change = User { password: hash("$argon2id$2"), version: put.version() + 1, ..put.user() };
    (change.public.name, change.public.email) = ("an account".to_owned(), Some("Bob@Example.com".to_owned()));
    let put = store.replace(put.version(), change).await.unwrap().expect("nobody else was there");
    expect_kept(store, &put, Some("$argon2id$2")).await;
}

async fn expect_kept(store: &Store, put: &Row, hash: Option<&str>) {
    let (kept, put) = (store.by_id(put.id).await.unwrap().unwrap().user(), put.user());
    assert_eq!((&kept.public, kept.version), (&put.public, put.version));
    assert_eq!(kept.password.as_ref().map(PasswordHash::expose), hash);
}

async fn names_are_unique_without_case(store: &Store) {
    add(store, account("Ångström", "Ada@Example.com")).await;
    for (username, email, refusal) in [
        ("ångström", "other@example.com", StoreError::UsernameTaken),
        ("A\u{30a}NGSTRO\u{308}M", "other@example.com", StoreError::UsernameTaken),
        ("other", "ADA@example.COM", StoreError::EmailTaken),
        ("ångström", "ada@example.com", StoreError::UsernameTaken), // of two reasons always this one
    ] {
        let refused = store.insert(account(username, email), Timestamp::UNIX_EPOCH).await.err();
        assert_eq!(refused, Some(refusal), "{username} {email}");
    }
    add(store, draft("Ångström")).await; // a name for people is not unique
}

/// Some characters take three times the room when they are folded, and an index takes no row of any length.
async fn the_longest_names_are_kept(store: &Store) {
    let notes: Vec<char> = ('\u{1d15e}'..='\u{1d164}').chain('\u{1d1bb}'..='\u{1d1c0}').collect();
    let name = |length: usize| (0..length).map(|n| notes[n * n % 151 % notes.len()]).collect::<String>();
    let given = account(&name(64), &format!("{}@x", name(252)));
    add(store, given.clone()).await;
    assert!(store.by_username(&name(64)).await.unwrap().is_some());
    let twice = Draft { username: None, ..given };
    assert_eq!(store.insert(twice, Timestamp::UNIX_EPOCH).await.err(), Some(StoreError::EmailTaken));
}

async fn a_refused_insert_changes_nothing(store: &Store) {
    add(store, account("ada", "ada@example.com")).await;
    let refused = store.insert(account("eve", "ada@example.com"), Timestamp::UNIX_EPOCH).await;
    assert_eq!(refused.err(), Some(StoreError::EmailTaken));
    assert_eq!(all(store).await.len(), 1);
    add(store, account("eve", "eve@example.com")).await; // the name was not kept
}

async fn rows_are_found_by_id_and_by_name(store: &Store) {
    let ada = add(store, account("Ada", "ada@example.com")).await;
    let bob = add(store, account("bob", "bob@example.com")).await;
    let (ada_id, bob_id, nobody) = (ada.id, bob.id, Id::new(999).unwrap());
    assert!(store.by_id(ada_id).await.unwrap().is_some_and(|user| user.user().public == ada.user().public));
    assert!(store.by_id(nobody).await.unwrap().is_none());
    assert!(store.by_username("ADA").await.unwrap().is_some_and(|user| user.id == ada_id));
    for other in ["ad", "ada\0", "\0", "", "%"] {
        assert!(store.by_username(other).await.unwrap().is_none(), "{other:?}");
    }
    let found = store.by_ids(&[bob_id, nobody, ada_id, bob_id]).await.unwrap();
    assert_eq!(found.iter().map(|user| user.id).collect::<Vec<_>>(), [ada_id, bob_id]);
}

async fn among_many_each_is_found_by_its_name(store: &Store) {
    let names: Vec<String> = (0..200).map(|n| format!("user{n}")).collect();
    for name in &names {
        add(store, account(name, &format!("{name}@example.com"))).await;
    }
    for (name, id) in names.iter().zip(all(store).await) {
        assert!(store.by_username(name).await.unwrap().is_some_and(|user| user.id == id), "{name}");
        let twice = Draft { email: Some(format!("{name}@example.com")), ..draft("another") };
        let refused = store.insert(twice, Timestamp::UNIX_EPOCH).await.err();
        assert_eq!(refused, Some(StoreError::EmailTaken), "{name}");
    }
}

async fn pages_join_to_the_whole_list(store: &Store) {
    for n in 0..10 {
        add(store, draft(&n.to_string())).await;
    }
    let third = store.by_id(Id::new(3).unwrap()).await.unwrap().unwrap();
    assert!(store.remove(third.id, third.version()).await.unwrap());
    for limit in 1..=11 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let rows = store.page(Page { after, limit }).await.unwrap();
            assert!(rows.rows.len() <= limit);
            seen.extend(rows.rows.iter().map(|user| user.id));
            assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
            after = seen.last().copied();
            if !rows.more {
                break;
            }
        }
        assert_eq!(seen, all(store).await, "pages of {limit}");
    }
}

async fn a_change_is_made_only_to_the_version_seen(store: &Store) {
    let seen = add(store, draft("ada")).await;
    let next = |name: &str, from: &Row| {
        let mut next = from.user();
        next.public.name = name.to_owned();
        next.version += 1;
        next
    };
    let changed = store.replace(seen.version(), next("first", &seen)).await.unwrap().expect("nobody else was there");
    assert!(store.replace(seen.version(), next("second", &seen)).await.unwrap().is_none());
    assert!(!store.remove(seen.id, seen.version()).await.unwrap());
    let stored = store.by_id(seen.id).await.unwrap().unwrap();
    assert_eq!(stored.user().public.name, "first");
    assert!(store.remove(seen.id, changed.version()).await.unwrap());
    assert!(store.replace(changed.version(), next("third", &changed)).await.unwrap().is_none(), "it is gone");
}

async fn a_change_frees_the_names_it_gives_up(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    let mut renamed = ada.user();
    renamed.public.username = Some("countess".to_owned());
    renamed.version += 1;
    store.replace(ada.version(), renamed).await.unwrap().expect("nobody else was there");
    assert!(store.by_username("ada").await.unwrap().is_none());
    assert!(store.by_username("countess").await.unwrap().is_some());
    add(store, account("ada", "other@example.com")).await;
}

async fn a_change_cannot_take_anothers_name(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    add(store, account("bob", "bob@example.com")).await;
    add(store, account("eve", "eve@example.com")).await;
    for (username, email, refusal) in [
        ("BOB", "ada@example.com", StoreError::UsernameTaken),
        ("ada", "Bob@example.com", StoreError::EmailTaken),
        ("bob", "eve@example.com", StoreError::UsernameTaken),
    ] {
        let mut change = ada.user();
        (change.public.username, change.public.email) = (Some(username.to_owned()), Some(email.to_owned()));
        change.version += 1;
        assert_eq!(store.replace(ada.version(), change).await.err(), Some(refusal));
    }
    let mut same = ada.user();
    (same.public.username, same.version) = (Some("ADA".to_owned()), ada.version() + 1);
    assert!(
        store.replace(ada.version(), same).await.unwrap().is_some(),
        "one's own name in another case is no conflict"
    );
}

async fn a_removed_user_frees_its_names(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    assert!(store.remove(ada.id, ada.version()).await.unwrap());
    assert!(!store.remove(ada.id, ada.version()).await.unwrap(), "only once");
    assert!(store.by_username("ada").await.unwrap().is_none());
    add(store, account("ada", "ada@example.com")).await;
}

async fn of_many_at_once_one_gets_the_name(store: &Store) {
    let tries = (0..20).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let draft = account("ada", &format!("{n}@example.com"));
            store.insert(draft, Timestamp::UNIX_EPOCH).await.is_ok()
        })
    });
    let results = join_all(tries).await;
    assert_eq!(results.into_iter().filter(|result| *result.as_ref().unwrap()).count(), 1);
    assert_eq!(all(store).await.len(), 1);
}

async fn of_many_changes_at_once_one_is_made(store: &Store) {
    let seen = add(store, draft("ada")).await;
    let tries = (0..20).map(|n| {
        let (store, mut next) = (Arc::clone(store), seen.user());
        (next.public.name, next.version) = (n.to_string(), seen.version() + 1);
        tokio::spawn(async move { store.replace(next.version - 1, next).await.unwrap() })
    });
    let made: Vec<_> = join_all(tries).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(made.len(), 1);
    expect_kept(store, &made[0], None).await;
}
