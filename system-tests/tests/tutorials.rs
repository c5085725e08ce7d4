//! The project grew from two tutorials, each with two services in JavaScript. Clients written for them work unchanged: the
//! tests send their requests, and check the members of the responses that they read.

use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};
use system_tests::{Launch, ORDERS, Service, System, order};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// "Microservices Architecture Example": users and products, known by their names, at the root.
#[tokio::test]
async fn serves_the_first_tutorials_client_that_lists_and_adds() {
    let system = System::start().await;
    assert_eq!(names(&system.users.get("/users").await.expect(200).json()), ["John Doe", "Jane Smith"]);
    assert_eq!(names(&system.products.get("/products").await.expect(200).json()), ["Laptop", "Phone"]);

    // The client sends ids, and shows the response.
    let user = system.users.post("/users", json!({"id": 3, "name": "Alice"})).await.expect(201).json();
    assert_eq!((&user["id"], &user["name"]), (&json!(3), &json!("Alice")));
    let product = system.products.post("/products", json!({"id": 3, "name": "Tablet"})).await.expect(201).json();
    assert_eq!((&product["id"], &product["name"]), (&json!(3), &json!("Tablet")));

    // Product Service fetches the users from User Service.
    let passed_on = system.products.get("/users").await.expect(200).json();
    assert_eq!(names(&passed_on), ["John Doe", "Jane Smith", "Alice"]);
}

#[tokio::test]
async fn tells_the_first_tutorials_client_that_users_cannot_be_fetched() {
    let mut system = System::start().await;
    system.users.kill().await;
    let failed = system.products.get("/users").await;
    assert!(failed.status >= 500 && failed.text.contains("Error fetching users"), "{failed}");
}

/// "Microservices Architecture", module 8: accounts and orders, under `/api`, with ids in strings.
#[tokio::test]
async fn serves_the_second_tutorials_client_that_registers_and_reads_users() {
    let system = System::start().await;
    let ada = json!({"username": "ada", "email": "ada@example.com", "password": "correct horse"});
    let made = system.users.post("/api/users", ada).await.expect(201).json();
    assert_eq!((&made["username"], &made["email"]), (&json!("ada"), &json!("ada@example.com")));

    let shown = system.users.get(&format!("/api/users/{}", made["id"])).await.expect(200).json();
    assert_eq!((&shown["username"], &shown["email"]), (&json!("ada"), &json!("ada@example.com")));
    let listed = system.users.get("/api/users").await.expect(200).json();
    assert_eq!(listed.as_array().and_then(|users| users.last()), Some(&shown));
    for seen in [&made, &shown] {
        assert!(seen["createdAt"].is_string() && seen.get("password").is_none(), "{seen}");
    }

    let missing = system.users.get("/api/users/999").await.expect(404).json();
    assert_eq!(missing["error"], "User not found");
}

#[tokio::test]
async fn serves_the_second_tutorials_client_that_places_and_lists_orders() {
    let system = System::start().await;
    let wanted = json!({"userId": "1", "products": [{"productId": "1", "quantity": 2, "price": 999.99}]});
    let placed = system.orders.post("/api/orders", wanted).await.expect(201).json();
    assert_eq!((&placed["total"], &placed["status"]), (&json!(1999.98), &json!("pending")));
    let line = &placed["products"][0];
    assert_eq!((&line["quantity"], &line["price"]), (&json!(2), &json!(999.99)));
    assert!(placed["createdAt"].is_string(), "{placed}");
    assert_eq!(system.orders.get("/api/orders").await.expect(200).json(), json!([placed]));

    let unknown_user = json!({"userId": "999", "products": [{"productId": "1", "quantity": 2, "price": 999.99}]});
    let refused = system.orders.post("/api/orders", unknown_user).await.expect(400).json();
    assert_eq!(refused["error"], "User not found");
}

/// A user exists if user-service answers 200. So any service with the same path can replace it.
#[tokio::test]
async fn places_orders_with_a_foreign_user_service() {
    let system = System::start().await;
    let foreign = foreign_user_service().await;
    let launch = Launch::of(ORDERS).env("USER_SERVICE_URL", format!("http://{foreign}/api"));
    let orders = Service::start(launch.env("PRODUCT_SERVICE_URL", system.products.url())).await.unwrap();

    orders.post("/orders", order(7, 1, 1)).await.expect(201);
    let refused = orders.post("/orders", order(1, 1, 1)).await.expect_problem(400, "user-not-found");
    assert_eq!(refused["error"], "User not found", "the 404 of this service is JSON of its own");
}

/// Starts another implementation of user-service. Returns its address.
async fn foreign_user_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = answer(stream).await; // fails if the client has closed the connection
        }
    });
    address
}

/// Answers one request. User 7 exists; the response has no member.
async fn answer(stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|header| !header.is_empty()) {}
    let answer = match request.as_str() {
        "GET /api/users/7 HTTP/1.1" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        _ => {
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        }
    };
    lines.into_inner().write_all(answer.as_bytes()).await
}

fn names(things: &Value) -> Vec<&str> {
    things.as_array().into_iter().flatten().filter_map(|thing| thing["name"].as_str()).collect()
}
