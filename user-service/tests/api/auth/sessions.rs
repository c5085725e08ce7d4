//! `POST /sessions`, its tokens, and the keys that verify them.

use std::sync::Arc;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chassis::auth::Authenticator;
use chassis::config::Settings;
use serde_json::{Value, json};
use testing::Client;
use user_service::password::PasswordHash;
use user_service::user::CreateUser;
use user_service::{AppState, SERVICE, app, store};

use super::{AUDIENCE, ISSUER, PASSWORD, Setup, key, new_key};
use crate::support::{hasher, service, settings};

const KEYS: &str = "/.well-known/jwks.json";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Returns the header and the claims of a token.
fn decode(token: &str) -> [Value; 2] {
    let mut parts = token.split('.').map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url"));
    [(); 2].map(|()| serde_json::from_slice(&parts.next().expect("a part")).expect("JSON"))
}

#[tokio::test]
async fn returns_a_token_for_the_username_or_the_email() {
    let service = Setup { admins: &["Root"], ..Setup::signing_with(&new_key()) }.start().await;
    service.state.clone().create_admins().await;
    service.sign_up("Ädä").await;
    let mut ids = Vec::new();
    for (name, value, id, roles) in [
        ("username", "Ädä", 2, json!([])),
        ("username", "ÄDÄ", 2, json!([])),
        ("username", "A\u{308}dä", 2, json!([])),
        ("email", "ädä@EXAMPLE.com", 2, json!([])),
        ("username", "ｒｏｏｔ", 1, json!(["admin"])),
    ] {
        let response = service.client.post("/sessions", json!({name: value, "password": PASSWORD})).await.expect(200);
        assert_eq!(response.header("cache-control"), "no-store");
        let session = response.json();
        assert_eq!((&session["tokenType"], &session["expiresIn"]), (&json!("Bearer"), &json!(900)));
        let token = session["accessToken"].as_str().unwrap();
        let [header, claims] = decode(token);
        assert_eq!((&header["alg"], &header["typ"]), (&json!("EdDSA"), &json!("at+jwt")));
        assert!(header["kid"].is_string());
        let issued_at = claims["iat"].as_u64().unwrap();
        let expected = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": id.to_string(), "client_id": "user-service",
            "iat": issued_at, "exp": issued_at + 900, "jti": claims["jti"], "roles": roles, "user_id": id});
        assert_eq!(claims, expected, "{value}");
        ids.push(claims["jti"].as_str().unwrap().to_owned());
        service.client.request("GET", &format!("/users/{id}")).token(token).send().await.expect(200);
        let is_admin = id == 1;
        service.client.request("GET", "/users").token(token).send().await.expect(if is_admin { 200 } else { 403 });
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "each token has its own id");
}

#[tokio::test]
async fn answers_alike_after_equal_work_whether_or_not_the_account_exists() {
    let service = Setup::signing_with(&new_key()).start().await;
    service.sign_up("ada").await;
    service.client.post("/users", json!({"username": "bob", "email": "bob@example.com"})).await.expect(201);
    let mut answers = Vec::new();
    for (name, value, password) in [
        ("username", "ada", "another password"),
        ("email", "ada@example.com", "another password"),
        ("username", "ada", "x"),
        ("username", "bob", PASSWORD),
        ("email", "bob@example.com", PASSWORD),
        ("username", "eve", PASSWORD),
        ("email", "eve@example.com", PASSWORD),
        ("username", "ada@example.com", PASSWORD),
        ("email", "ada", PASSWORD),
        ("username", "no username: \u{fb01} \u{200b}", PASSWORD),
        ("username", &"x".repeat(254), &"🦀".repeat(128)),
    ] {
        let before = service.hasher.done();
        let response = service.client.post("/sessions", json!({name: value, "password": password})).await;
        assert_eq!(service.hasher.done(), before + 1, "{value}");
        let mut headers = response.headers.clone();
        headers.remove("x-request-id");
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
        let mut problem = response.expect_problem(401, "invalid-credentials");
        problem.as_object_mut().unwrap().remove("requestId");
        answers.push((headers, problem));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[tokio::test]
async fn rejects_a_bad_body() {
    let service = Setup::signing_with(&new_key()).start().await;
    for (body, pointers) in [
        (json!({}), &["/username", "/password"][..]),
        (json!({"username": "ada"}), &["/password"]),
        (json!({"password": PASSWORD}), &["/username"]),
        (json!({"username": null, "email": null, "password": PASSWORD}), &["/username"]),
        (json!({"username": "ada", "email": "ada@example.com", "password": PASSWORD}), &["/email"]),
        (json!({"username": 7, "password": PASSWORD}), &["/username"]),
        (json!({"username": "", "password": ""}), &["/username", "/password"]),
        (json!({"username": "ada\u{0}", "password": PASSWORD}), &["/username"]),
        (json!({"email": "x".repeat(255), "password": "x".repeat(129)}), &["/email", "/password"]),
        (json!({"username": "ada", "password": [PASSWORD]}), &["/password"]),
    ] {
        service.client.post("/sessions", body).await.expect_invalid(pointers);
    }
    assert_eq!(service.hasher.done(), 0);
    service.client.request("POST", "/sessions").send().await.expect_problem(415, "unsupported-media-type");
    service.client.get("/sessions").await.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn has_no_sessions_and_no_keys_while_another_service_is_the_issuer() {
    let auth = Setup::signing_with(&new_key()).settings.auth;
    let settings = Settings { auth, ..settings() };
    let authenticator = Authenticator::new(SERVICE, &settings.auth, None, Vec::new()).unwrap();
    let state = AppState::new(store::memory(false).await.unwrap(), hasher()).with_sign_in(authenticator, None);
    for client in [service().await, Client::new(app(state, &settings))] {
        for body in [json!({"username": "ada", "password": PASSWORD}), json!({"username": 7}), json!([])] {
            client.post("/sessions", body).await.expect_problem(404, "not-found");
        }
        for path in [KEYS, DISCOVERY] {
            client.get(path).await.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn publishes_its_keys_and_where_they_are() {
    let (first, second) = (new_key(), new_key());
    let service = Setup { keys: vec![key(&first), key(&second)], ..Setup::signing_with(&first) }.start().await;
    for path in [KEYS, DISCOVERY] {
        let response = service.client.get(path).await.expect(200);
        assert_eq!(response.header("content-type"), "application/json");
        assert_eq!(response.header("cache-control"), "public, max-age=300");
        service.client.request("HEAD", path).send().await.expect(200);
        service.client.request("GET", path).token("expired").send().await.expect(200);
        service.client.post(path, json!({})).await.expect_problem(405, "method-not-allowed");
    }
    let metadata = service.client.get(DISCOVERY).await.json();
    assert_eq!(metadata["issuer"], ISSUER, "exactly as in the tokens");
    assert_eq!(metadata["jwks_uri"], "https://shop.example/users/.well-known/jwks.json");
    let keys = service.client.get(KEYS).await.json()["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 2);
    for jwk in &keys {
        let mut members: Vec<_> = jwk.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"], "only what is public");
    }
    service.sign_up("ada").await;
    let [header, _] = decode(&service.token("ada").await);
    assert_eq!(header["kid"], keys[0]["kid"], "the first key signs");
}

#[tokio::test]
async fn rotates_its_keys_without_a_gap() {
    let (old, new) = (new_key(), new_key());
    let store = store::memory(false).await.unwrap();
    let replica = |keys: &[&String]| {
        let keys = keys.iter().map(|pem| key(pem)).collect();
        Setup { keys, ..Setup::signing_with(&old) }.start_over(Arc::clone(&store), &new_key())
    };
    // The steps of a rotation. Replicas are restarted one after the other, so each step runs beside its neighbours.
    let steps = [replica(&[&old]), replica(&[&old, &new]), replica(&[&new, &old]), replica(&[&new])];
    steps[0].sign_up("ada").await;
    for [before, after] in [[0, 1], [1, 2]] {
        for (signer, verifier) in [(before, after), (after, before)] {
            let token = steps[signer].token("ada").await;
            let read = steps[verifier].client.request("GET", "/users/1").token(&token);
            read.send().await.expect(200);
        }
    }
    let token = steps[2].token("ada").await;
    steps[3].client.request("GET", "/users/1").token(&token).send().await.expect(200);
    let token = steps[0].token("ada").await;
    steps[3].client.request("GET", "/users/1").token(&token).send().await.expect_problem(401, "unauthenticated");
}

#[tokio::test]
async fn upgrades_a_weaker_hash_at_the_next_sign_in() {
    let service = Setup::signing_with(&new_key()).start().await;
    let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
    let hash = weak.hash_password(PASSWORD.as_bytes()).unwrap().to_string();
    let ada = CreateUser { username: Some("ada".to_owned()), ..CreateUser::named("Ada") };
    let ada = service.store.insert(ada, Some(PasswordHash::stored(hash.clone())), chassis::now()).await.unwrap();
    let stored = async || {
        let found = service.store.by_id(ada.user.id).await.unwrap().unwrap();
        (found.etag(), found.password.as_ref().unwrap().expose().to_owned())
    };
    service.sign_in("ada", "another password").await.expect(401);
    assert_eq!(stored().await, (ada.etag(), hash));
    service.sign_in("ada", PASSWORD).await.expect(200);
    let (etag, upgraded) = stored().await;
    assert!(upgraded.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{upgraded}");
    assert_eq!(etag, ada.etag(), "what clients see is the same");
    service.sign_in("ada", PASSWORD).await.expect(200);
    service.sign_in("ada", "another password").await.expect(401);
    assert_eq!(stored().await.1, upgraded, "once");
}
