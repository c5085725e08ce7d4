//! Prices: JSON numbers that stay exact to the cent when they are read, kept and returned.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use testing::Received;

use crate::support::{Shop, order};

/// Returns the price in a response as JSON text.
fn price_text(response: &Received) -> String {
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(&response.body).expect("a product");
    members["price"].get().to_owned()
}

fn lamp_at(price: &str) -> String {
    format!(r#"{{"name": "Lamp", "price": {price}, "stock": 5}}"#)
}

#[tokio::test]
async fn keeps_a_price_to_the_cent() {
    let shop = Shop::empty().await;
    for (given, kept) in [
        ("0", "0"),
        ("0.00", "0"),
        ("0.01", "0.01"),
        ("0.1", "0.1"),
        ("0.29", "0.29"), // slightly less than 29 cents as a double
        ("1.10", "1.1"),
        ("4.35", "4.35"), // 434.99999999999994 cents as a double
        ("19.99", "19.99"),
        ("19.990", "19.99"),
        ("599.00", "599"),
        ("1e2", "100"),
        ("1999E-2", "19.99"),
        ("999999.99", "999999.99"),
        ("1000000", "1000000"),
        ("1000000.00", "1000000"),
    ] {
        let added = shop.send("POST", "/products", lamp_at(given)).await.expect(201);
        assert_eq!(price_text(&added), kept, "{given}: {added}");
        let path = added.header("location");
        assert_eq!(price_text(&shop.get(path).await.expect(200)), kept, "{given}");

        shop.send("PATCH", path, r#"{"price": 7}"#).await.expect(200);
        let changed = shop.send("PATCH", path, format!(r#"{{"price": {given}}}"#)).await.expect(200);
        assert_eq!(price_text(&changed), kept, "{given}: {changed}");

        let id = changed.json()["id"].as_i64().unwrap();
        let reserved = shop.reserve(&order(id as u128), &[(id, 1)]).await.expect(201);
        assert!(reserved.to_string().contains(&format!(r#""price":{kept},"#)), "{given}: {reserved}");
        let listed = shop.get(&format!("/products?ids={id}")).await.expect(200);
        assert!(listed.to_string().contains(&format!(r#""price":{kept},"#)), "{given}: {listed}");
    }
}

#[tokio::test]
async fn rejects_values_that_are_not_prices() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for (price, why) in [
        ("1000000.01", "one cent too many"),
        ("1e7", "far above the maximum"),
        ("10000000000000", "above the largest amount"),
        ("-1", "a negative price"),
        ("-0.01", "minus one cent"),
        ("19.999", "a third decimal"),
        ("0.001", "a tenth of a cent"),
        ("999999.995", "half a cent below the maximum"),
        ("1e999", "infinity as a double"),
        ("-1e999", "minus infinity as a double"),
        ("9223372036854775807", "the largest integer"),
        ("9223372036854775808", "the largest integer plus one"),
        ("184467440737095516.16", "a number that wraps to zero in cents"),
        (r#""19.99""#, "a string"),
        ("true", "a boolean"),
        ("[19.99]", "a list"),
        (r#"{"amount": 19.99}"#, "an object"),
    ] {
        println!("{why}: {price}");
        shop.send("POST", "/products", lamp_at(price)).await.expect_invalid(&["/price"]);
        shop.send("PATCH", "/products/1", lamp_at(price)).await.expect_invalid(&["/price"]);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
    shop.send("PATCH", "/products/1", lamp_at("null")).await.expect_invalid(&["/price"]);
    for price in ["NaN", "Infinity", ".5", "5.", "+5", "05", "0x10", "1,5", "5 €"] {
        println!("{price} is not JSON");
        shop.send("POST", "/products", lamp_at(price)).await.expect_problem(400, "malformed-json");
        shop.send("PATCH", "/products/1", lamp_at(price)).await.expect_problem(400, "malformed-json");
    }
    assert_eq!(shop.inventory().await, inventory);
}
