//! `make demo`: what the system promises, told as a story and checked, with the three real services.
//!
//! Each step is a function; read them in the order of `main`.

use std::process::ExitCode;

use futures_util::future::join_all;
use serde_json::json;
use system_tests::story::{Story, brief, each};
use system_tests::{Received, System, build, eventually, order};

const JOHN: i64 = 1;
const JANE: i64 = 2;
const LAPTOP: i64 = 1;
const PHONE: i64 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    println!("Building the three services.");
    build().expect("the services compile");
    let mut shop = System::start().await;
    let mut story = Story::default();

    the_shop_opens(&mut story, &shop).await;
    an_account(&mut story, &shop).await;
    an_order(&mut story, &shop).await;
    a_wrong_price(&mut story, &shop).await;
    a_rush(&mut story, &shop).await;
    the_same_order_twice(&mut story, &shop).await;
    a_peer_dies(&mut story, &mut shop).await;
    a_peer_comes_back(&mut story, &mut shop).await;
    a_cancelled_order(&mut story, &shop).await;
    story.end()
}

async fn the_shop_opens(story: &mut Story, shop: &System) {
    story.step("The shop opens: three services, two customers, two products");
    story.check("user-service, GET /users", "John Doe, Jane Smith", each(&shop.users.get("/users").await, "name"));
    story.check("product-service, GET /products", "Laptop, Phone", each(&shop.products.get("/products").await, "name"));
    let passed_on = shop.products.get("/users").await;
    story.check(
        "product-service, GET /users, which it asks user-service",
        "John Doe, Jane Smith",
        each(&passed_on, "name"),
    );
}

async fn an_account(story: &mut Story, shop: &System) {
    story.step("Ada registers; her password never comes back");
    let ada = json!({"username": "ada", "email": "ada@example.com", "password": "correct horse"});
    let made = shop.users.post("/users", ada.clone()).await;
    story.check("POST /users", r#"201, username "ada", no password"#, brief(&made, &["username", "password"]));
    let shown = shop.users.get(made.header("location")).await;
    story.check("GET her Location", r#"200, username "ada", no password"#, brief(&shown, &["username", "password"]));
    let again = shop.users.post("/users", ada).await;
    story.check("POST the same again", r#"409, type "urn:problem-type:username-taken""#, brief(&again, &["type"]));
}

async fn an_order(story: &mut Story, shop: &System) {
    story.step("John orders two laptops at 999.99 and a phone at 599");
    let wanted = json!([{"productId": LAPTOP, "quantity": 2}, {"productId": PHONE, "quantity": 1}]);
    let placed = shop.orders.post("/orders", json!({"userId": JOHN, "products": wanted})).await;
    story.check("POST /orders", r#"201, status "pending", total 2598.98"#, brief(&placed, &["status", "total"]));
    let shown = shop.orders.get(placed.header("location")).await;
    story.check("GET its Location", r#"200, status "pending", total 2598.98"#, brief(&shown, &["status", "total"]));
    story.check("Laptops in stock, of 50", 48, shop.stock(LAPTOP).await);
    story.check("Phones in stock, of 100", 99, shop.stock(PHONE).await);
}

async fn a_wrong_price(story: &mut Story, shop: &System) {
    story.step("Jane believes that a laptop costs 9.99; she is told the real price, and nothing is sold");
    let before = shop.stock(LAPTOP).await;
    let wanted = json!({"userId": JANE, "products": [{"productId": LAPTOP, "quantity": 1, "price": 9.99}]});
    let refused = shop.orders.post("/orders", wanted).await;
    story.check("POST /orders", r#"409, type "urn:problem-type:price-changed""#, brief(&refused, &["type"]));
    story.check("Laptops in stock, as before", before, eventually(before, || shop.stock(LAPTOP)).await);
}

async fn a_rush(story: &mut Story, shop: &System) {
    story.step("Sixty buyers at once, for twenty-five concert tickets");
    let ticket = shop.add_product("Concert ticket", 80.00, 25).await;
    let rush = join_all((0..60).map(|_| shop.orders.post("/orders", order(JANE, ticket, 1)))).await;
    let count = |said: &str| rush.iter().filter(|answer| brief(answer, &["type"]) == said).count();
    story.check("Orders placed (201)", 25, count("201, no type"));
    story.check(
        "Orders refused (409 insufficient-stock)",
        35,
        count(r#"409, type "urn:problem-type:insufficient-stock""#),
    );
    story.check("Tickets in stock", 0, shop.stock(ticket).await);
}

async fn the_same_order_twice(story: &mut Story, shop: &System) {
    story.step("John cannot tell whether his order arrived, so his app sends it again, with the same Idempotency-Key");
    let before = shop.stock(PHONE).await;
    let first = order_with_key(shop, "johns-second-phone").await;
    let second = order_with_key(shop, "johns-second-phone").await;
    story.check("POST /orders", r#"201, status "pending""#, brief(&first, &["status"]));
    story.check("The same again: the same order", brief(&first, &["id"]), brief(&second, &["id"]));
    story.check("Its header Idempotent-Replayed", "true", second.header("idempotent-replayed"));
    story.check("Phones in stock, one less", before - 1, shop.stock(PHONE).await);
}

async fn a_peer_dies(story: &mut Story, shop: &mut System) {
    story.step("user-service is killed (kill -9); orders are refused, and nothing is kept of them");
    let before = shop.stock(PHONE).await;
    shop.users.kill().await;
    let refused = order_with_key(shop, "johns-third-phone").await;
    story.check("POST /orders", r#"503, type "urn:problem-type:peer-unavailable""#, brief(&refused, &["type"]));
    story.check("It says when to try again", true, refused.header("retry-after").parse::<u32>().is_ok());
    story.check("Phones in stock, as before", before, eventually(before, || shop.stock(PHONE)).await);
    story.check("GET /orders still answers", 200, shop.orders.get("/orders").await.status);
}

async fn a_peer_comes_back(story: &mut Story, shop: &mut System) {
    story.step("user-service is back; John's app tries again with the key of the order that failed");
    let before = shop.stock(PHONE).await;
    shop.users.restart().await;
    let status = eventually(201, async || order_with_key(shop, "johns-third-phone").await.status).await;
    story.check("POST /orders", 201, status);
    story.check("Phones in stock, one less", before - 1, shop.stock(PHONE).await);
}

async fn a_cancelled_order(story: &mut Story, shop: &System) {
    story.step("Jane orders three phones and changes her mind");
    let before = shop.stock(PHONE).await;
    let placed = shop.orders.post("/orders", order(JANE, PHONE, 3)).await;
    story.check("POST /orders", r#"201, status "pending""#, brief(&placed, &["status"]));
    story.check("Phones in stock, three less", before - 3, shop.stock(PHONE).await);
    let cancelled = shop.orders.patch(placed.header("location"), json!({"status": "cancelled"})).await;
    story.check("PATCH its Location", r#"200, status "cancelled""#, brief(&cancelled, &["status"]));
    story.check("Phones in stock, as before", before, eventually(before, || shop.stock(PHONE)).await);
}

/// John's order of one phone.
async fn order_with_key(shop: &System, key: &str) -> Received {
    shop.orders.request("POST", "/orders").header("idempotency-key", key).json(&order(JOHN, PHONE, 1)).send().await
}
