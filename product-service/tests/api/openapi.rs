//! The OpenAPI document: the contract in machine form, committed beside the service.

use std::collections::BTreeSet;
use std::path::Path;

use chassis::config::defaults;
use product_service::peers::Users;
use product_service::{AppState, app, store};
use serde_json::Value;
use testing::check_openapi;

use crate::support::{Shop, patience};

const OPENAPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

#[tokio::test]
async fn the_document_is_the_one_that_is_committed() {
    let users = Users::at("http://user-service.invalid".parse().unwrap(), &patience()).unwrap();
    let app = app(AppState::new(store::memory(true).await.unwrap(), users), &defaults());
    check_openapi(&app, Path::new(OPENAPI));
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(OPENAPI).unwrap()).unwrap();
    let served = Shop::open().await.get("/openapi.json").await.expect(200).json();
    assert_eq!(served, committed, "and the one that is served");
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"), "{}", served["openapi"]);
}

#[tokio::test]
async fn the_document_has_every_call_of_the_contract() {
    let served = Shop::open().await.get("/openapi.json").await.expect(200).json();
    let calls = served["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "servers");
        methods.map(move |method| format!("{method} {path}"))
    });
    let contract = [
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
    assert_eq!(calls.collect::<BTreeSet<_>>(), contract.map(str::to_owned).into());
}
