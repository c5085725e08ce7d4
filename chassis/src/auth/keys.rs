//! A set of public keys: the JWKS of an issuer (RFC 7517), or the keys of a service.

use std::fs;
use std::path::Path;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;
use serde_json::Value;

use super::token::Rejection;
use super::{SigningKey, crypto};

/// Maximum keys of a set.
const MAX_KEYS: usize = 64;
/// The least size of an RSA key, in bytes (RFC 7518, section 3.3).
const MIN_RSA_BYTES: usize = 2048 / 8;

/// Public keys. Each is bound to the one algorithm of its type, so that a token cannot choose another (RFC 8725, section 3.1).
#[derive(Clone, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
    /// What identifies the key, to notice that a set has changed.
    thumbprint: String,
}

impl KeySet {
    /// Reads a JWKS. A key that cannot be used is skipped.
    ///
    /// # Errors
    /// If it is no JWKS, has too many keys, or none that can be used.
    pub(super) fn from_jwks(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Value>,
        }
        let Jwks { keys } = serde_json::from_slice(json).map_err(|_| "the answer is no JSON Web Key Set")?;
        if keys.len() > MAX_KEYS {
            return Err(format!("the set has more than {MAX_KEYS} keys"));
        }
        let keys: Vec<Key> = keys.into_iter().filter_map(|key| usable(&serde_json::from_value(key).ok()?)).collect();
        if keys.is_empty() { Err("the set has no key that can be used".to_owned()) } else { Ok(Self(keys)) }
    }

    /// Reads the public keys of a service from a PEM file with one or several `PUBLIC KEY` blocks (Ed25519, SPKI).
    ///
    /// # Errors
    /// If the file cannot be read, or has no key or another kind of key. The error never has a part of the file.
    pub fn from_pem_file(path: &Path) -> Result<Self, String> {
        crypto::install();
        let failed = |why: &str| format!("cannot read public keys from {}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| failed(&error.kind().to_string()))?;
        let blocks = text.split_inclusive("-----END PUBLIC KEY-----").filter(|block| block.contains("-----BEGIN"));
        let keys: Option<Vec<Key>> = blocks
            .map(|block| {
                let key = DecodingKey::from_ed_pem(block.trim().as_bytes()).ok()?;
                usable(&with_id(Jwk::from_decoding_key(&key, Some(Algorithm::EdDSA)).ok()?))
            })
            .collect();
        match keys {
            Some(keys) if (1..=MAX_KEYS).contains(&keys.len()) => Ok(Self(keys)),
            _ => Err(failed("it must have Ed25519 keys as PEM blocks of the type PUBLIC KEY")),
        }
    }

    /// Returns the public keys of these signing keys.
    pub fn of(keys: &[SigningKey]) -> Self {
        Self(keys.iter().filter_map(|key| usable(key.public())).collect())
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the key of a token: that with its `kid`, or without a `kid` the only key of its algorithm. `None` if there is none.
    ///
    /// # Errors
    /// If the key with this `kid` has another algorithm.
    pub(super) fn find(&self, header: &Header) -> Result<Option<&Key>, Rejection> {
        let has_algorithm = |key: &&Key| key.algorithm == header.alg;
        let Some(id) = &header.kid else {
            let mut keys = self.0.iter().filter(has_algorithm);
            return Ok(keys.next().filter(|_| keys.next().is_none()));
        };
        let mut keys = self.0.iter().filter(|key| key.id.as_ref() == Some(id)).peekable();
        if keys.peek().is_none() {
            return Ok(None);
        }
        keys.find(has_algorithm).map(Some).ok_or(Rejection::WrongAlgorithm)
    }

    /// Returns whether both sets have the same keys under the same ids.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&Key, &Key)| (&one.id, &one.thumbprint) == (&other.id, &other.thumbprint);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

/// Sets the id of a key to its thumbprint (RFC 7638).
pub(super) fn with_id(mut jwk: Jwk) -> Jwk {
    jwk.common.key_id = jwk.thumbprint(ThumbprintHash::SHA256).ok();
    jwk
}

/// Returns the key, if it is made for signatures by one of the accepted algorithms: Ed25519, P-256, or RSA of at least 2,048 bits.
fn usable(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    let common = &jwk.common;
    let has_algorithm = common.key_algorithm.is_none_or(|named| named == algorithm.into());
    let is_for_signatures = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let verifies = common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    let key = DecodingKey::from_jwk(jwk).ok()?;
    if !(has_algorithm && is_for_signatures && verifies && crypto::is_valid(&key, MIN_RSA_BYTES)) {
        return None;
    }
    Some(Key { id: common.key_id.clone(), algorithm, key, thumbprint: jwk.thumbprint(ThumbprintHash::SHA256).ok()? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ED25519: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"; // RFC 8037, appendix A.2

    fn header(algorithm: Algorithm, id: Option<&str>) -> Header {
        let mut header = Header::new(algorithm);
        header.kid = id.map(str::to_owned);
        header
    }

    fn set(keys: &Value) -> Result<KeySet, String> {
        crypto::install();
        KeySet::from_jwks(json!({"keys": keys}).to_string().as_bytes())
    }

    fn ed25519(id: &str, more: &Value) -> Value {
        let mut key = json!({"kty": "OKP", "crv": "Ed25519", "x": ED25519, "kid": id});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    }

    #[test]
    fn skips_keys_that_cannot_be_used_and_keeps_the_others() {
        let coordinate = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"; // RFC 7515, appendix A.3
        let modulus = |bytes: usize| super::super::signing::base64_url(&vec![0xc5; bytes]);
        let bad = [
            json!({"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"}),
            json!({"kty": "RSA", "n": modulus(128), "e": "AQAB", "kid": "1,024 bits"}),
            json!({"kty": "RSA", "n": modulus(256), "e": "AQAB", "kid": "another algorithm", "alg": "PS256"}),
            json!({"kty": "EC", "crv": "P-384", "x": coordinate, "y": coordinate, "kid": "another curve"}),
            json!({"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB", "kid": "too short"}),
            json!({"kty": "OKP", "crv": "X25519", "x": ED25519, "kid": "for encryption"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AQAB", "kid": "too short"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "!", "kid": "not base64"}),
            ed25519("for encryption", &json!({"use": "enc"})),
            ed25519("for signing only", &json!({"key_ops": ["sign"]})),
            ed25519("wrong algorithm", &json!({"alg": "ES256"})),
            ed25519("unknown algorithm", &json!({"alg": "ES256K"})),
            ed25519("kid is a number", &json!({"kid": 7})),
            json!({}),
            json!(null),
            json!("key"),
        ];
        for key in &bad {
            assert!(set(&json!([key])).is_err(), "{key}");
        }
        let mut all = bad.to_vec();
        all.push(ed25519("good", &json!({"use": "sig", "alg": "EdDSA", "x5t": "?", "unknown": [{}]})));
        all.push(json!({"kty": "RSA", "n": modulus(256), "e": "AQAB", "kid": "rsa"}));
        all.push(json!({"kty": "EC", "crv": "P-256", "x": coordinate, "y": coordinate, "kid": "ec"}));
        let keys = set(&Value::from(all)).unwrap();
        assert_eq!(keys.len(), 3);
        assert!(keys.find(&header(Algorithm::EdDSA, Some("good"))).unwrap().is_some());
    }

    #[test]
    fn rejects_an_answer_that_is_broken_empty_or_too_large() {
        crypto::install();
        for broken in
            ["", "{}", "[]", "null", r#"{"keys":{}}"#, r#"{"keys":[]}"#, "{\"keys\":[", "<html>", &"[".repeat(60_000)]
        {
            assert!(KeySet::from_jwks(broken.as_bytes()).is_err(), "{broken:.20}");
        }
        let many = |count: usize| set(&(0..count).map(|id| ed25519(&id.to_string(), &json!({}))).collect());
        assert!(many(64).is_ok() && many(65).is_err());
    }

    #[test]
    fn binds_a_key_to_its_algorithm() {
        let keys = set(&json!([ed25519("a", &json!({}))])).unwrap();
        for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::PS256] {
            assert_eq!(
                keys.find(&header(algorithm, Some("a"))).err(),
                Some(Rejection::WrongAlgorithm),
                "{algorithm:?}"
            );
            assert!(keys.find(&header(algorithm, None)).unwrap().is_none());
        }
    }

    #[test]
    fn uses_a_key_without_an_id_only_if_it_is_the_only_one() {
        let find = |keys: &Value| set(keys).unwrap().find(&header(Algorithm::EdDSA, None)).unwrap().is_some();
        assert!(find(&json!([ed25519("a", &json!({}))])));
        assert!(!find(&json!([ed25519("a", &json!({})), ed25519("b", &json!({}))])));
    }
}
