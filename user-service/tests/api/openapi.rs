//! The OpenAPI document: the contract in machine form, committed beside the service.

use std::path::Path;

use serde_json::Value;
use user_service::{AppState, app, store};

use crate::support::{hasher, service, settings};

#[tokio::test]
async fn the_committed_document_is_the_served_one() {
    let app = app(AppState::new(store::memory(false).await.unwrap(), hasher()), &settings());
    testing::check_openapi(&app, &Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json"));
}

#[tokio::test]
async fn every_call_is_documented_with_its_answers() {
    let document = service().await.get("/openapi.json").await.expect(200).json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
    for (path, method, status) in [
        ("/users", "get", "200"),
        ("/users", "post", "201"),
        ("/users/{id}", "get", "200"),
        ("/users/{id}", "get", "304"),
        ("/users/{id}", "patch", "200"),
        ("/users/{id}", "delete", "204"),
        ("/livez", "get", "200"),
        ("/readyz", "get", "200"),
    ] {
        let answers = &document["paths"][path][method]["responses"];
        assert!(answers[status].is_object(), "{method} {path} {status}");
        assert_eq!(answers["400"]["$ref"], "#/components/responses/Problem", "{method} {path}");
    }
    let servers: Vec<&Value> = document["servers"].as_array().unwrap().iter().map(|server| &server["url"]).collect();
    assert_eq!(servers, ["/", "/api"]);
}

#[tokio::test]
async fn a_user_has_no_password_in_the_document_either() {
    let document = service().await.get("/openapi.json").await.expect(200).json();
    let schemas = &document["components"]["schemas"];
    let members =
        |schema: &str| schemas[schema]["properties"].as_object().unwrap_or_else(|| panic!("{schemas}")).clone();
    assert!(!members("User").contains_key("password"));
    assert!(members("CreateUser").contains_key("password"));
}
