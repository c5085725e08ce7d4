//! The OpenAPI document: committed, complete, and enforced by the service.

use std::path::Path;

use serde_json::{Value, json};
use user_service::{AppState, app, store};

use crate::support::{hasher, seeded, service, settings};

#[tokio::test]
async fn serves_the_committed_document() {
    let app = app(AppState::new(store::memory(false).await.unwrap(), hasher()), &settings());
    testing::check_openapi(&app, &Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json"));
}

#[tokio::test]
async fn documents_every_call_with_its_responses() {
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
        let responses = &document["paths"][path][method]["responses"];
        assert!(responses[status].is_object(), "{method} {path} {status}");
        assert_eq!(responses["400"]["$ref"], "#/components/responses/Problem", "{method} {path}");
    }
    let servers: Vec<&Value> = document["servers"].as_array().unwrap().iter().map(|server| &server["url"]).collect();
    assert_eq!(servers, ["/", "/api"]);
}

#[tokio::test]
async fn documents_no_password_in_a_user() {
    let document = service().await.get("/openapi.json").await.expect(200).json();
    let schemas = &document["components"]["schemas"];
    let members =
        |schema: &str| schemas[schema]["properties"].as_object().unwrap_or_else(|| panic!("{schemas}")).clone();
    assert!(!members("User").contains_key("password"));
    assert!(members("CreateUser").contains_key("password"));
}

/// Values at the limits of the document are accepted, and values beyond them are rejected: the document and the parser
/// agree on the length of each member.
#[tokio::test]
async fn enforces_the_lengths_of_the_document() {
    for (method, path, schema) in [("POST", "/users", "CreateUser"), ("PATCH", "/users/1", "UpdateUser")] {
        let client = seeded().await;
        let document = client.get("/openapi.json").await.expect(200).json();
        for (member, limits) in document["components"]["schemas"][schema]["properties"].as_object().unwrap() {
            let limit = |name: &str| usize::try_from(limits[name].as_u64().unwrap()).unwrap();
            let (min, max) = (limit("minLength"), limit("maxLength"));
            for (length, is_valid) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
                let text = if member == "email" { "a@" } else { "" };
                let text = text.to_owned() + &"x".repeat(length - text.len());
                let mut body = json!({"name": "Ada"});
                body[member] = json!(text);
                let response = client.request(method, path).json(&body).send().await;
                assert_eq!(response.status.is_success(), is_valid, "{member} of {length} characters: {response}");
            }
        }
    }
}
