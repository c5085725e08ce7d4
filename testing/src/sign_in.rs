//! Sign-in for tests within one process.

use chassis::auth::{Authenticator, KeySet, SigningKey, system_clock};
use chassis::config::{AuthSettings, defaults};
use serde_json::{Value, json};

use crate::tokens::TokenKey;

/// The service that may call others with a key of its own.
const ORDER_SERVICE: &str = "order-service";

/// An issuer of tokens in the same process, and the key of order-service.
pub struct TestIssuer {
    issuer: SigningKey,
    order_service: SigningKey,
}

impl Default for TestIssuer {
    fn default() -> Self {
        let key = || SigningKey::from_pem(TokenKey::new("").private_pem().as_bytes()).expect("an Ed25519 key");
        Self { issuer: key(), order_service: key() }
    }
}

impl TestIssuer {
    const ISSUER: &str = "https://issuer.test";
    const AUDIENCE: &str = "three-services";

    /// Returns what verifies the tokens in `service`. If `is_called`, it accepts those of order-service too.
    ///
    /// # Panics
    /// Never: nothing is fetched.
    pub fn authenticator(&self, service: &'static str, is_called: bool) -> Option<Authenticator> {
        let (issuer, audience) = (Some(Self::ISSUER.to_owned()), Some(Self::AUDIENCE.to_owned()));
        let settings = AuthSettings { issuer, audience, ..defaults() };
        let keys = |key| KeySet::of(std::slice::from_ref(key));
        let services = is_called.then(|| (ORDER_SERVICE, keys(&self.order_service)));
        let services = services.into_iter().collect();
        Authenticator::new(service, &settings, Some(keys(&self.issuer)), services).expect("valid settings")
    }

    /// Returns the value of `Authorization` for the user with this id.
    pub fn user(&self, id: i64) -> String {
        self.bearer(json!({"sub": id.to_string(), "user_id": id}))
    }

    /// Returns the value of `Authorization` for an admin with this id.
    pub fn admin(&self, id: i64) -> String {
        self.bearer(json!({"sub": id.to_string(), "user_id": id, "roles": ["admin"]}))
    }

    /// Returns the value of `Authorization` for a token with these claims, on top of those that every token needs.
    ///
    /// # Panics
    /// If `claims` is no JSON object.
    pub fn bearer(&self, claims: Value) -> String {
        let common = json!({"iss": Self::ISSUER, "aud": Self::AUDIENCE});
        sign(&self.issuer, common, claims)
    }

    /// Returns the value of `Authorization` for order-service when it calls `audience`.
    pub fn order_service(&self, audience: &str) -> String {
        let name = ORDER_SERVICE;
        sign(&self.order_service, json!({"iss": name, "sub": name, "client_id": name, "aud": audience}), json!({}))
    }
}

fn sign(key: &SigningKey, mut claims: Value, more: Value) -> String {
    let now = system_clock();
    (claims["iat"], claims["exp"]) = (now.into(), (now + 60).into());
    let all = claims.as_object_mut().expect("an object");
    all.extend(more.as_object().expect("an object").clone());
    format!("Bearer {}", key.sign(&claims).expect("claims are JSON"))
}
