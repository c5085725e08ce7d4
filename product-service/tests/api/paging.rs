//! Lists of products: pages, links, ids, and parts of names.

use crate::support::{Shop, ids, next_page};

/// Returns a shop with this number of products.
async fn shop_of(products: usize) -> Shop {
    let shop = Shop::empty().await;
    for n in 1..=products {
        shop.add(&format!("Thing {n}"), 1).await;
    }
    shop
}

#[tokio::test]
async fn links_through_the_whole_list_oldest_first() {
    let shop = shop_of(10).await;
    for (first, limit) in
        [("/products", 1), ("/products", 3), ("/api/products", 5), ("/products", 10), ("/products", 11)]
    {
        let (mut seen, mut path) = (Vec::<i64>::new(), format!("{first}?limit={limit}"));
        while !path.is_empty() {
            assert!(path.starts_with(&format!("{first}?")), "{path} has the prefix of {first}");
            let list = shop.get(&path).await.expect(200);
            let found = ids(&list);
            seen.extend(&found);
            path = next_page(&list);
            assert_eq!(path.is_empty(), seen.len() >= 10, "there is a link exactly while more follows: {list}");
            assert!(found.len() == limit || path.is_empty(), "{list}");
        }
        assert_eq!(seen, (1..=10).collect::<Vec<i64>>(), "{first} by {limit}");
    }
}

#[tokio::test]
async fn returns_100_products_or_the_limit() {
    let shop = shop_of(1001).await;
    for (query, found, more) in [
        ("", 1..=100, true),
        ("?limit=1000", 1..=1000, true),
        ("?limit=1000&after=1", 2..=1001, false),
        ("?after=900", 901..=1000, true),
        ("?after=901", 902..=1001, false),
        ("?limit=2&after=7", 8..=9, true),
    ] {
        let list = shop.get(&format!("/products{query}")).await.expect(200);
        assert_eq!((ids(&list), !next_page(&list).is_empty()), (found.collect(), more), "{query}");
    }
}

#[tokio::test]
async fn continues_after_the_last_key_despite_removals() {
    let shop = shop_of(6).await;
    let first = shop.get("/products?limit=3").await;
    for removed in [2, 3] {
        shop.delete(&format!("/products/{removed}")).await.expect(204);
    }
    let rest = shop.get(&next_page(&first)).await;
    assert_eq!(ids(&rest), [4, 5, 6], "after a removed product, and without a gap");
    assert_eq!(ids(&shop.get("/products?after=9223372036854775807").await.expect(200)), [0; 0]);
}

#[tokio::test]
async fn returns_the_products_with_the_given_ids() {
    let shop = shop_of(200).await;
    let many = |ids: std::ops::RangeInclusive<i64>| ids.map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    for (query, found, why) in [
        ("7".to_owned(), vec![7], "one"),
        ("9,7,8".to_owned(), vec![7, 8, 9], "oldest first"),
        ("7,7,7".to_owned(), vec![7], "each once"),
        ("999,7,1000".to_owned(), vec![7], "only products that exist"),
        ("999".to_owned(), vec![], "no product exists"),
        (many(1..=128), (1..=128).collect(), "128, more than a default page"),
        (many(150..=277), (150..=200).collect(), "128, of which 51 exist"),
        (format!("7{}", ",7".repeat(127)), vec![7], "128 times the same"),
    ] {
        for family in ["", "/api"] {
            let list = shop.get(&format!("{family}/products?ids={query}")).await.expect(200);
            assert_eq!((ids(&list), next_page(&list)), (found.clone(), String::new()), "{why}");
        }
    }
    assert_eq!(
        ids(&shop.get("/products?ids=7%2C8&limit=1").await),
        [7, 8],
        "encoded commas, and the limit does not apply"
    );
}

#[tokio::test]
async fn combines_ids_with_a_part_of_a_name() {
    let shop = Shop::seeded().await;
    assert_eq!(ids(&shop.get("/products?ids=1,2&name=PHONE").await.expect(200)), [2]);
    assert_eq!(ids(&shop.get("/products?ids=1&name=phone").await.expect(200)), [0_i64; 0]);
}

#[tokio::test]
async fn finds_products_by_a_part_of_their_name() {
    let shop = Shop::seeded().await; // with Laptop (1) and Phone (2)
    for name in ["100% Wool", "a_b", "axb", "Ångström Lamp", "ΟΔΟΣΑ", "back\\slash", "What? (.*) [x]"] {
        shop.add(name, 0).await; // from 3
    }
    for (part, found, why) in [
        ("Laptop", vec![1], "the whole name"),
        ("lap", vec![1], "the beginning"),
        ("TOP", vec![1], "the end, in capitals"),
        ("o", vec![1, 2, 3], "the middle"),
        ("", (1..=9).collect(), "every name contains the empty text"),
        ("%25", vec![3], "a percent sign is a percent sign"),
        ("a_b", vec![4], "an underscore is an underscore"),
        ("%25W", vec![], "a percent sign is no wildcard"),
        ("Lap%25", vec![], "not at the end either"),
        ("%c3%a5ngstr%c3%96m", vec![6], "case does not matter beyond ASCII"),
        ("%CE%9F%CE%94%CE%9F%CE%A3", vec![7], "a sigma at the end of a word, in upper case"),
        ("%CF%83%CE%B1", vec![7], "a sigma in the middle"),
        ("%CE%B4%CE%BF%CF%82", vec![7], "a final sigma"),
        ("A%CC%8Angstro%CC%88m", vec![6], "letters with separate marks (NFD)"),
        ("%5C", vec![8], "a backslash"),
        (".*", vec![9], "no regular expression"),
        ("[x]", vec![9], "no character class"),
        ("100%25+w", vec![3], "a plus is a space in a query"),
        ("%27", vec![], "a quote"),
        ("%00", vec![], "U+0000"),
    ] {
        let list = shop.get(&format!("/products?name={part}")).await.expect(200);
        assert_eq!(ids(&list), found, "{why}: {part}");
    }
}

#[tokio::test]
async fn pages_through_a_search_by_name() {
    let shop = shop_of(25).await; // the name of 11 of them has a 1
    let first = shop.get("/api/products?name=THING+1&limit=6").await.expect(200);
    assert_eq!(ids(&first), [1, 10, 11, 12, 13, 14]);
    let second = shop.get(&next_page(&first)).await.expect(200);
    assert_eq!((ids(&second), next_page(&second)), (vec![15, 16, 17, 18, 19], String::new()));
    let full = shop.get("/products?name=thing+1&limit=11").await.expect(200);
    assert_eq!(
        (ids(&full).len(), next_page(&full)),
        (11, String::new()),
        "no page follows a page that is exactly full"
    );
}
