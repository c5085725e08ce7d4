//! What holds beside the orders: routes, health, settings, the OpenAPI document.

use std::path::Path;

use chassis::config::defaults;
use order_service::config::Config;
use order_service::{AppState, app, store};
use serde_json::{Value, json};
use testing::{check_openapi, dead_peer};

use crate::fakes::StubBehaviour;
use crate::support::{ANN, HOUR, Limits, PEN, World, client, eventually, id, order, placement};

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    let one = format!("/orders/{}", id(&placed));
    for (path, allowed) in [("/orders", ["GET", "HEAD", "POST"]), (one.as_str(), ["GET", "HEAD", "PATCH"])] {
        for path in [path.to_owned(), format!("/api{path}")] {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
                if allowed.contains(&method) {
                    continue;
                }
                let answer = world.client.request(method, &path).json(&json!({"status": "cancelled"})).send().await;
                let mut told: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
                told.sort_unstable();
                assert_eq!(told, allowed, "{method} {path}");
                answer.expect_problem(405, "method-not-allowed");
            }
        }
    }
    assert_eq!(world.orders().await, [placed]);
}

#[tokio::test]
async fn there_is_nothing_beside_the_routes() {
    let world = World::new().await;
    for path in
        ["/api", "/api/", "/order", "/orders/", "/Orders", "/api/api/orders", "/users", "/products", "/reservations"]
    {
        world.client.get(path).await.expect_problem(404, "not-found");
    }
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    world.client.get(&format!("/orders/{}/products", id(&placed))).await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn at_the_root_there_is_a_page_and_it_is_no_api() {
    let world = World::new().await;
    let page = world.client.get("/").await.expect(200);
    let html = std::str::from_utf8(&page.body).unwrap();
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    let (_, rest) = policy.split_once("'nonce-").expect("only what the page itself holds is run");
    let (nonce, _) = rest.split_once('\'').expect("the end of the nonce");
    let run = html.matches("<script").count() + html.matches("<style").count();
    assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), run, "{policy}");
    assert!(!world.client.get("/").await.header("content-security-policy").contains(nonce), "nobody can know the next");
    for peer in world.placement.peers() {
        let there = format!("<meta name=\"{}\" content=\"{}\">", peer.name(), peer.base());
        assert!(html.contains(&there), "{there} in {page}");
    }

    world.client.get("/?users=http://127.0.0.1:3001").await.expect(200);
    world.client.request("POST", "/").send().await.expect_problem(405, "method-not-allowed");
    let metrics = world.client.get("/metrics").await.expect(200).to_string();
    assert!(metrics.contains(r#"http_requests_total{method="GET",route="/",status="#), "{metrics}");
    let document = world.client.get("/openapi.json").await.expect(200).json();
    assert!(document["paths"]["/"].is_null());
}

#[tokio::test]
async fn readiness_tells_of_the_peers_and_does_not_depend_on_them() {
    let world = World::new().await;
    // BatchItem until it is so, since half a second of silence can also be this machine's fault.
    let tells = async |client: &testing::Client, peers: Value| {
        let ready = json!({"status": "ready", "peers": peers});
        let is_so = async || client.get("/readyz").await.expect(200).json() == ready;
        eventually(&ready.to_string(), is_so).await;
    };
    let both_up = json!({"user-service": "up", "product-service": "up"});
    tells(&world.client, both_up.clone()).await;
    world.people.reads.is(StubBehaviour::Hanging);
    world.shop.takes.is(StubBehaviour::Broken);
    tells(&world.client, both_up).await; // they are asked nothing but that

    let peers = world.placement.peers();
    let (users, products, dead) = (peers[0].base().clone(), peers[1].base().clone(), dead_peer().await);
    for (users, products, expected) in [
        (dead.clone(), products, json!({"user-service": "down", "product-service": "up"})),
        (users, dead.clone(), json!({"user-service": "up", "product-service": "down"})),
        (dead.clone(), dead, json!({"user-service": "down", "product-service": "down"})),
    ] {
        let client = client(placement(store::memory(), users, products, Limits { call: HOUR, order: HOUR }));
        tells(&client, expected).await;
        assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    }
}

#[test]
fn the_bounds_of_the_contract_are_the_defaults() {
    let config: Config = defaults();
    assert_eq!(config.port, 3003);
    assert_eq!(config.user_service_url.as_str(), "http://127.0.0.1:3001/");
    assert_eq!(config.product_service_url.as_str(), "http://127.0.0.1:3002/");
    assert_eq!((config.order_timeout.as_secs(), config.reconcile.as_secs()), (5, 1));
    assert!(config.peers.timeout < config.order_timeout, "one slow call leaves time for another try");
    assert!(config.order_timeout < config.settings.request_timeout, "the placement knows first that it is too late");
}

#[tokio::test]
async fn the_committed_document_is_the_served_one() {
    let app = app(AppState::new(World::new().await.placement), &defaults());
    check_openapi(&app, &Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json"));
}

#[tokio::test]
async fn every_call_is_documented_with_its_answers() {
    let document = World::new().await.client.get("/openapi.json").await.expect(200).json();
    for (path, method, status, headers) in [
        ("/orders", "get", "200", &["link"][..]),
        ("/orders", "post", "201", &["location", "etag", "idempotent-replayed"]),
        ("/orders/{id}", "get", "200", &["etag"]),
        ("/orders/{id}", "get", "304", &[]),
        ("/orders/{id}", "patch", "200", &["etag"]),
        ("/livez", "get", "200", &[]),
        ("/readyz", "get", "200", &[]),
    ] {
        let answers = &document["paths"][path][method]["responses"];
        assert!(answers[status].is_object(), "{method} {path} {status}");
        for header in headers {
            assert!(answers[status]["headers"][header].is_object(), "{method} {path} {status} {header}");
        }
        assert_eq!(answers["400"]["$ref"], "#/components/responses/Problem", "{method} {path}");
    }
    let parameters = |path: &str, method: &str| -> Vec<String> {
        let parameters = document["paths"][path][method]["parameters"].as_array().unwrap();
        parameters.iter().map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(parameters("/orders", "get"), ["limit", "after", "userId", "status"]);
    assert_eq!(parameters("/orders", "post"), ["idempotency-key"]);
    assert_eq!(parameters("/orders/{id}", "patch"), ["id", "if-match"]);
}

/// What is answered has just the members that the document has.
#[tokio::test]
async fn an_order_has_the_members_of_the_document() {
    let world = World::new().await;
    let document = world.client.get("/openapi.json").await.expect(200).json();
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    let keys = |object: &Value| -> Vec<String> {
        let mut keys: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let schemas = &document["components"]["schemas"];
    assert_eq!(keys(&placed), keys(&schemas["Order"]["properties"]));
    assert_eq!(keys(&placed["products"][0]), keys(&schemas["OrderLine"]["properties"]));
    let statuses = json!(["pending", "confirmed", "shipped", "delivered", "cancelled"]);
    assert!(schemas["OrderStatus"].to_string().contains(statuses.to_string().trim_matches(['[', ']'])), "{schemas}");
}
