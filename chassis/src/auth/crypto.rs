//! The cryptography of tokens: `jsonwebtoken` over `ring`.
//!
//! The library leaves the algorithms to a provider. Its own providers would bring a second implementation into the binary,
//! beside that of TLS: `aws-lc-rs` takes over a minute to compile, and `rsa` of the other one has RUSTSEC-2023-0071. This file
//! is the glue to `ring`, which TLS needs anyway. It accepts only the three algorithms that tokens may have.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, Ed25519KeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory,
    verifier_factory,
    key_utils: KeyUtils { ed_pub_components_from_private_key, compute_digest, ..KeyUtils::new_unimplemented() },
};

/// Tells the library to use `ring`. It panics without a provider, so everything that uses it calls this first.
pub(super) fn install() {
    let _ = PROVIDER.install_default(); // fails if it is installed already
}

/// Returns whether a public key has a valid length. An RSA key must have at least this many bytes.
pub(super) fn is_valid(key: &DecodingKey, min_rsa_bytes: usize) -> bool {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => match key.family() {
            AlgorithmFamily::Ed => bytes.len() == 32,
            _ => bytes.len() == 1 + 2 * 32, // an uncompressed point of P-256
        },
        DecodingKeyKind::RsaModulusExponent { n, .. } => {
            n.iter().skip_while(|byte| **byte == 0).count() >= min_rsa_bytes
        }
    }
}

struct Ed25519(Ed25519KeyPair);

impl JwtSigner for Ed25519 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

impl Signer<Vec<u8>> for Ed25519 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

fn signer_factory(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    match algorithm {
        Algorithm::EdDSA if key.family() == AlgorithmFamily::Ed => Ok(Box::new(Ed25519(key_pair(key.as_bytes())?))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

struct PublicKey(Algorithm, DecodingKey);

impl JwtVerifier for PublicKey {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

impl Verifier<Vec<u8>> for PublicKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let verified = match (self.0, self.1.kind()) {
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

fn verifier_factory(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let family = match algorithm {
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        Algorithm::ES256 => AlgorithmFamily::Ec,
        Algorithm::RS256 => AlgorithmFamily::Rsa,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    if key.family() != family {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(PublicKey(*algorithm, key.clone())))
}

fn ed_pub_components_from_private_key(key: &[u8], _: &EllipticCurve) -> Result<Vec<u8>> {
    Ok(key_pair(key)?.public_key().as_ref().to_vec())
}

/// Returns the key pair of a PKCS#8 document. Those of OpenSSL have no public key, so that is not checked.
fn key_pair(pkcs8: &[u8]) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| Error::from(ErrorKind::InvalidEddsaKey))
}

fn compute_digest(data: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>> {
    match hash {
        ThumbprintHash::SHA256 => Ok(digest::digest(&digest::SHA256, data).as_ref().to_vec()),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}
