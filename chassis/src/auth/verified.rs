//! Tokens that were verified, so that the next request with the same token need not verify it again.
//!
//! A signature costs several times as much as all the rest of a request. A token is remembered until it expires, or until the
//! keys of the issuer change.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::access::Caller;

/// Maximum tokens that are remembered: at most 8 MiB, 1 MiB with tokens of a usual size.
const MAX_TOKENS: usize = 1024;

#[derive(Default)]
pub(super) struct Verified(Mutex<HashMap<Box<str>, Entry>>);

struct Entry {
    caller: Caller,
    generation: u64,
    expires_at: u64,
}

impl Verified {
    /// Returns the caller of a token, if it was verified with this generation of keys and has not expired.
    pub(super) fn get(&self, token: &str, generation: u64, now: u64) -> Option<Caller> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = tokens.get(token).filter(|entry| entry.generation == generation && entry.expires_at > now)?;
        Some(entry.caller.clone())
    }

    /// Remembers a token. When there are too many, all are forgotten: each costs one verification again.
    pub(super) fn add(&self, token: &str, caller: Caller, generation: u64, expires_at: u64) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(token.into(), Entry { caller, generation, expires_at });
    }
}
