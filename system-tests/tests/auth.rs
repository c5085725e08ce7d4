//! Sign-in with the three real processes. user-service issues the tokens.

use std::process::Command;

use serde_json::{Value, json};
use system_tests::{Response, Service, SignIn, System, eventually, sign_in};

const LAPTOP: i64 = 1;
const PASSWORD: &str = "a horse for three services";

async fn start(sign_in: &SignIn) -> System {
    System::start_with(Some(sign_in), |launch| launch.env("RUST_LOG", "trace"))
        .await
        .unwrap_or_else(|why| panic!("{why}"))
}

/// Registers a user and signs in. Returns the id, and the value of `Authorization`.
async fn register(system: &System, name: &str) -> (Value, String) {
    let account = json!({"username": name, "email": format!("{name}@example.com"), "password": PASSWORD});
    let user = system.users.post("/users", account).await.expect(201).json();
    (user["id"].clone(), sign_in(&system.users, name, PASSWORD).await)
}

async fn send(service: &Service, method: &str, path: &str, token: &str, body: Option<Value>) -> Response {
    let request = service.request(method, path).header("authorization", token);
    body.iter().fold(request, |request, body| request.json(body)).send().await
}

fn laptops(quantity: u32) -> Option<Value> {
    Some(json!({"products": [{"productId": LAPTOP, "quantity": quantity}]}))
}

/// Checks that no process has written one of these secrets, at the most verbose level.
fn expect_not_logged(system: &System, secrets: &[&str]) {
    for service in [&system.users, &system.products, &system.orders] {
        let log = service.log();
        assert!(!log.is_empty());
        for secret in secrets {
            let signature = secret.rsplit('.').next().expect("a part");
            let found = log.iter().find(|line| line.contains(secret) || line.contains(signature));
            assert!(found.is_none(), "{}: {found:?}", service.name());
        }
    }
}

#[tokio::test]
async fn lets_a_user_register_sign_in_order_and_cancel() {
    let keys = SignIn::new().expect("a temporary folder");
    let system = start(&keys).await;
    let ((ada, adas), (_, bobs)) = (register(&system, "ada").await, register(&system, "bob").await);
    let admins = keys.admin(&system.users).await;

    system.orders.post("/orders", laptops(1).unwrap()).await.expect_problem(401, "unauthenticated");
    let placed = send(&system.orders, "POST", "/orders", &adas, laptops(2)).await.expect(201);
    assert_eq!(placed.json()["userId"], ada);
    let location = placed.header("location");
    send(&system.orders, "GET", location, &adas, None).await.expect(200);
    send(&system.orders, "GET", location, &bobs, None).await.expect_problem(404, "not-found");
    assert_eq!(send(&system.orders, "GET", "/orders", &bobs, None).await.expect(200).json(), json!([]));
    assert_eq!(send(&system.orders, "GET", "/orders", &admins, None).await.expect(200).json(), json!([placed.json()]));
    let foreign = json!({"userId": ada, "products": [{"productId": LAPTOP, "quantity": 1}]});
    send(&system.orders, "POST", "/orders", &bobs, Some(foreign.clone()))
        .await
        .expect_problem(403, "insufficient-scope");
    send(&system.orders, "POST", "/orders", &admins, Some(foreign)).await.expect(201);

    assert_eq!(system.stock(LAPTOP).await, 47);
    let status = |status| Some(json!({"status": status}));
    send(&system.orders, "PATCH", location, &adas, status("confirmed")).await.expect_problem(403, "insufficient-scope");
    send(&system.orders, "PATCH", location, &bobs, status("cancelled")).await.expect_problem(404, "not-found");
    send(&system.orders, "PATCH", location, &adas, status("cancelled")).await.expect(200);
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "order-service may release the units");

    // product-service passes the token on.
    send(&system.products, "GET", "/users", &adas, None).await.expect_problem(403, "insufficient-scope");
    let users = send(&system.products, "GET", "/users?limit=2", &admins, None).await.expect(200);
    assert_eq!(users.json().as_array().map(Vec::len), Some(2));
    let path = format!("/reservations/{}", location.rsplit('/').next().expect("an id"));
    send(&system.products, "DELETE", &path, &adas, None).await.expect_problem(403, "insufficient-scope");
    send(&system.products, "GET", &path, &admins, None).await.expect(200);
    expect_not_logged(&system, &[&adas, &bobs, &admins, PASSWORD, keys.password()]);
}

#[tokio::test]
async fn rejects_forged_tokens_and_those_of_another_issuer() {
    let (keys, others) = (SignIn::new().unwrap(), SignIn::new().unwrap());
    let (system, other) = tokio::join!(start(&keys), start(&others));
    let (_, adas) = register(&system, "ada").await;
    let foreign = others.admin(&other.users).await;
    let (unsigned, _) = adas.rsplit_once('.').expect("three parts");
    let (header, rest) = adas.split_once('.').expect("three parts");
    let (claims, signature) = rest.split_once('.').expect("three parts");
    let upper = |text: &str| text.replace(['a', 'b'], "c");
    let forged = [
        foreign,
        format!("{unsigned}."),
        format!("{unsigned}.{}", upper(signature)),
        format!("{header}.{}.{signature}", upper(claims)),
        format!("{adas}.{signature}"),
        format!("Bearer {}", "x".repeat(5000)),
        "Bearer ".to_owned(),
    ];
    for token in &forged {
        for (service, path) in [(&system.orders, "/orders"), (&system.products, "/users"), (&system.users, "/users")] {
            let response = send(service, "GET", path, token, None).await;
            assert!(response.header("www-authenticate").contains("error=\"invalid_token\""), "{token} {response}");
            response.expect_problem(401, "unauthenticated");
        }
    }
}

#[tokio::test]
async fn accepts_known_keys_and_releases_stock_while_the_issuer_is_dead() {
    let keys = SignIn::new().expect("a temporary folder");
    let mut system = start(&keys).await;
    let (_, adas) = register(&system, "ada").await;
    let admins = keys.admin(&system.users).await;
    let placed = send(&system.orders, "POST", "/orders", &adas, laptops(5)).await.expect(201);
    send(&system.products, "GET", "/users", &admins, None).await.expect(200);

    system.users.kill().await;
    send(&system.orders, "POST", "/orders", &adas, laptops(1)).await.expect_problem(503, "peer-unavailable");
    assert_eq!(send(&system.orders, "GET", "/orders", &adas, None).await.expect(200).json(), json!([placed.json()]));
    let cancelled = json!({"status": "cancelled"});
    send(&system.orders, "PATCH", placed.header("location"), &adas, Some(cancelled)).await.expect(200);
    assert_eq!(eventually(50, || system.stock(LAPTOP)).await, 50, "a release needs no issuer");
    send(&system.products, "GET", "/users", &admins, None).await.expect_problem(503, "peer-unavailable");

    // A restart of order-service without the issuer: it is ready, and cannot know yet whether a token is good.
    system.orders.kill().await;
    system.orders.restart().await;
    send(&system.orders, "GET", "/orders", &adas, None).await.expect_problem(503, "keys-unavailable");
    system.orders.get("/orders").await.expect_problem(401, "unauthenticated");

    system.users.restart().await; // with the same keys; its users are gone, because its store is in memory
    let status = async || send(&system.orders, "GET", "/orders", &adas, None).await.status;
    assert_eq!(eventually(200, status).await, 200, "the keys come with the issuer");
    let admins = keys.admin(&system.users).await;
    let own = laptops(1);
    let ordered = async || send(&system.orders, "POST", "/orders", &admins, own.clone()).await.status;
    assert_eq!(eventually(201, ordered).await, 201);
}

/// `make run AUTH=on` prints these commands.
#[tokio::test]
async fn prints_commands_that_work_when_pasted() {
    let keys = SignIn::new().expect("a temporary folder");
    let system = start(&keys).await;
    let mut shell = Command::new("sh");
    shell.args(["-euc", &keys.commands(&system)]);
    let output = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().expect("a shell");
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{printed}{errors}");
    for expected in [r#""username":"admin""#, r#""name":"Laptop""#, r#""status":"pending""#] {
        assert!(printed.contains(expected), "{expected} is not in {printed}");
    }
}

#[test]
fn hides_its_keys_from_other_users_and_removes_them() {
    use std::os::unix::fs::PermissionsExt;
    let keys = SignIn::new().expect("a temporary folder");
    let folder = keys.folder().to_owned();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 4);
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
    drop(keys);
    assert!(!folder.exists());
}
