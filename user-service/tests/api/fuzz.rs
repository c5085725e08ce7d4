//! Random requests never cause a 5xx.

use testing::{Language, fuzz};

use crate::support::seeded;

const LANGUAGE: Language = Language {
    calls: &[
        "GET /users",
        "POST /users",
        "POST /users",
        "GET /users/*",
        "PATCH /users/*",
        "PATCH /users/*",
        "DELETE /users/*",
        "POST /sessions",
        "GET /readyz",
    ],
    queries: &["limit=2", "after=1", "ids=1,2,3", "username=ada", "limit=1000&after=0"],
    bodies: &[
        r#"{"name":"Ada"}"#,
        r#"{"name":null,"username":"Ada"}"#,
        r#"{"username":"ada","email":"ada@example.com"}"#,
        r#"{"name":"Ada Lovelace","username":"ädä","email":"Ada@Example.com","password":null}"#,
        r#"{"id":7,"name":"\u0041da","email":null,"more":[1,{"deep":[]}]}"#,
        r#"{"password":"short"}"#,
    ],
};

#[tokio::test]
async fn never_answers_a_random_request_with_a_5xx() {
    let reached = [200, 201, 204, 304, 400, 404, 405, 409, 412, 413, 415, 431];
    fuzz("user-service", &seeded().await, LANGUAGE, 34_000, &reached).await;
}
