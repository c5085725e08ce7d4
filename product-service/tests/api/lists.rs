//! Lists of products: pages, links, ids and parts of names.

use crate::support::{Shop, expect_bad, ids, next_page};

/// A shop with this many products and nothing else.
async fn shop_of(products: usize) -> Shop {
    let shop = Shop::empty().await;
    for n in 1..=products {
        shop.add(&format!("Thing {n}"), 1).await;
    }
    shop
}

#[tokio::test]
async fn pages_lead_through_the_whole_list_oldest_first() {
    let shop = shop_of(10).await;
    for (first, limit) in
        [("/products", 1), ("/products", 3), ("/api/products", 5), ("/products", 10), ("/products", 11)]
    {
        let (mut seen, mut path) = (Vec::<i64>::new(), format!("{first}?limit={limit}"));
        while !path.is_empty() {
            assert!(path.starts_with(&format!("{first}?")), "{path} is in the family of {first}");
            let list = shop.get(&path).await.expect(200);
            let found = ids(&list);
            seen.extend(&found);
            path = next_page(&list);
            assert_eq!(path.is_empty(), seen.len() >= 10, "a link is there exactly while more follows: {list}");
            assert!(found.len() == limit || path.is_empty(), "{list}");
        }
        assert_eq!(seen, (1..=10).collect::<Vec<i64>>(), "{first} by {limit}");
    }
}

#[tokio::test]
async fn a_page_has_a_hundred_products_or_as_many_as_asked() {
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
async fn a_page_goes_by_key_and_never_by_offset() {
    let shop = shop_of(6).await;
    let first = shop.get("/products?limit=3").await;
    for gone in [2, 3] {
        shop.delete(&format!("/products/{gone}")).await.expect(204);
    }
    let rest = shop.get(&next_page(&first)).await;
    assert_eq!(ids(&rest), [4, 5, 6], "behind a product that is gone, and none is left out");
    assert_eq!(ids(&shop.get("/products?after=9223372036854775807").await.expect(200)), [0; 0]);
}

#[tokio::test]
async fn products_are_found_by_their_ids_in_one_call() {
    let shop = shop_of(200).await;
    let many = |ids: std::ops::RangeInclusive<i64>| ids.map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    for (asked, found, why) in [
        ("7".to_owned(), vec![7], "one"),
        ("9,7,8".to_owned(), vec![7, 8, 9], "oldest first"),
        ("7,7,7".to_owned(), vec![7], "each once"),
        ("999,7,1000".to_owned(), vec![7], "those that there are"),
        ("999".to_owned(), vec![], "which may be none"),
        (many(1..=128), (1..=128).collect(), "128, more than a page"),
        (many(150..=277), (150..=200).collect(), "asked for, not found, are counted"),
        (format!("7{}", ",7".repeat(127)), vec![7], "and so is the same one"),
    ] {
        for family in ["", "/api"] {
            let list = shop.get(&format!("{family}/products?ids={asked}")).await.expect(200);
            assert_eq!((ids(&list), next_page(&list)), (found.clone(), String::new()), "{why}");
        }
    }
    assert_eq!(ids(&shop.get("/products?ids=7%2C8&limit=1").await), [7, 8], "commas in disguise; and no page of one");
}

#[tokio::test]
async fn ids_and_a_part_of_a_name_both_have_to_fit() {
    let shop = Shop::open().await;
    assert_eq!(ids(&shop.get("/products?ids=1,2&name=PHONE").await.expect(200)), [2]);
    assert_eq!(ids(&shop.get("/products?ids=1&name=phone").await.expect(200)), [0_i64; 0]);
}

#[tokio::test]
async fn products_are_found_by_a_part_of_their_name() {
    let shop = Shop::open().await; // with Laptop (1) and Phone (2)
    for name in ["100% Wool", "a_b", "axb", "Ångström Lamp", "ΟΔΟΣΑ", "back\\slash", "What? (.*) [x]"] {
        shop.add(name, 0).await; // from 3
    }
    for (part, found, why) in [
        ("Laptop", vec![1], "the whole"),
        ("lap", vec![1], "the beginning"),
        ("TOP", vec![1], "the end, in capitals"),
        ("o", vec![1, 2, 3], "the middle"),
        ("", (1..=9).collect(), "nothing is a part of everything"),
        ("%25", vec![3], "a percent sign is a percent sign"),
        ("a_b", vec![4], "an underscore is an underscore"),
        ("%25W", vec![], "not anything before a W"),
        ("Lap%25", vec![], "nor behind"),
        ("%c3%a5ngstr%c3%96m", vec![6], "case does not matter beyond ASCII either"),
        ("%CE%9F%CE%94%CE%9F%CE%A3", vec![7], "not where a letter has a form of its own for ends of words"),
        ("%CF%83%CE%B1", vec![7], "nor one in the middle"),
        ("%CE%B4%CE%BF%CF%82", vec![7], "whichever form is asked for"),
        ("%5C", vec![8], "a backslash"),
        (".*", vec![9], "no pattern"),
        ("[x]", vec![9], "of any kind"),
        ("100%25+w", vec![3], "a plus is a space in a query"),
        ("%27", vec![], "a quote"),
        ("%00", vec![], "U+0000"),
    ] {
        let list = shop.get(&format!("/products?name={part}")).await.expect(200);
        assert_eq!(ids(&list), found, "{why}: {part}");
    }
}

#[tokio::test]
async fn what_is_found_by_name_has_pages_too() {
    let shop = shop_of(25).await; // the name of 11 of them has a 1
    let first = shop.get("/api/products?name=THING+1&limit=6").await.expect(200);
    assert_eq!(ids(&first), [1, 10, 11, 12, 13, 14]);
    let second = shop.get(&next_page(&first)).await.expect(200);
    assert_eq!((ids(&second), next_page(&second)), (vec![15, 16, 17, 18, 19], String::new()));
    let full = shop.get("/products?name=thing+1&limit=11").await.expect(200);
    assert_eq!((ids(&full).len(), next_page(&full)), (11, String::new()), "nothing follows a page that is just full");
}

#[tokio::test]
async fn a_bad_question_is_refused_and_not_guessed_at() {
    let shop = Shop::open().await;
    let too_many = format!("ids=1{}", ",1".repeat(128));
    for (query, parameter, why) in [
        ("limit=0", "limit", "a page of nothing"),
        ("limit=1001", "limit", "no silent cap"),
        ("limit=-1", "limit", "less than nothing"),
        ("limit=1.5", "limit", "half a product"),
        ("limit=", "limit", "no number"),
        ("limit=ten", "limit", "a word"),
        ("limit=99999999999999999999", "limit", "more than any number"),
        ("limit=1&limit=1", "limit", "twice"),
        ("after=0", "after", "no id"),
        ("after=x", "after", "no id either"),
        ("after=9223372036854775808", "after", "one too large"),
        ("ids=", "ids", "no ids"),
        ("ids=1,,2", "ids", "a gap"),
        ("ids=1,2,", "ids", "another"),
        ("ids=1,x", "ids", "a name among them"),
        ("ids=0", "ids", "ids begin at 1"),
        ("ids=1,%202", "ids", "a space"),
        ("ids=1&ids=2", "ids", "twice"),
        (too_many.as_str(), "ids", "129"),
        ("name=a&name=b", "name", "twice"),
    ] {
        println!("{why}: {query}");
        expect_bad(shop.get(&format!("/products?{query}")).await, &[parameter]);
    }
    expect_bad(shop.get("/products?limit=0&after=0&ids=").await, &["limit", "after", "ids"]);
    assert_eq!(ids(&shop.get("/products?colour=red&colour=blue&&=").await.expect(200)), [1, 2], "the rest is ignored");
}
