//! What only the store in PostgreSQL promises: migrations.

use sqlx::{Connection, PgConnection};
use testing::postgres::{database, generous_timeouts};

use super::*;

#[tokio::test]
async fn folds_the_names_of_an_older_release_anew() {
    const ROWS: &str = r"
        insert into users (name, username, folded_username, email, folded_email, version, created_at) values
            ('1', 'ＡＤＡ', 'ａｄａ', 'ａ@example.com', 'ａ@example.com', 1, now()),
            ('2', 'bob', 'bob', null, null, 1, now()),
            ('3', 'ＢＯＢ', 'ｂｏｂ', null, null, 1, now()),
            ('4', 'ΟΔΟΣ', 'οδος', 'ΟΔΟΣ@example.com', 'οδος@example.com', 1, now()),
            ('5', 'ｅｖｅ', 'ｅｖｅ', null, null, 1, now()),
            ('6', 'Eｖｅ', 'eｖｅ', null, null, 1, now())";
    let Some(database) = database().await else { return };
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let older = Migrator::with_migrations(MIGRATIONS.iter().take(1).cloned().collect());
    older.run(&mut connection).await.unwrap();
    sqlx::raw_sql(ROWS).execute(&mut connection).await.unwrap();

    let store = PostgresStore::open(&database, &generous_timeouts()).await.unwrap();
    for (username, name) in [("ada", "1"), ("BOB", "2"), ("οδοσ", "4"), ("eve", "5")] {
        let found = store.by_username(username).await.unwrap().map(|record| record.user.name.clone());
        assert_eq!(found.as_deref(), Some(name), "{username}");
    }
    for taken in ["A@EXAMPLE.COM", "οδοσ@example.com"] {
        let user = CreateUser { email: Some(taken.to_owned()), ..CreateUser::named("another") };
        assert_eq!(store.insert(user, None, chassis::now()).await.err(), Some(StoreError::EmailTaken), "{taken}");
    }
}
