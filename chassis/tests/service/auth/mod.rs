//! Sign-in: which tokens are accepted, and which callers.

mod issuer;
mod tokens;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use chassis::App;
use chassis::auth::{Access, Authenticator, Caller, Grant, KeySet, Rule, SigningKey};
use chassis::config::{AuthSettings, Settings};
use serde_json::{Value, json};
use testing::tokens::TokenKey;
use testing::{Client, eventually, stub_peer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::sample_service::{Dependencies, settings};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example/realm";
const RULES: &[Rule] = &[
    Rule::new("GET /public", &[Grant::Everybody]),
    Rule::new("GET /caller", &[Grant::Account]),
    Rule::new("GET /things/{id}", &[Grant::Owner, Grant::Admin]),
    Rule::new("POST /admins", &[Grant::Admin]),
    Rule::new("GET /internal", &[Grant::Service("caller")]),
];

#[utoipa::path(get, path = "/public", responses((status = OK, body = String)))]
async fn public() -> &'static str {
    "public"
}

#[utoipa::path(get, path = "/caller", responses((status = OK, body = String)))]
async fn caller(caller: Caller) -> String {
    format!("{:?} {:?}", caller.account(), caller.reach())
}

#[utoipa::path(get, path = "/things/{id}", responses((status = OK, body = String)))]
async fn thing() -> &'static str {
    "thing"
}

#[utoipa::path(post, path = "/admins", responses((status = OK, body = String)))]
async fn admins(body: String) -> String {
    body
}

#[utoipa::path(get, path = "/internal", responses((status = OK, body = String)))]
async fn internal() -> &'static str {
    "internal"
}

fn auth_settings() -> AuthSettings {
    AuthSettings {
        issuer: Some(ISSUER.to_owned()),
        audience: Some("shop".to_owned()),
        jwks_url: None,
        roles_claim: "roles".to_owned(),
        account_claim: "user_id".to_owned(),
    }
}

fn app(authenticator: Option<Authenticator>, settings: &Settings) -> App {
    let routes = OpenApiRouter::new()
        .routes(routes!(public))
        .routes(routes!(caller))
        .routes(routes!(thing))
        .routes(routes!(admins))
        .routes(routes!(internal))
        .route("/undocumented", get(async || "undocumented"));
    let dependencies = Dependencies { store: Ok(()), peers: Vec::new() };
    App::new("sample", "A service.", routes, Arc::new(dependencies), settings, Access { rules: RULES, authenticator })
}

/// A service with sign-in whose clock stands at [`NOW`], and the keys that it trusts.
struct World {
    client: Client,
    issuer: TokenKey,
    service: TokenKey,
}

impl World {
    fn new() -> Self {
        Self::with(&auth_settings())
    }

    fn with(auth: &AuthSettings) -> Self {
        let issuer = signing_key();
        let service = signing_key();
        let keys = KeySet::of(&[SigningKey::from_pem(issuer.private_pem().as_bytes()).expect("a key")]);
        let services = vec![("caller", key_file(&service))];
        let authenticator = Authenticator::with_clock("sample", auth, Some(keys), services, || NOW).expect("a fixture");
        Self { client: Client::new(app(authenticator, &settings())), issuer, service }
    }

    /// Returns the status of `GET path` with this token.
    async fn get(&self, path: &str, token: &str) -> u16 {
        let response =
            self.client.request("GET", path).header("authorization", &format!("Bearer {token}")).send().await;
        response.status.as_u16()
    }
}

/// Returns a new key whose id is its thumbprint, as [`SigningKey`] names keys.
fn signing_key() -> TokenKey {
    let mut key = TokenKey::new("");
    let signing = SigningKey::from_pem(key.private_pem().as_bytes()).expect("a key");
    key.id = signing.public().common.key_id.clone().expect("an id");
    key
}

fn key_file(key: &TokenKey) -> KeySet {
    let file = std::env::temp_dir().join(format!("chassis-auth-{}.pem", key.id));
    std::fs::write(&file, key.public_pem()).expect("a fixture");
    let keys = KeySet::from_pem_file(&file);
    std::fs::remove_file(&file).expect("a fixture");
    keys.expect("a fixture")
}

/// Returns the status of `GET /caller` with this token.
async fn status(client: &Client, token: &str) -> StatusCode {
    client.request("GET", "/caller").header("authorization", &format!("Bearer {token}")).send().await.status
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "shop", "sub": "subject", "client_id": "client", "iat": NOW - 1, "exp": NOW + 900,
        "jti": "1", "user_id": 7, "roles": [],
    })
}

/// Returns the claims with some of them replaced; `null` removes one.
fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => claims.as_object_mut().expect("a fixture").remove(name),
            value => claims.as_object_mut().expect("a fixture").insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn service_claims(changes: Value) -> Value {
    let mut claims =
        json!({"iss": "caller", "sub": "caller", "client_id": "caller", "aud": "sample", "iat": NOW, "exp": NOW + 60});
    claims.as_object_mut().expect("a fixture").extend(changes.as_object().expect("a fixture").clone());
    claims
}

#[tokio::test]
async fn allows_each_call_to_the_callers_of_the_table_and_to_no_other() {
    let world = World::new();
    let user = world.issuer.token(&claims());
    let admin = world.issuer.token(&claims_with(json!({"user_id": 8, "roles": ["reader", "admin"]})));
    let without_user_id = world.issuer.token(&claims_with(json!({"user_id": null})));
    let service = world.service.token(&service_claims(json!({})));
    for (method, path, anonymous, users, admins, without_account, services) in [
        ("GET", "/public", 200, 200, 200, 200, 200),
        ("GET", "/caller", 401, 200, 200, 200, 403),
        ("GET", "/things/7", 401, 200, 200, 403, 403),
        ("GET", "/things/8", 401, 403, 200, 403, 403),
        ("GET", "/things/%37", 401, 403, 200, 403, 403),
        ("POST", "/admins", 401, 403, 200, 403, 403),
        ("GET", "/internal", 401, 403, 403, 403, 200),
        ("GET", "/undocumented", 404, 404, 404, 404, 404),
        ("GET", "/nothing", 404, 404, 404, 404, 404),
        ("PUT", "/caller", 405, 405, 405, 405, 405),
        ("HEAD", "/things/7", 401, 200, 200, 403, 403),
        ("HEAD", "/internal", 401, 403, 403, 403, 200),
        ("GET", "/livez", 200, 200, 200, 200, 200),
        ("GET", "/metrics", 200, 200, 200, 200, 200),
        ("GET", "/openapi.json", 200, 200, 200, 200, 200),
    ] {
        let tokens = [None, Some(&user), Some(&admin), Some(&without_user_id), Some(&service)];
        for (token, expected) in tokens.into_iter().zip([anonymous, users, admins, without_account, services]) {
            let under_api = matches!(path, "/caller" | "/internal" | "/admins") || path.starts_with("/things");
            for base in ["", "/api"].into_iter().take(if under_api { 2 } else { 1 }) {
                let request = world.client.request(method, &format!("{base}{path}"));
                let request =
                    token.iter().fold(request, |r, token| r.header("authorization", &format!("bearer {token}")));
                assert_eq!(request.send().await.status, expected, "{method} {base}{path} {token:?}");
            }
        }
    }
}

#[tokio::test]
async fn keeps_tokens_of_users_and_of_services_apart() {
    let world = World::new();
    assert_eq!(world.get("/internal", &world.service.token(&service_claims(json!({})))).await, 200);
    for wrong in [
        json!({"aud": "shop"}),
        json!({"aud": "other-service"}),
        json!({"iss": ISSUER}),
        json!({"sub": "another"}),
        json!({"client_id": "another"}),
        json!({"exp": NOW - 10}),
    ] {
        assert_eq!(world.get("/internal", &world.service.token(&service_claims(wrong.clone()))).await, 401, "{wrong}");
    }
    // The key of a service signs no users, and the key of the issuer no services.
    assert_eq!(world.get("/caller", &world.service.token(&claims())).await, 401);
    assert_eq!(world.get("/internal", &world.issuer.token(&service_claims(json!({})))).await, 401);
    let posing = claims_with(json!({"sub": "caller", "client_id": "caller", "roles": ["caller"]}));
    assert_eq!(world.get("/internal", &world.issuer.token(&posing)).await, 403);
    let admin = service_claims(json!({"roles": ["admin"], "user_id": 7}));
    assert_eq!(world.get("/things/7", &world.service.token(&admin)).await, 403);
}

#[tokio::test]
async fn reads_roles_and_account_from_the_claims_that_the_settings_name() {
    let auth = AuthSettings {
        roles_claim: "realm_access.roles".to_owned(),
        account_claim: "https://shop.example/id".to_owned(),
        ..auth_settings()
    };
    let world = World::with(&auth);
    let get = async |changes| world.get("/things/7", &world.issuer.token(&claims_with(changes))).await;
    assert_eq!(get(json!({"realm_access": {"roles": ["admin"]}})).await, 200);
    assert_eq!(get(json!({"realm_access.roles": "reader admin"})).await, 200);
    assert_eq!(get(json!({"roles": ["admin"], "realm_access": {"roles": ["administrator", "Admin"]}})).await, 403);
    for own in [json!(7), json!("7")] {
        assert_eq!(get(json!({"https://shop.example/id": own, "user_id": 1})).await, 200, "{own}");
    }
    for other in [
        json!(7.5),
        json!("07"),
        json!("+7"),
        json!(" 7"),
        json!("7 "),
        json!([7]),
        json!(-7),
        json!(true),
        json!(null),
    ] {
        assert_eq!(get(json!({"https://shop.example/id": other})).await, 403, "{other}");
    }
    assert_eq!(get(json!({"sub": "7"})).await, 403, "the subject is never the account");
}

#[tokio::test]
async fn says_where_to_sign_in() {
    let world = World::new();
    let challenge = async |token: Option<&str>, path: &str| {
        let request = world.client.request("GET", path);
        let request = token.iter().fold(request, |r, token| r.header("authorization", &format!("Bearer {token}")));
        let response = request.send().await;
        (response.headers["www-authenticate"].to_str().expect("a fixture").to_owned(), response.json()["type"].clone())
    };
    let metadata = "resource_metadata=\"http://test/.well-known/oauth-protected-resource\"";
    let unauthenticated = json!("urn:problem-type:unauthenticated");
    assert_eq!(challenge(None, "/caller").await, (format!("Bearer {metadata}"), unauthenticated.clone()));
    let invalid = (format!("Bearer error=\"invalid_token\", {metadata}"), unauthenticated);
    assert_eq!(challenge(Some("x"), "/caller").await, invalid);
    let user = world.issuer.token(&claims());
    let missing =
        (format!("Bearer error=\"insufficient_scope\", {metadata}"), json!("urn:problem-type:insufficient-scope"));
    assert_eq!(challenge(Some(&user), "/internal").await, missing);
    let found = world.client.get("/.well-known/oauth-protected-resource").await.expect(200);
    assert_eq!(
        found.json(),
        json!({"resource": "http://test", "authorization_servers": [ISSUER], "bearer_methods_supported": ["header"]})
    );
    let expired = world.issuer.token(&claims_with(json!({"exp": NOW - 100})));
    let response =
        world.client.request("GET", "/caller").header("authorization", &format!("Bearer {expired}")).send().await;
    assert_eq!(response.json()["detail"], "The access token has expired");
    let proxied = world
        .client
        .request("GET", "/caller")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-prefix", "/shop");
    let response = proxied.send().await;
    assert!(
        response.headers["www-authenticate"].to_str().expect("a fixture").contains("https://test/shop/.well-known/")
    );
}

#[tokio::test]
async fn rejects_a_caller_before_it_reads_the_body() {
    let world = World::new();
    let large = world.client.request("POST", "/admins").header("content-length", "999999").send().await;
    assert_eq!(large.status, 401);
}

#[tokio::test]
async fn is_off_without_an_issuer() {
    let auth = AuthSettings { issuer: None, ..auth_settings() };
    let authenticator = Authenticator::new("sample", &auth, None, Vec::new()).expect("a fixture");
    assert!(authenticator.is_none());
    let no_audience = AuthSettings { audience: None, ..auth_settings() };
    assert!(Authenticator::new("sample", &no_audience, None, Vec::new()).is_err());
    let client = Client::new(app(None, &settings()));
    for (path, status) in
        [("/caller", 200), ("/things/1", 200), ("/internal", 200), ("/.well-known/oauth-protected-resource", 404)]
    {
        let response = client.request("GET", path).header("authorization", "Bearer x").send().await;
        assert_eq!(response.status, status, "{path}");
    }
    assert_eq!(client.get("/caller").await.body, "None All");
}

#[tokio::test]
async fn documents_the_callers_of_each_call() {
    let off = serde_json::to_value(app(None, &settings()).document()).expect("a fixture");
    let on = World::new().client.get("/openapi.json").await.json();
    assert_eq!(off["paths"]["/caller"]["get"]["security"], json!([{"bearer": []}, {}]));
    assert_eq!(on["paths"]["/caller"]["get"]["security"], json!([{"bearer": []}]));
    for document in [&off, &on] {
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
        assert!(document["paths"]["/public"]["get"].get("security").is_none());
        let responses = &document["paths"]["/caller"]["get"]["responses"];
        assert!(responses.get("401").is_some() && responses.get("403").is_some());
    }
}

#[test]
#[should_panic(expected = "has no rule")]
fn does_not_start_with_a_call_that_has_no_rule() {
    let routes = OpenApiRouter::new().routes(routes!(public));
    let dependencies = Arc::new(Dependencies { store: Ok(()), peers: Vec::new() });
    App::new("sample", "", routes, dependencies, &settings(), Access { rules: &[], authenticator: None });
}

#[test]
#[should_panic(expected = "each rule is for one call")]
fn does_not_start_with_a_rule_that_has_no_call() {
    let dependencies = Arc::new(Dependencies { store: Ok(()), peers: Vec::new() });
    App::new(
        "sample",
        "",
        OpenApiRouter::new(),
        dependencies,
        &settings(),
        Access { rules: RULES, authenticator: None },
    );
}

#[tokio::test]
async fn does_not_remember_a_token_longer_than_it_is_valid() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW);
    let issuer = signing_key();
    let keys = KeySet::of(&[SigningKey::from_pem(issuer.private_pem().as_bytes()).expect("a key")]);
    let clock = || CLOCK.load(Ordering::SeqCst);
    let authenticator =
        Authenticator::with_clock("sample", &auth_settings(), Some(keys), Vec::new(), clock).expect("a fixture");
    let client = Client::new(app(authenticator, &settings()));
    let token = issuer.token(&claims());
    assert_eq!((status(&client, &token).await, status(&client, &token).await), (StatusCode::OK, StatusCode::OK));
    CLOCK.store(NOW + 909, Ordering::SeqCst);
    assert_eq!(status(&client, &token).await, 200);
    CLOCK.store(NOW + 910, Ordering::SeqCst);
    assert_eq!(status(&client, &token).await, 401);
}

#[test]
fn names_the_file_of_a_bad_key_and_none_of_its_content() {
    let file = std::env::temp_dir().join(format!("chassis-auth-bad-{}.pem", std::process::id()));
    for bad in [
        "",
        "secret",
        "-----BEGIN PUBLIC KEY-----\nc2VjcmV0\n-----END PUBLIC KEY-----\n",
        &TokenKey::new("").private_pem(),
    ] {
        std::fs::write(&file, bad).expect("a fixture");
        let errors = [
            KeySet::from_pem_file(&file).err().expect("no key"),
            SigningKey::from_file(Path::new("/none")).err().expect("a fixture"),
        ];
        assert!(errors[0].contains(file.to_str().expect("a fixture")) && !errors[0].contains("secret"), "{errors:?}");
    }
    let two = [TokenKey::new(""), TokenKey::new("")].map(|key| key.public_pem()).join("\n");
    std::fs::write(&file, two).expect("a fixture");
    assert!(KeySet::from_pem_file(&file).is_ok());
    std::fs::remove_file(&file).expect("a fixture");
}
