//! The OpenAPI document, which is committed beside the service.

use std::collections::BTreeSet;
use std::path::Path;

use chassis::config::defaults;
use product_service::peers::Users;
use product_service::{AppState, app, store};
use serde_json::Value;
use testing::check_openapi;

use crate::support::{Shop, generous_timeouts};

const OPENAPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

#[tokio::test]
async fn serves_the_committed_document() {
    let users = Users::new("http://user-service.invalid".parse().unwrap(), &generous_timeouts()).unwrap();
    let app = app(AppState::new(store::memory(true).await.unwrap(), users), &defaults());
    check_openapi(&app, Path::new(OPENAPI));
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(OPENAPI).unwrap()).unwrap();
    let served = Shop::seeded().await.get("/openapi.json").await.expect(200).json();
    assert_eq!(served, committed, "the served document");
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"), "{}", served["openapi"]);
}

#[tokio::test]
async fn has_every_operation_of_the_contract_in_the_document() {
    let served = Shop::seeded().await.get("/openapi.json").await.expect(200).json();
    let operations = served["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "servers");
        methods.map(move |method| format!("{method} {path}"))
    });
    let expected = [
        "get /products",
        "post /products",
        "get /products/{id}",
        "patch /products/{id}",
        "delete /products/{id}",
        "get /users",
        "post /reservations",
        "delete /reservations",
        "put /reservations/{orderId}",
        "get /reservations/{orderId}",
        "delete /reservations/{orderId}",
        "get /livez",
        "get /readyz",
    ];
    assert_eq!(operations.collect::<BTreeSet<_>>(), expected.map(str::to_owned).into());
}
