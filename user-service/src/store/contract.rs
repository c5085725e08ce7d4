//! The contract of [`UserStore`] as tests: each function is one claim and runs against every store.

use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;

use super::*;

testing::store_contract! {
    memory: (Arc::new(MemoryStore::default()) as Store);
    postgres: over;
    assigns_rising_ids_and_never_reuses_one
    returns_what_was_stored
    rejects_a_taken_name_in_any_case
    stores_the_longest_names
    changes_nothing_when_it_rejects_an_insert
    finds_users_by_id_username_and_email
    finds_each_of_many_users_by_its_name
    joins_pages_to_the_whole_list
    changes_only_the_expected_version
    frees_the_names_that_a_change_gives_up
    rejects_a_change_to_a_taken_name
    frees_the_names_of_a_removed_user
    gives_a_name_to_one_of_many_concurrent_inserts
    makes_one_of_many_concurrent_changes
}

type Store = Arc<dyn UserStore>;

async fn over(database: PgConnectOptions) -> Store {
    Arc::new(PostgresStore::open(&database, &generous_timeouts()).await.expect("an empty database"))
}

fn account(username: &str, email: &str) -> CreateUser {
    CreateUser { username: Some(username.to_owned()), email: Some(email.to_owned()), ..CreateUser::named(username) }
}

async fn try_add(store: &Store, user: CreateUser) -> Result<Entity<UserRecord>, StoreError> {
    store.insert(user, None, Timestamp::UNIX_EPOCH).await
}

async fn add(store: &Store, user: CreateUser) -> Entity<UserRecord> {
    try_add(store, user).await.expect("a user with free names")
}

/// Replaces the record with one that `change` has changed.
async fn replace(
    store: &Store,
    record: &Entity<UserRecord>,
    change: impl FnOnce(&mut UserRecord),
) -> Result<Option<Entity<UserRecord>>, StoreError> {
    let mut changed = UserRecord::clone(record);
    changed.version += 1;
    change(&mut changed);
    store.replace(record.version, changed).await
}

async fn all(store: &Store) -> Vec<Id> {
    let page = Page { after: None, limit: 1000 };
    store.page(page).await.unwrap().rows.iter().map(|record| record.user.id).collect()
}

async fn assigns_rising_ids_and_never_reuses_one(store: &Store) {
    let first = add(store, CreateUser::named("one")).await;
    let second = add(store, CreateUser::named("two")).await;
    assert_eq!(first.user.id.get(), 1);
    assert!(second.user.id > first.user.id);
    assert!(store.remove(second.user.id, second.version).await.unwrap());
    assert!(
        add(store, CreateUser::named("three")).await.user.id > second.user.id,
        "the id of a removed user is not reused"
    );
    assert_eq!(first.user.created_at, Timestamp::UNIX_EPOCH, "the caller sets the time");
}

async fn returns_what_was_stored(store: &Store) {
    let hash = |text: &str| Some(PasswordHash::stored(text.to_owned()));
    let user = CreateUser { name: "Ada".to_owned(), ..account("Ada \\'; drop table 🦀", "\"Ada\"@Example.com") };
    let stored = store.insert(user, hash("$argon2id$1"), "2026-01-31T09:30:00.123456Z".parse().unwrap()).await.unwrap();
    assert_eq!(stored.user.name, "Ada");
    assert_eq!(stored.user.username.as_deref(), Some("Ada \\'; drop table 🦀"));
    assert_eq!(stored.user.email.as_deref(), Some("\"Ada\"@Example.com"));
    assert_eq!(stored.user.created_at.to_string(), "2026-01-31T09:30:00.123456Z");
    expect_stored(store, &stored, Some("$argon2id$1")).await;

    let stored = add(store, CreateUser::named("no account")).await;
    expect_stored(store, &stored, None).await;
    let changed = replace(store, &stored, |record| {
        record.password = hash("$argon2id$2");
        record.user.name = "an account".to_owned();
        record.user.email = Some("Bob@Example.com".to_owned());
    });
    let changed = changed.await.unwrap().expect("no other change");
    assert_eq!((changed.user.name.as_str(), changed.user.email.as_deref()), ("an account", Some("Bob@Example.com")));
    expect_stored(store, &changed, Some("$argon2id$2")).await;
}

/// Checks that the store returns this record, with this password hash.
async fn expect_stored(store: &Store, expected: &UserRecord, hash: Option<&str>) {
    let stored = store.by_id(expected.user.id).await.unwrap().unwrap();
    assert_eq!((&stored.user, stored.version), (&expected.user, expected.version));
    assert_eq!(stored.password.as_ref().map(PasswordHash::expose), hash);
}

async fn rejects_a_taken_name_in_any_case(store: &Store) {
    add(store, account("Ångström", "Ada@Example.com")).await;
    for (username, email, expected) in [
        ("ångström", "other@example.com", StoreError::UsernameTaken),
        ("A\u{30a}NGSTRO\u{308}M", "other@example.com", StoreError::UsernameTaken),
        ("Ａ\u{30a}ngstrÖm", "other@example.com", StoreError::UsernameTaken),
        ("other", "ADA@example.COM", StoreError::EmailTaken),
        ("other", "ＡＤＡ@example.COM", StoreError::EmailTaken),
        ("ångström", "ada@example.com", StoreError::UsernameTaken), // both are taken
    ] {
        let rejected = try_add(store, account(username, email)).await.err();
        assert_eq!(rejected, Some(expected), "{username} {email}");
    }
    add(store, CreateUser::named("Ångström")).await; // the name that people see is not unique
}

/// Folding makes some characters three times longer, and an index entry has a maximum size.
async fn stores_the_longest_names(store: &Store) {
    let notes: Vec<char> = ('\u{1d15e}'..='\u{1d164}').chain('\u{1d1bb}'..='\u{1d1c0}').collect();
    let name = |length: usize| (0..length).map(|n| notes[n * n % 151 % notes.len()]).collect::<String>();
    let email = format!("{}@x", name(252));
    add(store, account(&name(64), &email)).await;
    assert!(store.by_username(&name(64)).await.unwrap().is_some());
    let second = CreateUser { username: None, ..account(&name(64), &email) };
    assert_eq!(try_add(store, second).await.err(), Some(StoreError::EmailTaken));
}

async fn changes_nothing_when_it_rejects_an_insert(store: &Store) {
    add(store, account("ada", "ada@example.com")).await;
    let rejected = try_add(store, account("eve", "ada@example.com")).await;
    assert_eq!(rejected.err(), Some(StoreError::EmailTaken));
    assert_eq!(all(store).await.len(), 1);
    add(store, account("eve", "eve@example.com")).await; // the username is still free
}

async fn finds_users_by_id_username_and_email(store: &Store) {
    let ada = add(store, account("Ada", "ada@example.com")).await;
    let bob = add(store, account("bob", "bob@example.com")).await;
    let (ada_id, bob_id, unknown) = (ada.user.id, bob.user.id, Id::new(999).unwrap());
    assert!(store.by_id(ada_id).await.unwrap().is_some_and(|found| found.user == ada.user));
    assert!(store.by_id(unknown).await.unwrap().is_none());
    for same in ["ADA", "Ａｄａ"] {
        assert!(store.by_username(same).await.unwrap().is_some_and(|found| found.user.id == ada_id), "{same}");
    }
    for same in ["ADA@example.com", "Ａｄａ@EXAMPLE.com"] {
        assert!(store.by_email(same).await.unwrap().is_some_and(|found| found.user.id == ada_id), "{same}");
    }
    for other in ["ad", "ada\0", "\0", "", "%", "ada@example.com"] {
        assert!(store.by_username(other).await.unwrap().is_none(), "{other:?}");
    }
    for other in ["ada", "ada@example.com\0", "\0", "", "%"] {
        assert!(store.by_email(other).await.unwrap().is_none(), "{other:?}");
    }
    let found = store.by_ids(&[bob_id, unknown, ada_id, bob_id]).await.unwrap();
    assert_eq!(found.iter().map(|found| found.user.id).collect::<Vec<_>>(), [ada_id, bob_id]);
}

async fn finds_each_of_many_users_by_its_name(store: &Store) {
    let names: Vec<String> = (0..200).map(|n| format!("user{n}")).collect();
    for name in &names {
        add(store, account(name, &format!("{name}@example.com"))).await;
    }
    for (name, id) in names.iter().zip(all(store).await) {
        assert!(store.by_username(name).await.unwrap().is_some_and(|found| found.user.id == id), "{name}");
        let second = CreateUser { email: Some(format!("{name}@example.com")), ..CreateUser::named("another") };
        assert_eq!(try_add(store, second).await.err(), Some(StoreError::EmailTaken), "{name}");
    }
}

async fn joins_pages_to_the_whole_list(store: &Store) {
    for n in 0..10 {
        add(store, CreateUser::named(&n.to_string())).await;
    }
    let third = store.by_id(Id::new(3).unwrap()).await.unwrap().unwrap();
    assert!(store.remove(third.user.id, third.version).await.unwrap());
    for limit in 1..=11 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.page(Page { after, limit }).await.unwrap();
            assert!(page.rows.len() <= limit);
            seen.extend(page.rows.iter().map(|record| record.user.id));
            assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
            after = seen.last().copied();
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, all(store).await, "pages of {limit}");
    }
}

async fn changes_only_the_expected_version(store: &Store) {
    let first = add(store, CreateUser::named("ada")).await;
    let rename = |name: &'static str| move |record: &mut UserRecord| record.user.name = name.to_owned();
    let second = replace(store, &first, rename("second")).await.unwrap().expect("no other change");
    assert!(replace(store, &first, rename("third")).await.unwrap().is_none());
    assert!(!store.remove(first.user.id, first.version).await.unwrap());
    assert_eq!(store.by_id(first.user.id).await.unwrap().unwrap().user.name, "second");
    assert!(store.remove(first.user.id, second.version).await.unwrap());
    assert!(replace(store, &second, rename("third")).await.unwrap().is_none(), "the user was removed");
}

async fn frees_the_names_that_a_change_gives_up(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    let renamed = replace(store, &ada, |record| record.user.username = Some("countess".to_owned())).await;
    let renamed = renamed.unwrap().expect("no other change");
    assert!(store.by_username("ada").await.unwrap().is_none());
    assert!(store.by_username("countess").await.unwrap().is_some());
    add(store, account("ada", "other@example.com")).await;

    let removed = replace(store, &renamed, |record| {
        (record.user.username, record.user.email, record.password) = (None, None, None);
    });
    let removed = removed.await.unwrap().expect("no other change");
    expect_stored(store, &removed, None).await;
    assert!(store.by_username("countess").await.unwrap().is_none());
    add(store, account("countess", "ada@example.com")).await;
}

async fn rejects_a_change_to_a_taken_name(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    add(store, account("bob", "bob@example.com")).await;
    add(store, account("eve", "eve@example.com")).await;
    for (username, email, expected) in [
        ("BOB", "ada@example.com", StoreError::UsernameTaken),
        ("ada", "Bob@example.com", StoreError::EmailTaken),
        ("bob", "eve@example.com", StoreError::UsernameTaken),
    ] {
        let rejected = replace(store, &ada, |record| {
            (record.user.username, record.user.email) = (Some(username.to_owned()), Some(email.to_owned()));
        });
        assert_eq!(rejected.await.err(), Some(expected));
    }
    let same = replace(store, &ada, |record| record.user.username = Some("ADA".to_owned())).await;
    assert!(same.unwrap().is_some(), "a user may change the case of its own name");
}

async fn frees_the_names_of_a_removed_user(store: &Store) {
    let ada = add(store, account("ada", "ada@example.com")).await;
    assert!(store.remove(ada.user.id, ada.version).await.unwrap());
    assert!(!store.remove(ada.user.id, ada.version).await.unwrap(), "only once");
    assert!(store.by_username("ada").await.unwrap().is_none());
    assert!(store.by_email("ada@example.com").await.unwrap().is_none());
    add(store, account("ada", "ada@example.com")).await;
}

async fn gives_a_name_to_one_of_many_concurrent_inserts(store: &Store) {
    let inserts = (0..20).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move { try_add(&store, account("ada", &format!("{n}@example.com"))).await.is_ok() })
    });
    let results = join_all(inserts).await;
    assert_eq!(results.into_iter().filter(|result| *result.as_ref().unwrap()).count(), 1);
    assert_eq!(all(store).await.len(), 1);
}

async fn makes_one_of_many_concurrent_changes(store: &Store) {
    let ada = add(store, CreateUser::named("ada")).await;
    let changes = (0..20).map(|n| {
        let (store, ada) = (Arc::clone(store), ada.clone());
        tokio::spawn(async move { replace(&store, &ada, |record| record.user.name = n.to_string()).await.unwrap() })
    });
    let made: Vec<_> = join_all(changes).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(made.len(), 1);
    expect_stored(store, &made[0], None).await;
}
