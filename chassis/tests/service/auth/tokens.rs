//! Which tokens are rejected.

use serde_json::json;
use testing::tokens::{TokenKey, base64_url};

use super::*;

#[tokio::test]
async fn rejects_claims_that_are_missing_or_wrong() {
    let world = World::new();
    let accepted = [
        json!({}),
        json!({"aud": ["other", "shop"]}),
        json!({"exp": NOW - 9}),
        json!({"exp": NOW as f64 + 0.5}),
        json!({"nbf": NOW + 10, "iat": NOW + 10}),
        json!({"iat": null, "jti": null, "client_id": null, "roles": null, "user_id": null}),
        json!({"roles": {"admin": true}, "user_id": "x"}),
        json!({"sub": "auth0|ä"}),
    ];
    for changes in accepted {
        assert_eq!(world.get("/caller", &world.issuer.token(&claims_with(changes.clone()))).await, 200, "{changes}");
    }
    let rejected = [
        json!({"iss": null}),
        json!({"iss": "https://issuer.example/realm/"}),
        json!({"iss": "caller"}),
        json!({"iss": [ISSUER]}),
        json!({"aud": null}),
        json!({"aud": "shop2"}),
        json!({"aud": "SHOP"}),
        json!({"aud": []}),
        json!({"aud": ["sho", "p"]}),
        json!({"aud": {"shop": 1}}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": 7}),
        json!({"sub": "x".repeat(256)}),
        json!({"exp": null}),
        json!({"exp": NOW - 10}),
        json!({"exp": "9999999999"}),
        json!({"exp": -1}),
        json!({"exp": true}),
        json!({"nbf": NOW + 11}),
        json!({"nbf": "soon"}),
        json!({"iat": NOW + 11}),
        json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}),
    ];
    for changes in rejected {
        assert_eq!(world.get("/caller", &world.issuer.token(&claims_with(changes.clone()))).await, 401, "{changes}");
    }
    for claims in [
        "",
        "[]",
        "null",
        "7",
        "{",
        "{\"iss\":",
        &"[".repeat(4000),
        &format!("{{\"a\":{}1{}}}", "[".repeat(500), "]".repeat(500)),
    ] {
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": world.issuer.id}).to_string();
        assert_eq!(world.get("/caller", &world.issuer.sign(&header, claims)).await, 401, "{claims:.20}");
    }
}

#[tokio::test]
async fn rejects_headers_that_choose_a_key_or_an_algorithm() {
    let world = World::new();
    let (id, attacker) = (&world.issuer.id, TokenKey::new("attacker"));
    for header in [
        json!({"alg": "EdDSA", "kid": id}),
        json!({"alg": "EdDSA", "kid": id, "typ": "JWT"}),
        json!({"alg": "EdDSA", "kid": id, "typ": "application/at+jwt"}),
        json!({"alg": "EdDSA"}), // the only key
        json!({"alg": "EdDSA", "kid": id, "jku": "http://127.0.0.1:1/jwks", "x5u": "http://127.0.0.1:1/", "jwk": attacker.jwk()}),
    ] {
        assert_eq!(world.get("/caller", &world.issuer.token_with(&header, &claims())).await, 200, "{header}");
        assert_eq!(
            world.get("/caller", &attacker.token_with(&header, &claims())).await,
            401,
            "{header}, of an attacker"
        );
    }
    for header in [
        json!({"alg": "none", "kid": id}),
        json!({"alg": "None", "kid": id}),
        json!({"alg": "HS256", "kid": id}),
        json!({"alg": "HS512", "kid": id}),
        json!({"alg": "ES256", "kid": id}),
        json!({"alg": "RS256", "kid": id}),
        json!({"alg": "PS256", "kid": id}),
        json!({"alg": "", "kid": id}),
        json!({"kid": id}),
        json!({"alg": "EdDSA", "kid": "another"}),
        json!({"alg": "EdDSA", "kid": "../../etc/passwd"}),
        json!({"alg": "EdDSA", "kid": "' or 1=1 --"}),
        json!({"alg": "EdDSA", "kid": 7}),
        json!({"alg": "EdDSA", "kid": [id]}),
        json!({"alg": "EdDSA", "kid": id, "typ": "logout+jwt"}),
        json!({"alg": "EdDSA", "kid": id, "typ": "dpop+jwt"}),
        json!({"alg": "EdDSA", "kid": id, "typ": "id_token"}),
        json!({"alg": "EdDSA", "kid": id, "crit": ["exp"], "exp": 1}),
        json!({"alg": "EdDSA", "kid": id, "crit": ["b64"], "b64": false}),
        json!({"alg": "EdDSA", "kid": id, "crit": []}),
        json!({"alg": "EdDSA", "kid": id, "zip": "DEF"}),
        json!({"alg": "EdDSA", "kid": id, "enc": "A256GCM"}),
    ] {
        assert_eq!(world.get("/caller", &world.issuer.token_with(&header, &claims())).await, 401, "{header}");
    }
}

#[tokio::test]
async fn rejects_text_that_is_no_token() {
    let world = World::new();
    let good = world.issuer.token(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let last = signature.chars().last().expect("a fixture");
    let other_bits = char::from(last as u8 ^ 1); // decodes to the same bytes, if trailing bits are ignored
    let unsigned = format!("{}.{payload}.", base64_url(br#"{"alg":"none"}"#));
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "ä.ö.ü".to_owned(),
        unsigned,
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{header}.{payload}.{signature}."),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}.{}{other_bits}", &signature[..signature.len() - 1]),
        format!("{header}.{}.{signature}", base64_url(claims_with(json!({"roles": ["admin"]})).to_string().as_bytes())),
        format!("{good} {good}"),
        format!("{good},{good}"),
        "x".repeat(15_000),
        format!("{header}.{}.{signature}", "A".repeat(14_000)),
        format!("{}.{payload}.{signature}", base64_url("[".repeat(5000).as_bytes())),
    ] {
        assert_eq!(world.get("/caller", &bad).await, 401, "{bad:.60}");
    }
    for (header, status) in
        [("Basic dXNlcjpwYXNz", 401), ("Bearer", 401), ("Token x", 401), (&*format!("BEARER  {good}"), 200)]
    {
        let response = world.client.request("GET", "/caller").header("authorization", header).send().await;
        assert_eq!(response.status, status, "{header:.20}");
    }
    let twice = world.client.request("GET", "/caller").header("authorization", &format!("Bearer {good}"));
    let twice = twice.header("authorization", &format!("Bearer {good}")).send().await;
    assert_eq!(twice.status, 400);
}
