//! Bad input: each row of a table says why it is bad. The response is a problem, and nothing changes.

use serde_json::{Value, json};

use crate::support::{add, all_users, expect_bad, expect_rejected, ids, seeded, service, sign_up};

/// Fits into a body, but is too deep for a recursive parser.
const DEEP: usize = 30_000;

/// Returns bodies that are not JSON.
fn malformed_bodies() -> Vec<(Vec<u8>, &'static str)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    vec![
        (bytes(""), "empty"),
        (bytes(" \n"), "white space"),
        (bytes("name=Ada"), "a form"),
        (bytes(r#"{"name": "Ada""#), "no closing brace"),
        (bytes(r#"{"name": "Ada"} x"#), "text after it"),
        (bytes(r#"{"name": "Ada"}{"name": "Eve"}"#), "two objects"),
        (bytes(r#"{"name": "Ada",}"#), "a trailing comma"),
        (bytes(r#"{'name': 'Ada'}"#), "single quotes"),
        (bytes(r#"{name: "Ada"}"#), "a name without quotes"),
        (bytes(r#"{"name": NaN}"#), "not a number in JSON"),
        (bytes("{\"name\": \"A\nda\"}"), "a line end in a string"),
        (bytes("{\"name\": \"A\0da\"}"), "NUL in a string"),
        (bytes(r#"{"name": "\x41da"}"#), "an escape that JSON does not have"),
        (bytes("\u{feff}{\"name\": \"Ada\"}"), "a byte order mark"),
        (b"{\"name\": \"\xff\xfe\"}".to_vec(), "not UTF-8"),
        (b"{\"name\": \"\xed\xa0\x80\"}".to_vec(), "half a surrogate pair in UTF-8"),
        (b"\xff\xfe{\x00}\x00".to_vec(), "UTF-16"),
        (b"\x1f\x8b\x08\x00".to_vec(), "compressed"),
        (bytes(&"[".repeat(DEEP)), "only opening brackets"),
        (bytes(&format!("{{\"name\": \"Ada\", \"x\": {}", "[{\"x\":".repeat(DEEP / 8))), "deep, without an end"),
    ]
}

/// Returns bodies that are JSON but invalid in `POST` and in `PATCH`, with the pointers of the errors.
fn invalid_bodies() -> Vec<(String, &'static str, Vec<&'static str>)> {
    let long = |length| "x".repeat(length);
    let row = |json: Value, why, pointers: &[&'static str]| (json.to_string(), why, pointers.to_vec());
    let text = |json: &str, why, pointers: &[&'static str]| (json.to_owned(), why, pointers.to_vec());
    let deep = format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
    vec![
        text("null", "null", &[""]),
        text("true", "a boolean", &[""]),
        text("\"name\"", "a string", &[""]),
        text(r#"[{"name": "Ada"}]"#, "an array around it", &[""]),
        text(r#"["Ada"]"#, "an array of its values", &[""]),
        text(&deep, "only brackets", &[""]),
        text(&format!("{{\"name\": {deep}}}"), "brackets as the name", &["/name"]),
        text(r#"{"name": "Ada", "name": "Eve"}"#, "a member twice", &["/name"]),
        text(r#"{"name": "Ada", "n\u0061me": "Ada"}"#, "a member twice, once with an escape", &["/name"]),
        text(r#"{"name": "\ud800"}"#, "half a surrogate pair", &["/name"]),
        text(r#"{"name": "\udc00\ud800"}"#, "a surrogate pair in the wrong order", &["/name"]),
        text(r#"{"name": "A\u0000da"}"#, "NUL", &["/name"]),
        text(r#"{"name": "A\nda"}"#, "a line end", &["/name"]),
        text(r#"{"name": "A\u0085da"}"#, "a C1 control character", &["/name"]),
        row(json!({"name": ""}), "empty", &["/name"]),
        row(json!({"name": long(201)}), "too long", &["/name"]),
        row(json!({"name": 7}), "a number", &["/name"]),
        row(json!({"name": true}), "a boolean", &["/name"]),
        row(json!({"name": ["Ada"]}), "an array", &["/name"]),
        row(json!({"name": {"first": "Ada"}}), "an object", &["/name"]),
        row(json!({"name": "Ada", "username": ""}), "empty", &["/username"]),
        row(json!({"name": "Ada", "username": long(65)}), "too long", &["/username"]),
        row(json!({"name": "Ada", "username": "a\tb"}), "a control character", &["/username"]),
        row(json!({"name": "Ada", "username": 7}), "a number", &["/username"]),
        row(json!({"name": "Ada", "email": ""}), "empty", &["/email"]),
        row(json!({"name": "Ada", "email": "ada"}), "no @", &["/email"]),
        row(json!({"name": " \u{3000}\u{200b}"}), "blank", &["/name"]),
        row(json!({"name": "\u{3164}", "username": "ada"}), "a Hangul filler", &["/name"]),
        row(json!({"username": " ada"}), "white space at the start", &["/username"]),
        row(json!({"username": "ada\u{a0}"}), "a no-break space at the end", &["/username"]),
        row(json!({"username": "ada\u{3000}"}), "a wide space at the end", &["/username"]),
        row(json!({"username": "ada  king"}), "two spaces", &["/username"]),
        row(json!({"username": "ada\u{2003}king"}), "a wide space inside", &["/username"]),
        row(json!({"username": "ada\u{2028}king"}), "a line separator", &["/username"]),
        row(json!({"username": "a\u{200d}da"}), "a zero-width joiner", &["/username"]),
        row(json!({"username": "a\u{ad}da"}), "a soft hyphen", &["/username"]),
        row(json!({"username": "\u{feff}ada"}), "a byte order mark", &["/username"]),
        row(json!({"username": "ada\u{fe0f}"}), "a variation selector", &["/username"]),
        row(json!({"username": "\u{202e}ada"}), "a bidirectional control", &["/username"]),
        row(json!({"username": "ada\u{ffa0}"}), "a narrow Hangul filler", &["/username"]),
        row(json!({"username": "ada\u{2800}"}), "a blank Braille pattern", &["/username"]),
        row(json!({"username": "ada\u{e0061}"}), "a tag character", &["/username"]),
        row(json!({"username": "ﬁona"}), "a ligature", &["/username"]),
        row(json!({"username": " "}), "blank", &["/username"]),
        row(json!({"name": "Ada", "email": "a\u{200b}da@example.com"}), "a zero-width space", &["/email"]),
        row(json!({"name": "Ada", "email": "@example.com"}), "no local part", &["/email"]),
        row(json!({"name": "Ada", "email": "ada@"}), "no domain", &["/email"]),
        row(json!({"name": "Ada", "email": "a@b@c"}), "two @", &["/email"]),
        row(json!({"name": "Ada", "email": "ada@exam ple.com"}), "white space", &["/email"]),
        row(json!({"name": "Ada", "email": "ada@example.com "}), "white space at the end", &["/email"]),
        row(json!({"name": "Ada", "email": "ada@exam\u{2003}ple.com"}), "Unicode white space", &["/email"]),
        row(json!({"name": "Ada", "email": "ada@example.com\nbcc: eve@example.com"}), "a line end", &["/email"]),
        row(json!({"name": "Ada", "email": format!("{}@example.com", long(243))}), "too long", &["/email"]),
        row(json!({"name": "Ada", "email": ["ada@example.com"]}), "an array", &["/email"]),
        row(json!({"name": "Ada", "password": "1234567"}), "too short", &["/password"]),
        row(json!({"name": "Ada", "password": long(129)}), "too long", &["/password"]),
        row(json!({"name": "Ada", "password": 12345678}), "a number", &["/password"]),
        row(
            json!({"name": "", "username": "", "email": "x", "password": "x"}),
            "all members",
            &["/name", "/username", "/email", "/password"],
        ),
        row(
            json!({"name": 1, "username": 1, "email": 1, "password": 1}),
            "all members",
            &["/name", "/username", "/email", "/password"],
        ),
    ]
}

#[tokio::test]
async fn rejects_bodies_that_are_not_json() {
    let client = seeded().await;
    for (body, why) in malformed_bodies() {
        for (method, path) in [("POST", "/users"), ("PATCH", "/users/1"), ("POST", "/api/users")] {
            println!("{method}: {why}"); // printed if the test fails
            let request = client.request(method, path).bytes("application/json", body.clone());
            expect_rejected(&client, request).await.expect_problem(400, "malformed-json");
        }
    }
}

#[tokio::test]
async fn reports_every_invalid_member_and_no_other() {
    let client = seeded().await;
    for (body, why, pointers) in invalid_bodies() {
        for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
            println!("{method}: {why}");
            let request = client.request(method, path).bytes("application/json", body.clone());
            expect_rejected(&client, request).await.expect_invalid(&pointers);
        }
    }
}

#[tokio::test]
async fn requires_a_name_or_a_username() {
    let client = service().await;
    for body in [
        json!({}),
        json!({"name": null}),
        json!({"name": null, "username": null}),
        json!({"Name": "Ada"}),
        json!({"email": "ada@example.com", "password": "correct horse"}),
    ] {
        let request = client.request("POST", "/users").json(&body);
        expect_rejected(&client, request).await.expect_invalid(&["/name"]);
    }
    let request = client.request("POST", "/users").json(&json!({"email": "x", "password": "x"}));
    expect_rejected(&client, request).await.expect_invalid(&["/name", "/email", "/password"]);
}

#[tokio::test]
async fn does_not_remove_a_name() {
    let client = service().await;
    sign_up(&client, "ada").await;
    for (body, pointers) in [
        (json!({"name": null}), vec!["/name"]),
        (json!({"username": null, "name": null}), vec!["/name"]),
        (json!({"email": null, "password": "short"}), vec!["/password"]),
    ] {
        for media_type in ["application/json", "application/merge-patch+json"] {
            let request = client.request("PATCH", "/users/1").bytes(media_type, body.to_string());
            expect_rejected(&client, request).await.expect_invalid(&pointers);
        }
    }
}

#[tokio::test]
async fn accepts_values_at_the_limits() {
    let client = service().await;
    for body in [
        json!({"name": "x"}),
        json!({"name": "🦀".repeat(200)}),
        json!({"username": "x"}),
        json!({"username": "y".repeat(64)}),
        json!({"name": "x", "email": "a@b"}),
        json!({"name": "x", "email": format!("{}@example.com", "x".repeat(242))}),
        json!({"name": "x", "password": "12345678"}),
        json!({"name": "x", "password": "🦀".repeat(128)}),
        json!({"name": "x", "username": null, "email": null, "password": null}),
    ] {
        client.post("/users", body).await.expect(201);
    }
    let deep = format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
    let ignored = format!("{{\"name\": \"x\", \"unknown\": {deep}, \"again\": 1, \"again\": 1e999}}");
    client.request("POST", "/users").bytes("application/json", ignored).send().await.expect(201);
}

#[tokio::test]
async fn requires_a_json_content_type() {
    let client = seeded().await;
    let body = r#"{"name": "Ada"}"#;
    for content_type in
        ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data", "*/*", "json"]
    {
        for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
            let request = client.request(method, path).bytes(content_type, body);
            expect_rejected(&client, request).await.expect_problem(415, "unsupported-media-type");
            let request = client.request(method, path).bytes("x", body).without("content-type");
            expect_rejected(&client, request).await.expect_problem(415, "unsupported-media-type");
        }
    }
    for content_type in ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8"] {
        client.request("POST", "/users").bytes(content_type, body).send().await.expect(201);
        client.request("PATCH", "/users/1").bytes(content_type, body).send().await.expect(200);
    }
    let patch = client.request("PATCH", "/users/1").bytes("application/merge-patch+json", body);
    patch.send().await.expect(200);
    let post = client.request("POST", "/users").bytes("application/merge-patch+json", body);
    expect_rejected(&client, post).await.expect_problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn rejects_a_compressed_body() {
    let client = seeded().await;
    for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
        let request = client.request(method, path).json(&json!({"name": "Ada"})).header("content-encoding", "gzip");
        let response = expect_rejected(&client, request).await;
        assert_eq!(response.header("accept-encoding"), "identity", "{response}");
        response.expect_problem(415, "unsupported-media-type");
    }
    let plain = client.request("POST", "/users").json(&json!({"name": "Ada"})).header("content-encoding", "identity");
    plain.send().await.expect(201);
}

#[tokio::test]
async fn rejects_a_body_over_64_kib() {
    let client = seeded().await;
    let of_size = |size: usize| {
        let user = r#"{"name": "Ada"}"#;
        user.to_owned() + &" ".repeat(size - user.len())
    };
    for (method, path) in [("POST", "/users"), ("PATCH", "/users/1")] {
        let request = client.request(method, path).bytes("application/json", of_size((64 << 10) + 1));
        expect_rejected(&client, request).await.expect_problem(413, "payload-too-large");
        client.request(method, path).bytes("application/json", of_size(64 << 10)).send().await;
    }
    assert_eq!(ids(&all_users(&client).await), [1, 2, 3], "a body of exactly 64 KiB is accepted");
    let brackets = client.request("POST", "/users").bytes("application/json", "[".repeat(100_000));
    expect_rejected(&client, brackets).await.expect_problem(413, "payload-too-large");
}

#[tokio::test]
async fn rejects_ids_that_are_not_integers_from_1() {
    let client = seeded().await;
    let long = "1".repeat(10 << 10);
    for (id, why, parameter) in [
        ("0", "too small", "id"),
        ("-1", "negative", "id"),
        ("+1", "a sign", "id"),
        ("%2B1", "a sign", "id"),
        ("01", "a leading zero", "id"),
        ("1.0", "a fraction", "id"),
        ("1e0", "an exponent", "id"),
        ("0x1", "another base", "id"),
        ("9223372036854775808", "too large", "id"),
        (&long, "much too large", "id"),
        ("abc", "not a number", "id"),
        ("%D9%A1", "an Arabic digit", "id"),
        ("%201", "a space", "id"),
        ("%00", "NUL", "id"),
        ("1%00", "NUL", "id"),
        ("%ff", "not UTF-8", "path"),
        ("..", "the parent folder", "id"),
        ("%2e%2e%2f1", "the parent folder", "id"),
        ("1;drop", "a parameter", "id"),
        ("undefined", "an unset variable in JavaScript", "id"),
    ] {
        for root in ["/users", "/api/users"] {
            println!("{id}: {why}");
            let path = format!("{root}/{id}");
            expect_bad(expect_rejected(&client, client.request("GET", &path)).await, &[parameter]);
            expect_bad(expect_rejected(&client, client.request("DELETE", &path)).await, &[parameter]);
            let change = client.request("PATCH", &path).json(&json!({"name": "x"}));
            expect_bad(expect_rejected(&client, change).await, &[parameter]);
        }
    }
}

#[tokio::test]
async fn returns_404_for_unknown_paths() {
    let client = seeded().await;
    for path in [
        "/",
        "/api",
        "/api/",
        "/users/",
        "/users/1/",
        "/users/1/x",
        "/users/../users/1",
        "/Users",
        "/user",
        "//users",
        "/api/api/users",
        "/users%2F1",
    ] {
        for method in ["GET", "DELETE"] {
            expect_rejected(&client, client.request(method, path)).await.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn rejects_invalid_query_parameters() {
    let client = seeded().await;
    let many = |count: usize| vec!["1"; count].join(",");
    let (max_ids, too_many_ids) = (format!("ids={}", many(128)), format!("ids={}", many(129)));
    for (query, why, parameters) in [
        ("limit=0", "too small", vec!["limit"]),
        ("limit=1001", "too large", vec!["limit"]),
        ("limit=-1", "negative", vec!["limit"]),
        ("limit=%2B1", "a sign", vec!["limit"]),
        ("limit=1.5", "a fraction", vec!["limit"]),
        ("limit=abc", "not a number", vec!["limit"]),
        ("limit=", "empty", vec!["limit"]),
        ("limit", "empty", vec!["limit"]),
        ("limit=99999999999999999999999", "too large for any integer type", vec!["limit"]),
        ("limit=1&limit=1", "twice", vec!["limit"]),
        ("after=0", "not an id", vec!["after"]),
        ("after=abc", "not an id", vec!["after"]),
        ("after=", "empty", vec!["after"]),
        ("after=1&after=1", "twice", vec!["after"]),
        ("ids=", "empty", vec!["ids"]),
        ("ids=,", "two empty values", vec!["ids"]),
        ("ids=1,", "an empty value", vec!["ids"]),
        ("ids=1,x", "not an id", vec!["ids"]),
        ("ids=1,0", "not an id", vec!["ids"]),
        ("ids=1%202", "another separator", vec!["ids"]),
        ("ids=1&ids=2", "twice", vec!["ids"]),
        (too_many_ids.as_str(), "129 ids", vec!["ids"]),
        ("username=a&username=b", "twice", vec!["username"]),
        ("limit=0&after=0&ids=0&username=a&username=b", "all parameters", vec!["limit", "after", "username", "ids"]),
    ] {
        println!("{query}: {why}");
        expect_bad(expect_rejected(&client, client.request("GET", &format!("/users?{query}"))).await, &parameters);
    }
    for query in ["limit=1000", "after=9223372036854775807", max_ids.as_str(), "limit=%31", "&&"] {
        client.get(&format!("/users?{query}")).await.expect(200);
    }
}

#[tokio::test]
async fn rejects_unknown_query_parameters_of_every_call() {
    let client = service().await;
    add(&client, "Ada").await;
    for (query, unknown) in [
        ("unknown=1&unknown=2", vec!["unknown"]),
        ("ids[]=1&ids[]=2", vec!["ids[]"]),
        ("Limit=1&userName=ada", vec!["Limit", "userName"]),
        ("limit=0&x", vec!["limit", "x"]),
        ("%ff=%ff", vec!["\u{fffd}"]),
    ] {
        expect_bad(expect_rejected(&client, client.request("GET", &format!("/users?{query}"))).await, &unknown);
    }
    let problem = client.get("/users?user=ada").await.expect_problem(400, "invalid-request");
    assert_eq!(problem["detail"], "user: is unknown; this call has limit, after, username and ids");
    for (method, path) in
        [("POST", "/users?x=1"), ("GET", "/users/1?x=1"), ("PATCH", "/users/1?x=1"), ("DELETE", "/users/1?x=1")]
    {
        for root in ["", "/api"] {
            let request = client.request(method, &format!("{root}{path}")).json(&json!({"name": "Eve"}));
            expect_bad(expect_rejected(&client, request).await, &["x"]);
        }
    }
}

#[tokio::test]
async fn requires_exactly_one_host() {
    let client = service().await;
    let request = || client.request("POST", "/users").json(&json!({"name": "Ada"}));
    expect_rejected(&client, request().without("host")).await.expect_problem(400, "invalid-request");
    expect_rejected(&client, request().header("host", "test")).await.expect_problem(400, "invalid-request");
    request().without("host").header("host", "another").send().await.expect(201);
}
