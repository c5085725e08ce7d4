//! Signing tokens with a private key of Ed25519.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderValue;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::CryptoProvider;
use jsonwebtoken::jwk::{AlgorithmParameters, CommonParameters, EllipticCurve};
use jsonwebtoken::jwk::{Jwk, OctetKeyPairParameters, OctetKeyPairType, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use uuid::Uuid;

use super::{Clock, crypto, keys, system_clock};

/// The media type of access tokens (RFC 9068).
const TOKEN_TYPE: &str = "at+jwt";
/// How long the token of a service is valid, in seconds.
const SERVICE_TOKEN_SECONDS: u64 = 60;
/// A token of a service is used until this many seconds before it expires.
const RENEW_BEFORE: u64 = 30;

/// A private key, and its public half under an id, the thumbprint of RFC 7638. It has no `Debug`, so no code can show it by mistake.
pub struct SigningKey {
    key: EncodingKey,
    public: Jwk,
}

impl SigningKey {
    /// Reads a private key from a PEM file (Ed25519, PKCS#8), as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// If the file cannot be read or has another kind of key. The error never has a part of the file.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let failed = |why: &str| format!("cannot read a private key from {}: {why}", path.display());
        let pem = fs::read(path).map_err(|error| failed(&error.kind().to_string()))?;
        Self::from_pem(&pem).ok_or_else(|| failed("it must be an Ed25519 key as a PEM block of the type PRIVATE KEY"))
    }

    /// Parses a private key. `None` if it is another kind of key.
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        crypto::install();
        let key = EncodingKey::from_ed_pem(pem).ok()?;
        let public_key = CryptoProvider::try_get_default()?.key_utils.ed_pub_components_from_private_key;
        let x = public_key(key.as_bytes(), &EllipticCurve::Ed25519).ok()?;
        let parameters = OctetKeyPairParameters {
            key_type: OctetKeyPairType::OctetKeyPair,
            curve: EllipticCurve::Ed25519,
            x: base64_url(&x),
        };
        let common = CommonParameters {
            public_key_use: Some(PublicKeyUse::Signature),
            key_algorithm: Some(Algorithm::EdDSA.into()),
            ..CommonParameters::default()
        };
        let public = keys::with_id(Jwk { common, algorithm: AlgorithmParameters::OctetKeyPair(parameters) });
        Some(Self { key, public })
    }

    /// Returns the public key, as an issuer publishes it.
    pub fn public(&self) -> &Jwk {
        &self.public
    }

    /// Returns a token with these claims.
    ///
    /// # Errors
    /// If the claims have no JSON.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, String> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TOKEN_TYPE.to_owned());
        header.kid.clone_from(&self.public.common.key_id);
        encode(&header, claims, &self.key).map_err(|error| error.to_string())
    }
}

pub(super) fn base64_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The tokens by which a service identifies itself to the services that it calls. No call to an issuer is needed.
pub struct ServiceTokens {
    key: SigningKey,
    service: &'static str,
    audience: &'static str,
    clock: Clock,
    /// The token in use, and when to replace it.
    current: Mutex<Option<(HeaderValue, u64)>>,
}

#[derive(Serialize)]
struct ServiceClaims {
    iss: &'static str,
    sub: &'static str,
    client_id: &'static str,
    aud: &'static str,
    iat: u64,
    exp: u64,
    jti: Uuid,
}

impl ServiceTokens {
    /// Returns the tokens of `service` for calls to `audience`, signed by this key.
    pub fn new(key: SigningKey, service: &'static str, audience: &'static str) -> Self {
        Self { key, service, audience, clock: system_clock, current: Mutex::default() }
    }

    /// Returns the value of the header `Authorization`. The same token is used for half of its life.
    ///
    /// # Errors
    /// If the token cannot be signed.
    pub(crate) fn authorization(&self) -> Result<HeaderValue, String> {
        let now = (self.clock)();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, _)) = current.as_ref().filter(|(_, renew_at)| now < *renew_at) {
            return Ok(value.clone());
        }
        let (name, exp) = (self.service, now + SERVICE_TOKEN_SECONDS);
        let claims = ServiceClaims {
            iss: name,
            sub: name,
            client_id: name,
            aud: self.audience,
            iat: now,
            exp,
            jti: Uuid::new_v4(),
        };
        let value = bearer(&self.key.sign(&claims)?)?;
        *current = Some((value.clone(), exp - RENEW_BEFORE));
        Ok(value)
    }
}

/// Returns the value of the header `Authorization` for a token. `Debug` does not show it.
fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `openssl genpkey -algorithm ed25519`: PKCS#8 without the public key.
    const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
"; // RFC 8037, appendix A.1

    #[test]
    fn reads_a_key_of_openssl() {
        let key = SigningKey::from_pem(OPENSSL.as_bytes()).expect("a key");
        let public = serde_json::to_value(key.public()).unwrap();
        assert_eq!(public["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(
            public["kid"], "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            "the thumbprint of RFC 8037, appendix A.3"
        );
        assert!(public.get("d").is_none(), "the private half");
    }

    #[test]
    fn rejects_other_files() {
        let pem = |kind: &str| OPENSSL.replace("PRIVATE KEY", kind);
        for bad in
            ["", "key", &pem("PUBLIC KEY"), &pem("EC PRIVATE KEY"), &OPENSSL[..60], &OPENSSL.replace("MC4C", "MC5C")]
        {
            assert!(SigningKey::from_pem(bad.as_bytes()).is_none(), "{bad}");
        }
        let error = SigningKey::from_file(Path::new("/no/such/file")).err().expect("an error");
        assert!(error.contains("/no/such/file"), "{error}");
    }

    #[test]
    fn uses_a_service_token_for_half_of_its_life() {
        fn clock() -> u64 {
            NOW.load(std::sync::atomic::Ordering::Relaxed)
        }
        static NOW: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
        let key = SigningKey::from_pem(OPENSSL.as_bytes()).expect("a key");
        let tokens = ServiceTokens { clock, ..ServiceTokens::new(key, "one", "other") };
        let first = tokens.authorization().unwrap();
        assert!(first.is_sensitive() && !format!("{first:?}").contains("Bearer"));
        NOW.store(1029, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(tokens.authorization().unwrap(), first);
        NOW.store(1030, std::sync::atomic::Ordering::Relaxed);
        assert_ne!(tokens.authorization().unwrap(), first);
    }
}
