//! The OpenAPI document.

use std::collections::BTreeSet;
use std::path::Path;

use chassis::config::defaults;
use order_service::{AppState, app};
use serde_json::{Value, json};
use testing::{check_openapi, documented_calls};

use crate::support::{ANN, PEN, World, order};

#[tokio::test]
async fn serves_the_committed_document() {
    let app = app(AppState::new(World::new().await.placement), &defaults());
    check_openapi(&app, &Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json"));
}

/// One client may be generated from the documents of all services.
#[test]
fn uses_each_operation_id_once_over_all_documents() {
    let (mut ids, mut documents, mut calls) = (Vec::new(), 0, 0);
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap() {
        let Ok(document) = std::fs::read(entry.unwrap().path().join("openapi.json")) else { continue };
        let document: Value = serde_json::from_slice(&document).unwrap();
        (documents, calls) = (documents + 1, calls + documented_calls(&document).len());
        let paths = document["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|path| path.as_object().unwrap().values());
        ids.extend(operations.filter_map(|operation| operation["operationId"].as_str().map(str::to_owned)));
    }
    assert!(documents >= 3, "each service has a document");
    let unique: BTreeSet<&String> = ids.iter().collect();
    assert_eq!((unique.len(), ids.len()), (calls, calls), "{ids:?}");
}

#[tokio::test]
async fn documents_every_call_with_its_responses() {
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
        let responses = &document["paths"][path][method]["responses"];
        assert!(responses[status].is_object(), "{method} {path} {status}");
        for header in headers {
            assert!(responses[status]["headers"][header].is_object(), "{method} {path} {status} {header}");
        }
        assert_eq!(responses["400"]["$ref"], "#/components/responses/Problem", "{method} {path}");
    }
    let parameters = |path: &str, method: &str| -> Vec<String> {
        let parameters = document["paths"][path][method]["parameters"].as_array().unwrap();
        parameters.iter().map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(parameters("/orders", "get"), ["limit", "after", "userId", "status"]);
    assert_eq!(parameters("/orders", "post"), ["idempotency-key"]);
    assert_eq!(parameters("/orders/{id}", "patch"), ["id", "if-match", "if-none-match"]);
}

#[tokio::test]
async fn documents_exactly_the_members_of_an_order() {
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
