//! The cases about products.

use super::*;

pub(super) async fn assigns_rising_ids_and_never_reuses_one(store: &Store) {
    let (first, second) = (add(store, "one", 0).await, add(store, "two", 0).await);
    assert_eq!((first.get(), second.get()), (1, 2));
    assert!(store.remove(second, None).await.unwrap());
    assert!(add(store, "three", 0).await > second, "the id of a removed product is not reused");
    assert!(store.by_id(second).await.unwrap().is_none());
    let found = store.by_ids(&[second, first, unknown_product(), first]).await.unwrap();
    assert_eq!(found.iter().map(|record| record.product.id).collect::<Vec<_>>(), [first]);
}

pub(super) async fn returns_the_whole_list_page_by_page(store: &Store) {
    for n in 0..10 {
        add(store, &n.to_string(), 0).await;
    }
    let all = store.page(Page { after: None, limit: 1000 }, None).await.unwrap();
    let all: Vec<_> = all.rows.iter().map(|record| record.product.id).collect();
    for limit in 1..=11 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let rows = store.page(Page { after, limit }, None).await.unwrap();
            assert!(rows.rows.len() <= limit);
            seen.extend(rows.rows.iter().map(|record| record.product.id));
            after = seen.last().copied();
            if !rows.more {
                break;
            }
        }
        assert_eq!(seen, all, "pages of {limit}");
    }
}

pub(super) async fn finds_products_by_a_part_of_the_name(store: &Store) {
    for n in 0..5000 {
        add(store, if n % 1000 == 999 { "Blue Ångström" } else { "Red" }, 0).await;
    }
    let page = |after, limit| Page { after, limit };
    let first = store.page(page(None, 3), Some("ångström")).await.unwrap();
    let ids = |rows: &Rows<Entity<ProductRecord>>| rows.rows.iter().map(|row| row.product.id.get()).collect::<Vec<_>>();
    assert_eq!((ids(&first), first.more), (vec![1000, 2000, 3000], true));
    let rest = store.page(page(Id::new(3000), 3), Some("BLUE")).await.unwrap();
    assert_eq!((ids(&rest), rest.more), (vec![4000, 5000], false));
    let two = store.page(page(Id::new(3000), 2), Some("BLUE")).await.unwrap();
    assert!(!two.more, "no page follows a page that is exactly full");
    assert!(store.page(page(None, 3), Some("%")).await.unwrap().rows.is_empty(), "no character is special");
    let special = [r"100%", r"a_b", r"back\slash", "日本", "a", "O'Neil \"$1\""];
    for name in special {
        let id = add(store, name, 0).await;
        let found = store.page(page(Id::new(id.get() - 1), 3), Some(name)).await.unwrap();
        assert_eq!(ids(&found), [id.get()], "{name}");
    }
    let cafe = add(store, "Cafe\u{301}", 0).await;
    for form in ["café", "CAFE\u{301}"] {
        assert_eq!(ids(&store.page(page(None, 3), Some(form)).await.unwrap()), [cafe.get()], "{form}");
    }
    for absent in ["1%0", "a%b", r"a\_b", "10_%", "\0", "%%", r"\\"] {
        assert!(store.page(page(None, 3), Some(absent)).await.unwrap().rows.is_empty(), "{absent}");
    }
}

pub(super) async fn replaces_and_removes_only_the_expected_version(store: &Store) {
    let id = add(store, "lamp", 5).await;
    let mut next = record(store, id).await;
    let stale = next.version;
    store.reserve(order(1), &lines(&[(id, 2)])).await.unwrap();
    (next.product.stock, next.version) = (100, stale + 1);
    assert!(store.replace(stale, next.clone()).await.unwrap().is_none(), "two units were reserved in between");
    assert!(!store.remove(id, Some(stale)).await.unwrap());
    let current = record(store, id).await.version;
    next.version = current + 1;
    assert!(store.replace(current, next.clone()).await.unwrap().is_some());
    assert_eq!(stock(store, id).await, 100);
    assert!(store.remove(id, Some(next.version)).await.unwrap());
    assert!(store.replace(next.version, next).await.unwrap().is_none(), "it does not exist any more");
}

pub(super) async fn updates_only_the_given_members_at_any_version(store: &Store) {
    let id = add(store, "lamp", 5).await;
    store.reserve(order(1), &lines(&[(id, 2)])).await.unwrap();
    let nothing = UpdateProduct::default();
    let (name, price) = (Some("Ångström".to_owned()), Money::from_cents(5));
    for (change, expected) in [
        (nothing.clone(), ("lamp", 1999, 3, 3)),
        (UpdateProduct { price, ..nothing.clone() }, ("lamp", 5, 3, 4)),
        (UpdateProduct { name, ..nothing.clone() }, ("Ångström", 5, 3, 5)),
        (UpdateProduct { stock: Some(100), ..nothing.clone() }, ("Ångström", 5, 100, 6)),
    ] {
        let updated = store.update(id, &change).await.unwrap().expect("the product exists");
        for ProductRecord { product, version } in [&*updated, &record(store, id).await] {
            assert_eq!((&*product.name, product.price.cents(), product.stock, *version), expected);
        }
    }
    let page = |name| store.page(Page { after: None, limit: 9 }, Some(name));
    assert_eq!((page("lamp").await.unwrap().rows.len(), page("ångström").await.unwrap().rows.len()), (0, 1));
    store.release(order(1)).await.unwrap();
    assert_eq!(stock(store, id).await, 102, "released units are added to the new stock");
    assert!(store.update(unknown_product(), &nothing).await.unwrap().is_none());
    assert!(store.remove(id, None).await.unwrap());
    assert!(
        !store.remove(id, None).await.unwrap() && store.update(id, &nothing).await.unwrap().is_none(),
        "it does not exist any more"
    );
}

pub(super) async fn reads_back_what_was_written(store: &Store) {
    let product = CreateProduct { name: "Σίσυφος 🪨".to_owned(), price: Money::MAX, stock: 1_000_000_000_000 };
    let created_at = "2026-01-31T09:30:00.123456Z".parse().unwrap();
    let added = store.insert(product, created_at).await.unwrap();
    let id = added.product.id;
    let read = record(store, id).await;
    assert_eq!((&read, read.product.created_at), (&*added, created_at));
    let mut next = read.clone();
    (next.product.name, next.product.price, next.version) = ("rock".to_owned(), Money::default(), read.version + 1);
    let replaced = store.replace(read.version, next.clone()).await.unwrap().unwrap();
    assert_eq!((&*replaced, &record(store, id).await), (&next, &next));
    let named = |name| store.page(Page { after: None, limit: 1 }, Some(name));
    assert!(named("σίσυφος").await.unwrap().rows.is_empty(), "the old name finds nothing");
    assert_eq!(named("ROCK").await.unwrap().rows.len(), 1);
}
