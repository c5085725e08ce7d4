//! `make demo`: shows and checks what the system guarantees, with the three real services.
//!
//! Each step is a function, in the order of `main`.

use std::process::ExitCode;

use futures_util::future::join_all;
use serde_json::json;
use system_tests::narration::{Narration, each, summary};
use system_tests::{Response, SignIn, System, build, eventually, order, sign_in};

const JOHN: i64 = 1;
const JANE: i64 = 2;
const LAPTOP: i64 = 1;
const PHONE: i64 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    println!("Building the three services.");
    build().expect("the services compile");
    let mut shop = System::start().await;
    let mut narration = Narration::default();

    start_the_shop(&mut narration, &shop).await;
    register_a_user(&mut narration, &shop).await;
    place_an_order(&mut narration, &shop).await;
    order_with_a_wrong_price(&mut narration, &shop).await;
    sell_out(&mut narration, &shop).await;
    repeat_an_order(&mut narration, &shop).await;
    kill_a_peer(&mut narration, &mut shop).await;
    restart_the_peer(&mut narration, &mut shop).await;
    cancel_an_order(&mut narration, &shop).await;
    sign_in_and_order(&mut narration).await;
    narration.end()
}

async fn start_the_shop(narration: &mut Narration, shop: &System) {
    narration.step("The shop opens: three services, two customers, two products");
    narration.check("user-service, GET /users", "John Doe, Jane Smith", each(&shop.users.get("/users").await, "name"));
    narration.check(
        "product-service, GET /products",
        "Laptop, Phone",
        each(&shop.products.get("/products").await, "name"),
    );
    let passed_on = shop.products.get("/users").await;
    narration.check(
        "product-service, GET /users, passed on from user-service",
        "John Doe, Jane Smith",
        each(&passed_on, "name"),
    );
}

async fn register_a_user(narration: &mut Narration, shop: &System) {
    narration.step("Ada registers; no response contains her password");
    let ada = json!({"username": "ada", "email": "ada@example.com", "password": "correct horse"});
    let made = shop.users.post("/users", ada.clone()).await;
    narration.check("POST /users", r#"201, username "ada", no password"#, summary(&made, &["username", "password"]));
    let shown = shop.users.get(made.header("location")).await;
    narration.check(
        "GET her Location",
        r#"200, username "ada", no password"#,
        summary(&shown, &["username", "password"]),
    );
    let again = shop.users.post("/users", ada).await;
    narration.check(
        "POST the same again",
        r#"409, type "urn:problem-type:username-taken""#,
        summary(&again, &["type"]),
    );
}

async fn place_an_order(narration: &mut Narration, shop: &System) {
    narration.step("John orders two laptops at 999.99 and a phone at 599");
    let wanted = json!([{"productId": LAPTOP, "quantity": 2}, {"productId": PHONE, "quantity": 1}]);
    let placed = shop.orders.post("/orders", json!({"userId": JOHN, "products": wanted})).await;
    narration.check("POST /orders", r#"201, status "pending", total 2598.98"#, summary(&placed, &["status", "total"]));
    let shown = shop.orders.get(placed.header("location")).await;
    narration.check(
        "GET its Location",
        r#"200, status "pending", total 2598.98"#,
        summary(&shown, &["status", "total"]),
    );
    narration.check("Laptops in stock, of 50", 48, shop.stock(LAPTOP).await);
    narration.check("Phones in stock, of 100", 99, shop.stock(PHONE).await);
}

async fn order_with_a_wrong_price(narration: &mut Narration, shop: &System) {
    narration.step("Jane orders a laptop at 9.99; the order is rejected with the real price, and nothing is sold");
    let before = shop.stock(LAPTOP).await;
    let wanted = json!({"userId": JANE, "products": [{"productId": LAPTOP, "quantity": 1, "price": 9.99}]});
    let rejected = shop.orders.post("/orders", wanted).await;
    narration.check("POST /orders", r#"409, type "urn:problem-type:price-changed""#, summary(&rejected, &["type"]));
    narration.check("Laptops in stock, as before", before, eventually(before, || shop.stock(LAPTOP)).await);
}

async fn sell_out(narration: &mut Narration, shop: &System) {
    narration.step("Sixty concurrent orders for twenty-five concert tickets");
    let ticket = shop.add_product("Concert ticket", 80.00, 25).await;
    let responses = join_all((0..60).map(|_| shop.orders.post("/orders", order(JANE, ticket, 1)))).await;
    let count = |expected: &str| responses.iter().filter(|response| summary(response, &["type"]) == expected).count();
    narration.check("Orders placed (201)", 25, count("201, no type"));
    narration.check(
        "Orders rejected (409 insufficient-stock)",
        35,
        count(r#"409, type "urn:problem-type:insufficient-stock""#),
    );
    narration.check("Tickets in stock", 0, shop.stock(ticket).await);
}

async fn repeat_an_order(narration: &mut Narration, shop: &System) {
    narration.step("John's app does not know whether his order arrived, and repeats it with the same Idempotency-Key");
    let before = shop.stock(PHONE).await;
    let first = order_with_key(shop, "johns-second-phone").await;
    let second = order_with_key(shop, "johns-second-phone").await;
    narration.check("POST /orders", r#"201, status "pending""#, summary(&first, &["status"]));
    narration.check("The same again: the same order", summary(&first, &["id"]), summary(&second, &["id"]));
    narration.check("Its header Idempotent-Replayed", "true", second.header("idempotent-replayed"));
    narration.check("Phones in stock, one less", before - 1, shop.stock(PHONE).await);
}

async fn kill_a_peer(narration: &mut Narration, shop: &mut System) {
    narration.step("user-service is killed (kill -9); orders fail with 503 and leave no trace");
    let before = shop.stock(PHONE).await;
    shop.users.kill().await;
    let rejected = order_with_key(shop, "johns-third-phone").await;
    narration.check("POST /orders", r#"503, type "urn:problem-type:peer-unavailable""#, summary(&rejected, &["type"]));
    narration.check("The response has a Retry-After", true, rejected.header("retry-after").parse::<u32>().is_ok());
    narration.check("Phones in stock, as before", before, eventually(before, || shop.stock(PHONE)).await);
    narration.check("GET /orders still answers", 200, shop.orders.get("/orders").await.status);
}

async fn restart_the_peer(narration: &mut Narration, shop: &mut System) {
    narration.step("user-service is back; John's app repeats the failed order with the same key");
    let before = shop.stock(PHONE).await;
    shop.users.restart().await;
    let status = eventually(201, async || order_with_key(shop, "johns-third-phone").await.status).await;
    narration.check("POST /orders", 201, status);
    narration.check("Phones in stock, one less", before - 1, shop.stock(PHONE).await);
}

async fn cancel_an_order(narration: &mut Narration, shop: &System) {
    narration.step("Jane orders three phones and cancels the order");
    let before = shop.stock(PHONE).await;
    let placed = shop.orders.post("/orders", order(JANE, PHONE, 3)).await;
    narration.check("POST /orders", r#"201, status "pending""#, summary(&placed, &["status"]));
    narration.check("Phones in stock, three less", before - 3, shop.stock(PHONE).await);
    let cancelled = shop.orders.patch(placed.header("location"), json!({"status": "cancelled"})).await;
    narration.check("PATCH its Location", r#"200, status "cancelled""#, summary(&cancelled, &["status"]));
    narration.check("Phones in stock, as before", before, eventually(before, || shop.stock(PHONE)).await);
}

async fn sign_in_and_order(narration: &mut Narration) {
    narration.step("Another shop has sign-in on: each customer sees only his own orders, and an admin sees all");
    let keys = SignIn::new().expect("a temporary folder");
    let shop = System::start_with(Some(&keys), |launch| launch).await.expect("the services start");
    let wanted = json!({"products": [{"productId": LAPTOP, "quantity": 1}]});
    let unknown = shop.orders.post("/orders", wanted.clone()).await;
    narration.check(
        "POST /orders without a token",
        r#"401, type "urn:problem-type:unauthenticated""#,
        summary(&unknown, &["type"]),
    );
    let mut tokens = Vec::new();
    for name in ["ada", "bob"] {
        let account = json!({"username": name, "password": "a horse for three services"});
        shop.users.post("/users", account.clone()).await.expect(201);
        let session = shop.users.post("/sessions", account).await;
        narration.check(
            &format!("POST /sessions: {name} signs in"),
            r#"200, tokenType "Bearer""#,
            summary(&session, &["tokenType"]),
        );
        tokens.push(sign_in(&shop.users, name, "a horse for three services").await);
    }
    let get =
        async |path: &str, token: &str| shop.orders.request("GET", path).header("authorization", token).send().await;
    let order = shop.orders.request("POST", "/orders").header("authorization", &tokens[0]).json(&wanted).send().await;
    narration.check("POST /orders with Ada's token", r#"201, status "pending""#, summary(&order, &["status"]));
    let location = order.header("location");
    narration.check("GET her order with her token", 200, get(location, &tokens[0]).await.status);
    narration.check("GET her order with Bob's token", 404, get(location, &tokens[1]).await.status);
    let count = async |token: &str| get("/orders", token).await.json().as_array().map_or(0, Vec::len);
    narration.check("Bob's orders", 0, count(&tokens[1]).await);
    narration.check("The admin's list of orders", 1, count(&keys.admin(&shop.users).await).await);
}

/// Orders one phone for John.
async fn order_with_key(shop: &System, key: &str) -> Response {
    shop.orders.request("POST", "/orders").header("idempotency-key", key).json(&order(JOHN, PHONE, 1)).send().await
}
