//! Tokens for tests, good ones and forged ones.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

/// An Ed25519 key that signs any token, also one that no issuer would sign.
pub struct TokenKey {
    key: Ed25519KeyPair,
    pkcs8: Vec<u8>,
    /// The `kid` of the tokens and of the public key.
    pub id: String,
}

impl TokenKey {
    /// Makes a new key with this id.
    ///
    /// # Panics
    /// If the machine has no randomness.
    pub fn new(id: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("randomness").as_ref().to_vec();
        let key = Ed25519KeyPair::from_pkcs8(&pkcs8).expect("a new key");
        Self { key, pkcs8, id: id.to_owned() }
    }

    /// Returns the private key as a PEM file.
    pub fn private_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    /// Returns the public key as a PEM file.
    pub fn public_pem(&self) -> String {
        // The header of a SubjectPublicKeyInfo of Ed25519 (RFC 8410).
        const HEADER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        pem("PUBLIC KEY", &[&HEADER[..], self.key.public_key().as_ref()].concat())
    }

    /// Returns the public key as a JWK.
    pub fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.id, "x": base64_url(self.key.public_key().as_ref())})
    }

    /// Returns a token with these claims and the header of an access token.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": "EdDSA", "typ": "at+jwt", "kid": self.id}), claims)
    }

    /// Returns a token with this header and these claims. The signature is that of this key, whatever the header says.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.sign(&header.to_string(), &claims.to_string())
    }

    /// Returns a token with these texts as header and claims.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64_url(header.as_bytes()), base64_url(claims.as_bytes()));
        let signature = base64_url(self.key.sign(message.as_bytes()).as_ref());
        format!("{message}.{signature}")
    }
}

/// Returns bytes in the encoding of JWTs.
pub fn base64_url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", BASE64_STANDARD.encode(der))
}
